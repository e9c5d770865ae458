"""The parameters that torch chooses, against the specification: observers, decomposed operators, fbgemm's rule.

torch has three ways to choose: its observers and `quantized_decomposed` (in float32, scales of at least 2**-23), and
fbgemm's `ChooseQuantizationParams` (in double), behind dynamic quantization and fused fake quantization.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import QParams, Quantizer, catalog, choose_qparams, dequantize, dialects, fake_quantize, quantize
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES
from ..oracle_inputs import blocks
from .test_torch_and_onnxruntime import inputs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch announces the end of its quantized tensors
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
FLOAT32 = DTYPES["float32"]
NARROW = pytest.mark.parametrize("dtype", [DTYPES[n] for n in ("float32", "bfloat16", "float16")], ids=str)
TENSORS = [("int8_per_tensor", torch.qint8), ("uint8_affine_per_tensor", torch.quint8)]
SIGNED_AFFINE = catalog["uint8_affine_per_tensor"].replace(signed=True)
CHANNELS = [("int8_per_channel", torch.qint8), ("uint8_affine_per_channel", torch.quint8)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Their operators start threads even for three numbers, which takes longer than all the rest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def agree(q: Quantizer, x: NDArray[Any], scale: Any, zero: Any, qparams: QParams) -> None:
    """Their scale (perhaps a double) as float32, and their zero point where ours has one."""
    scale = np.asarray(scale, np.float32).reshape(qparams.scale.shape)
    assert_same_bits(qparams.scale, scale, call=f"{q}", inputs=x if x.size < 9 else None)
    zero = np.asarray(zero, np.int32).reshape(qparams.scale.shape)
    if q.affine:
        assert_same_bits(qparams.zero_point, zero, call=f"scale {scale}, {x!r}")
    else:
        assert not zero.any()


def many() -> Iterator[NDArray[Any]]:
    """Blocks, and short rows: sums of few numbers meet more ties."""
    yield from blocks(FLOAT32, powers=(-42, -38, -30, -9, -7, -5, -4, -3, -2, 0, 2, 9, 30))
    rng = np.random.default_rng(3)
    for _ in range(400):
        power, shift = 10.0 ** rng.integers(-8, 3), rng.choice([0, 0, 3, -3])
        yield (np.round(rng.standard_normal((1, rng.integers(1, 4))) * 40) / 8 * power + shift * power).astype(FLOAT32)


# --- observers -------------------------------------------------------------------------------------------------------


@NARROW
@pytest.mark.parametrize(("name", "kind"), [*TENSORS, *CHANNELS])
@pytest.mark.parametrize("dialect", ["torch_fake_quantize", "torch_quantize", "torch_quantize_per_channel"])
def test_torch_observers(dialect: str, name: str, kind: torch.dtype, dtype: np.dtype[Any]) -> None:
    q = catalog[name].replace(**dialects[dialect])
    for x in blocks(dtype):
        way = ("affine" if q.affine else "symmetric").join(["per_channel_" if "channel" in name else "per_tensor_", ""])
        observer = PerChannelMinMaxObserver if "channel" in name else MinMaxObserver
        watching = observer(dtype=kind, qscheme=getattr(torch, way))
        watching(to_torch(x))
        agree(q, x, *(to_numpy(v) for v in watching.calculate_qparams()), choose_qparams(q, x))


# --- torch.ops.quantized_decomposed ----------------------------------------------------------------------------------


@NARROW
def test_torch_decomposed_chooses(dtype: np.dtype[Any]) -> None:
    operators = torch.ops.quantized_decomposed
    for q, kind in ((catalog["uint8_affine_per_tensor"], torch.uint8), (SIGNED_AFFINE, torch.int8)):
        theirs = q.replace(**dialects["torch_decomposed"])
        for x in blocks(dtype):
            scale, zero = operators.choose_qparams(to_torch(x), q.format.lo, q.format.hi, 2.0**-23, kind)
            agree(theirs, x, to_numpy(scale), to_numpy(zero), choose_qparams(theirs, x))
    q = catalog["int8_per_tensor"].replace(**dialects["torch_decomposed"])
    for x in blocks(dtype):
        scale, zero = operators.choose_qparams_symmetric(to_torch(x), -128, 127, 2.0**-23, torch.int8)
        agree(q, x, to_numpy(scale), to_numpy(zero), choose_qparams(q, x))


# --- torch._choose_qparams_per_tensor, torch.quantize_per_tensor_dynamic ---------------------------------------------


def test_torch_dynamic_chooses_and_quantizes() -> None:
    for q, kind in ((catalog["uint8_affine_per_tensor"], torch.quint8), (SIGNED_AFFINE, torch.qint8)):
        q = q.replace(**dialects["torch_dynamic"])
        for x in many():
            theirs = torch.quantize_per_tensor_dynamic(to_torch(x), kind, False)
            qparams = choose_qparams(q, x)
            agree(q, x, theirs.q_scale(), theirs.q_zero_point(), qparams)
            if x.size < 9:  # exact fused multiply-adds take their time; knife edges of codes are in test_oracles
                assert_same_bits(quantize(q, x, qparams), theirs.int_repr(), inputs=x)
                assert_same_bits(fake_quantize(q, x), theirs.dequantize(), inputs=x)
                with_nan = np.append(x, np.float32(np.nan))
                theirs = torch.quantize_per_tensor(to_torch(with_nan), theirs.q_scale(), theirs.q_zero_point(), kind)
                assert_same_bits(quantize(q, with_nan, qparams), theirs.int_repr(), inputs=with_nan)
            if kind is torch.quint8:
                agree(q, x, *torch._choose_qparams_per_tensor(to_torch(x), False), qparams)


def test_torch_dynamic_in_seven_bits() -> None:
    """``reduce_range`` halves the codes: 0..127, a format of 7 bits."""
    q = catalog["uint8_affine_per_tensor"].replace(bits=7, **dialects["torch_dynamic"])
    for x in many():
        agree(q, x, *torch._choose_qparams_per_tensor(to_torch(x), True), choose_qparams(q, x))


def test_torch_dynamic_small_scales() -> None:
    """0.1 where the reciprocal overflows, 6.1e-5 below that, and the range stretched to it."""
    q, threshold = catalog["uint8_affine_per_tensor"].replace(**dialects["torch_dynamic"]), np.float32(6.1e-5)
    for data, expected in (
        ([0.0, 0.0], (0.1, 0)),
        ([1e-38, 2.0**-149], (0.1, 0)),
        ([255 * 2.0**-128, 0], (0.1, 0)),
        ([255 * 2.0**-127, 0], (threshold, 0)),
        ([-3e-5, 1e-5], (threshold, 191)),
        ([-1e-5, 0], (threshold, 255)),
        ([1e-5, 0], (threshold, 0)),
    ):
        x = np.array(data, np.float32)
        assert torch._choose_qparams_per_tensor(to_torch(x), False)[1] == expected[1]
        agree(q, x, *torch._choose_qparams_per_tensor(to_torch(x), False), choose_qparams(q, x))
        assert choose_qparams(q, x)[:2] == (np.float32(expected[0]), expected[1])


# --- torch.fused_moving_avg_obs_fake_quant ---------------------------------------------------------------------------


def fused(q: Quantizer, x: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    """Value, scale and zero point on a first call, when the moving averages are the range of the data itself."""
    channels = len(x) if q.granularity.block_size(x.shape)[0] == 1 and len(x) > 1 else 1
    on, low, high = torch.ones(1), torch.full((channels,), torch.inf), torch.full((channels,), -torch.inf)
    scale, zero = torch.ones(channels), torch.zeros(channels, dtype=torch.int32)
    limits, per_row = (q.format.lo, q.format.hi), channels > 1
    arguments = (on, on, low, high, scale, zero, 0.01, *limits, 0, per_row, not q.affine)
    return torch.fused_moving_avg_obs_fake_quant(to_torch(x), *arguments), to_numpy(scale), to_numpy(zero)


def test_torch_fused_fake_quantize() -> None:
    affine = (catalog["uint8_affine_per_tensor"], SIGNED_AFFINE, catalog["uint8_affine_per_channel"])
    for q in (v.replace(**dialects["torch_fused_fake_quantize"]) for v in affine):
        for x in many():
            value, scale, zero = fused(q, x)
            agree(q, x, scale, zero, choose_qparams(q, x))
            assert_same_bits(fake_quantize(q, x), value, inputs=x)


def test_torch_fused_fake_quantize_symmetric() -> None:
    """Where every channel has both signs and more than a few subnormals; the rest is in `test_oracle_differences`."""
    seen = 0
    for name in ("int8_per_tensor", "int8_per_channel"):
        q = catalog[name].replace(**dialects["torch_fused_fake_quantize"])
        for x in many():
            rows = x if "channel" in name else x.reshape(1, -1)
            if not ((rows.min(1) < -1e-40) & (rows.max(1) > 1e-40)).all():
                continue
            value, scale, zero = fused(q, x)
            agree(q, x, scale, zero, choose_qparams(q, x))
            assert_same_bits(fake_quantize(q, x), value, inputs=x)
            seen += 1
    assert seen > 150


def test_torch_fused_fake_quantize_on_knife_edges() -> None:
    """With the observer off parameters come from the moving averages, whatever the data is."""
    off, on = torch.zeros(1), torch.ones(1)
    for name in ("int8_per_tensor", "uint8_affine_per_tensor"):
        q = catalog[name].replace(**dialects["torch_fused_fake_quantize"])
        for ends in ([-12.75, 12.7], [-1.3, 2.7], [-0.004, 0.9], [-85, 3]):
            low, high = (torch.tensor([v]) for v in ends)
            qparams = choose_qparams(q, np.array(ends, np.float32))
            x = inputs(q, qparams.scale, 0 if qparams.zero_point is None else int(qparams.zero_point), FLOAT32)
            scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
            state = (off, on, low, high, scale, zero, 0.01, q.format.lo, q.format.hi, 0, False, not q.affine)
            theirs = torch.fused_moving_avg_obs_fake_quant(to_torch(x), *state)
            agree(q, x, to_numpy(scale), to_numpy(zero), qparams)
            assert_same_bits(fake_quantize(q, x, qparams), theirs, call=f"range {ends}", inputs=x)


def test_torch_native_values_come_from_codes() -> None:
    """Dequantizing with chosen parameters: one multiplication of the centred code."""
    q = catalog["uint8_affine_per_tensor"].replace(**dialects["torch_quantize"])
    for x in blocks(FLOAT32, powers=(-3, 0)):
        qparams = choose_qparams(q, x)
        theirs = torch.quantize_per_tensor(to_torch(x), float(qparams.scale), int(qparams.zero_point), torch.quint8)
        codes = quantize(q, x, qparams)
        assert_same_bits(codes, theirs.int_repr(), inputs=x)
        assert_same_bits(dequantize(q, codes, qparams), theirs.dequantize())
