"""Parameters of observers against ``torch.ao.quantization``, bit for bit, and the cases where its own are faults.

The specification runs beside the installed library; `tests/verbs/test_observers.py` holds the other rooms to it.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import QParams
from samebits.core import histograms as core_histograms
from samebits.core.observers import init, observe, observed_qparams
from samebits.core.observing import Observer, QConfig, default_per_channel_qconfig, default_qat_qconfig, default_qconfig
from samebits.jax_backend.ptq import histograms as jax_histograms
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.ptq import histograms as torch_histograms
from samebits.torch_frontend.ptq import observer_modules as ours

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao import quantization as theirs

pytestmark = pytest.mark.filterwarnings("ignore")  # torch announces the end of these
Array = NDArray[Any]

# Arguments that both take: types and schemes with every way to say a range that is one of a width
TENSORS: list[dict[str, Any]] = [
    {},
    {"reduce_range": True},
    {"quant_min": 0, "quant_max": 127},
    {"quant_min": 0, "quant_max": 15},
    {"quant_min": 0, "quant_max": 255, "reduce_range": True},
    {"dtype": torch.qint8},
    {"dtype": torch.qint8, "quant_min": -127, "quant_max": 127, "eps": 2.0**-12},
    {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric},
    {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric, "reduce_range": True},
    {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric, "quant_min": -8, "quant_max": 7},
    {"qscheme": torch.per_tensor_symmetric},
    {"qscheme": torch.per_tensor_symmetric, "quant_min": 0, "quant_max": 255},
    {"qscheme": torch.per_tensor_symmetric, "quant_min": 0, "quant_max": 127},
    {"dtype": torch.uint16},
    {"dtype": torch.int16, "qscheme": torch.per_tensor_symmetric},
]
CHANNELS: list[dict[str, Any]] = [
    {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric},
    {"dtype": torch.qint8, "qscheme": torch.per_channel_affine, "ch_axis": 1},
    {"qscheme": torch.per_channel_affine},
    {"qscheme": torch.per_channel_symmetric},
    {"qscheme": torch.per_channel_affine, "reduce_range": True},
]


def batches(seed: int, shape: tuple[int, ...] | None = None) -> Iterator[list[Array]]:
    """Sequences of tensors: of every size and sign, constants, zeros, few values, subnormals, ties, wide ranges."""
    rng = np.random.default_rng(seed)
    kinds: list[Any] = [
        lambda x: x,
        np.abs,
        lambda x: -np.abs(x),
        lambda x: np.maximum(x, 0),
        lambda x: np.round(x * 4) / 4,
        lambda x: np.full_like(x, x.flat[0]),
        np.zeros_like,
        lambda x: x * np.float32(1e-42),
        lambda x: x * np.float32(1e30),
        lambda x: x**3 * 100,
        lambda x: np.where(np.arange(x.size).reshape(x.shape) % 97 == 0, x * 50, x),
    ]
    for k in range(4 * len(kinds)):
        found = []
        for b in range(1 + k % 4):
            size = shape or (int(rng.integers(1, 700)),)
            x = rng.standard_normal(size).astype(np.float32) * np.float32(10.0 ** rng.integers(-4, 3))
            mixed = kinds[k % len(kinds)] if b % 2 == 0 else kinds[int(rng.integers(len(kinds)))]
            found.append(np.asarray(mixed(x), np.float32))
        yield found


def knife_edges() -> Iterator[list[Array]]:
    """Ranges whose zero point is a tie or lies next to one, and scales at the smallest allowed."""
    for k in range(0, 256, 5):
        low = -(k + 0.5) * np.float32(2.0**-3)
        high = low + np.float32(255 * 2.0**-3)
        for end in (np.nextafter(low, np.float32(-99)), low, np.nextafter(low, np.float32(99))):
            yield [np.asarray([end, high], np.float32)]
    eps = np.float32(2.0**-23)
    for size in (255 * eps, np.nextafter(255 * eps, np.float32(0)), np.nextafter(255 * eps, np.float32(1)), eps):
        yield [np.asarray([-size / 3, size * 2 / 3], np.float32)]


def agree(observer: Observer, reference: Any, tensors: list[Array]) -> None:
    """Both see the tensors; then their scales and zero points are the same."""
    state = init(observer)
    for x in tensors:
        state = observe(observer, state, x)
        reference(torch.from_numpy(x))
    chosen = observed_qparams(observer, state)
    scale, zero = (v.numpy().reshape(chosen.scale.shape) for v in reference.calculate_qparams())
    assert_same_bits(chosen.scale, scale, call=f"{observer}", inputs=None)
    if chosen.zero_point is None:
        assert not zero.any()
    else:
        assert_same_bits(chosen.zero_point, zero.astype(np.int32), call=f"{observer}, scale {scale}")


@pytest.mark.parametrize("name", ["MinMaxObserver", "MovingAverageMinMaxObserver"])
@pytest.mark.parametrize("arguments", TENSORS, ids=str)
def test_tensors(name: str, arguments: dict[str, Any]) -> None:
    observer = getattr(ours, name)(**arguments).observer
    for tensors in (*batches(1), *knife_edges()):
        agree(observer, getattr(theirs, name)(**arguments), tensors)


@pytest.mark.parametrize("name", ["PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver"])
@pytest.mark.parametrize("arguments", CHANNELS, ids=str)
def test_channels(name: str, arguments: dict[str, Any]) -> None:
    observer = getattr(ours, name)(**arguments).observer
    for tensors in batches(2, (3, 5, 4)):
        agree(observer, getattr(theirs, name)(**arguments), tensors)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"reduce_range": True}, {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}, {"bins": 64}],
    ids=str,
)
def test_histograms(arguments: dict[str, Any]) -> None:
    """By torch_frontend: the specification takes exact fractions, and theirs a loop over numbers, for their time."""
    for k, tensors in enumerate(batches(3)):
        if k % 8 == (3 if arguments else 1):
            watching, reference = ours.HistogramObserver(**arguments), theirs.HistogramObserver(**arguments)
            for x in map(torch.from_numpy, tensors):
                watching(x)
                reference(x)
            for own, other in zip(watching.calculate_qparams(), reference.calculate_qparams(), strict=True):
                assert_same_bits(own.float(), other.float().reshape(own.shape), call=f"{arguments}, batches {k}")


def test_histograms_count_as_theirs() -> None:
    """After each of many batches, over ranges that grow: every bin."""
    observer, reference = ours.HistogramObserver().observer, theirs.HistogramObserver()
    state, rng = init(observer), np.random.default_rng(4)
    for k in range(4):
        x = rng.standard_normal(500).astype(np.float32) * np.float32(1.3**k)
        state = observe(observer, state, x)
        reference(torch.from_numpy(x))
        assert_same_bits(state.histogram, reference.histogram, call=f"batch {k}")
        assert_same_bits(state.low, reference.min_val)


@pytest.mark.parametrize("room", [core_histograms, torch_histograms, jax_histograms])
def test_ends_of_bins_are_theirs(room: Any) -> None:
    """With fused multiply-adds, as ``torch.linspace`` is compiled for processors that have them."""
    rng = np.random.default_rng(7)
    for n in (2, 5, 257, 2049):
        for _ in range(3):
            low, high = np.sort(rng.standard_normal(2)).astype(np.float32)
            ends = (torch.tensor(low), torch.tensor(high)) if room is torch_histograms else (low, high)
            assert_same_bits(room.spaced(*ends, n), torch.linspace(float(low), float(high), n))


def test_averaging_constant() -> None:
    options = {"averaging_constant": 0.3}
    observer = ours.MovingAverageMinMaxObserver(**options).observer
    for tensors in batches(5):
        agree(observer, theirs.MovingAverageMinMaxObserver(**options), tensors)


def test_fixed_parameters() -> None:
    for name in ("default_fixed_qparams_range_0to1_observer", "default_fixed_qparams_range_neg1to1_observer"):
        scale, zero = (float(v) for v in getattr(theirs, name)().calculate_qparams())
        observer = ours.FixedQParamsObserver(scale=scale, zero_point=int(zero)).observer
        chosen = observed_qparams(observer, init(observer))
        assert chosen[:2] == QParams(np.float32(scale), np.int32(zero))[:2]


def test_default_qconfigs() -> None:
    """The activation and the weight of each, against what the library makes of the qconfig of that name."""
    pairs: list[tuple[QConfig, Any]] = [
        (default_qconfig, theirs.qconfig.default_qconfig),
        (default_per_channel_qconfig, theirs.qconfig.default_per_channel_qconfig),
        (default_qat_qconfig, theirs.qconfig.default_qat_qconfig),
    ]
    for own, reference in pairs:
        for tensors in batches(6, (4, 9)):
            for role in ("activation", "weight"):
                made = getattr(reference, role)()
                agree(getattr(own, role), getattr(made, "activation_post_process", made), tensors)


# --- known differences: what they do, why ours differs; each must still be so -------------------------------------


def torch_gives(x: list[float], **arguments: Any) -> tuple[float, int]:
    """Their scale and zero point after one tensor."""
    reference = theirs.MinMaxObserver(**arguments)
    if x:
        reference(torch.tensor(x))
    scale, zero = reference.calculate_qparams()
    return float(scale), int(zero)


def test_nan_and_infinities_make_scales_of_theirs_that_are_none() -> None:
    assert np.isnan(torch_gives([float("nan"), 1.0])[0])
    assert np.isinf(torch_gives([float("inf"), 1.0])[0])
    observer = ours.MinMaxObserver().observer
    before = observe(observer, init(observer), np.float32([-1, 2]))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="`x` must be finite to be observed"):
            observe(observer, before, np.float32([bad, 5]))
    assert observed_qparams(observer, before).scale == np.float32(3) / np.float32(255)


def test_an_observer_that_saw_nothing_gives_theirs_one_and_zero() -> None:
    assert torch_gives([]) == (1.0, 0)
    for made in (ours.MinMaxObserver(), ours.PerChannelMinMaxObserver(), ours.HistogramObserver()):
        with pytest.raises(RuntimeError, match="calibration never run"):
            observed_qparams(made.observer, init(made.observer))


def test_a_reduced_symmetric_range_has_a_zero_point_beyond_their_codes() -> None:
    """But for `MinMaxObserver`, which refuses it."""
    arguments = {"qscheme": torch.per_tensor_symmetric, "reduce_range": True}
    reference = theirs.HistogramObserver(**arguments)
    reference(torch.tensor([-1.0, 1.0]))
    assert reference.calculate_qparams()[1] == 128 > reference.quant_max
    observer = ours.MinMaxObserver(**arguments).observer
    assert observed_qparams(observer, observe(observer, init(observer), np.float32([-1, 1]))).zero_point == 64


def test_histograms_ignore_infinities_and_fail_at_nan() -> None:
    reference = theirs.HistogramObserver()
    reference(torch.tensor([1.0, float("inf"), -2.0]))
    assert reference.max_val == 1
    observer = ours.HistogramObserver().observer
    with pytest.raises(ValueError, match="`x` must be finite"):
        observe(observer, init(observer), np.float32([1, np.inf, -2]))


def test_ranges_of_no_width_are_refused() -> None:
    assert torch_gives([-1.0, 1.0], dtype=torch.qint8, quant_min=-100, quant_max=101)[0] > 0
    with pytest.raises(ValueError, match="`quant_min`, `quant_max` must be the ends of signed integers"):
        ours.MinMaxObserver(dtype=torch.qint8, quant_min=-100, quant_max=101)
