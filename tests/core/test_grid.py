"""`core.grid` and the five functions over binary, ternary, floating-point and codebook formats.

Oracles: the definitions, one element at a time and exact; ml_dtypes; Brevitas; torchao.
"""

import math
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.bit_width.float import ComputeMaxMantissa
from brevitas.core.function_wrapper import Identity, TensorClamp
from brevitas.core.function_wrapper.clamp import FloatClamp
from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, TernaryQuant
from brevitas.core.quant.float import FloatQuant
from brevitas.core.scaling import ConstScaling
from brevitas.core.utils import StatelessBuffer
from numpy.typing import NDArray
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

from samebits.core import (
    BinaryFormat,
    CodebookFormat,
    FloatFormat,
    IntegerFormat,
    PerTensor,
    QParams,
    Quantizer,
    TernaryFormat,
    catalog,
    choose_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.core.formats import NF4
from samebits.core.grid import decode, encode, limit_to_grid, round_to_grid
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DTYPES, Machine, round_fraction, round_number, specials

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
Array = NDArray[Any]
DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
NEW = {name: q for name, q in catalog.items() if not isinstance(q.format, IntegerFormat)}
CHOOSING = {
    "binary": BinaryFormat(),
    "ternary": TernaryFormat(),
    "ternary 0.3": TernaryFormat(0.3),
    "ternary 0": TernaryFormat(0.0),
    "nf4": NF4,
    "positive": CodebookFormat((0.5, 1.0, 4.0)),
}
ML = {
    "float8_e4m3fn_per_tensor": ml_dtypes.float8_e4m3fn,
    "float8_e5m2_per_tensor": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz_per_tensor": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz_per_tensor": ml_dtypes.float8_e5m2fnuz,
    "float8_e3m4_per_tensor": ml_dtypes.float8_e3m4,
    "float6_e3m2_per_tensor": ml_dtypes.float6_e3m2fn,
    "float6_e2m3_per_tensor": ml_dtypes.float6_e2m3fn,
    "float4_e2m1_per_tensor": ml_dtypes.float4_e2m1fn,
}


def chosen(format: Any, u: float, dtype: str) -> tuple[float, int]:
    """Number and code for a quotient, from the definitions in the docstrings of the formats."""
    match format:
        case BinaryFormat():
            return (1.0, 1) if u >= 0 else (-1.0, -1)
        case TernaryFormat():
            threshold = round_number(format.threshold, "float64" if dtype == "float64" else "float32")
            sign = math.copysign(1.0, u) if abs(u) > threshold else 0.0
            return sign, int(sign)
        case _:
            middles = [
                round_fraction((Fraction(a) + Fraction(b)) / 2, "float32")
                for a, b in zip(format.values, format.values[1:], strict=False)
            ]
            code = sum(u > middle for middle in middles)
            return format.values[code], code


def boundaries(format: Any) -> list[float]:
    if isinstance(format, BinaryFormat):
        return [-1.0, 0.0, 1.0]
    if isinstance(format, TernaryFormat):
        return [-1.0, -format.threshold, 0.0, format.threshold, 1.0]
    return [*format.values, *((a + b) / 2 for a, b in zip(format.values, format.values[1:], strict=False))]


@DTYPE
@pytest.mark.parametrize("format", CHOOSING.values(), ids=CHOOSING)
def test_choice_by_its_definition(format: Any, dtype: np.dtype[Any]) -> None:
    q, wide = Quantizer(format=format), np.dtype(np.float64 if dtype == np.float64 else np.float32)
    for scale in (np.array(s, wide) for s in (1.0, 0.1, 2.0**-126, 3e38)):
        places = (np.array(boundaries(format)) * scale.astype(np.float64)).astype(dtype)
        x = np.concatenate([neighbours(places, 3), specials(dtype)])
        x, qparams = x[~np.isnan(x)], QParams(scale)
        machine = Machine(q.arithmetic, dtype.name)
        pairs = [chosen(format, machine.true_divide(v, float(scale)), dtype.name) for v in x.tolist()]
        codes = quantize(q, x, qparams)
        assert_same_bits(np.array([code for _, code in pairs], format.storage), codes, inputs=x)
        values = [round_number(machine.multiply(number, float(scale)), dtype.name) for number, _ in pairs]
        assert_same_bits(np.array(values).astype(dtype), fake_quantize(q, x, qparams), inputs=x)
        assert_same_bits(np.array(values).astype(dtype), dequantize(q, codes, qparams, dtype), inputs=x)


@DTYPE
@pytest.mark.parametrize("name", ML)
def test_oracle_ml_dtypes_times_the_scale(name: str, dtype: np.dtype[Any]) -> None:
    q = NEW[name]
    numbers = np.unique(np.arange(2**q.format.bits, dtype=np.uint8).view(ML[name]).astype(np.float64))
    numbers = numbers[np.isfinite(numbers)]
    places = np.concatenate([numbers, numbers[:-1] + np.diff(numbers) / 2, [1.04 * q.format.hi, -2 * q.format.hi]])
    for scale in (1.0, 0.1, 2.0**-126, 3e37):
        s = np.array(scale, np.float64 if dtype == np.float64 else np.float32)
        x = np.concatenate([neighbours((places * float(s)).astype(dtype), 2), specials(dtype)])
        quotient = x.astype(s.dtype) / s
        if dtype == np.float64:  # rounded to odd on the way: ml_dtypes goes through float32 and would round twice
            cut = (quotient.view(np.uint64) & ~np.uint64(2**29 - 1)).view(np.float64)
            quotient = np.where(quotient == cut, cut, (cut.view(np.uint64) | np.uint64(2**29)).view(np.float64))
            quotient = np.clip(quotient, -1e30, 1e30)
        limited = np.clip(np.where(np.isnan(quotient), 0, quotient), q.format.lo, q.format.hi).astype(np.float32)
        want = limited.astype(ML[name])
        got = fake_quantize(q, x, QParams(s))
        real = np.where(np.isnan(x), np.array(np.nan, s.dtype), want.astype(s.dtype)) * s
        assert_same_bits(real.astype(dtype), got, inputs=x)
        number = ~np.isnan(x)
        codes = quantize(q, x[number], QParams(s))
        assert_same_bits(want[number].view(np.uint8), codes, inputs=x[number])
        assert_same_bits(got[number], dequantize(q, codes, QParams(s), dtype), inputs=x[number])


def test_special_values_by_hand() -> None:
    x = np.array([np.inf, -np.inf, 0.0, -0.0, -1e-30], np.float32)
    two = QParams(np.float32(2))
    expected = {
        "binary_per_tensor": ([2, -2, 2, 2, -2], [1, -1, 1, 1, -1]),
        "ternary_per_tensor": ([2, -2, 0.0, 0.0, 0.0], [1, -1, 0, 0, 0]),
        "float8_e4m3fn_per_tensor": ([896, -896, 0.0, -0.0, -0.0], [0x7E, 0xFE, 0, 0x80, 0x80]),
        "float8_e5m2_per_tensor": ([114688, -114688, 0.0, -0.0, -0.0], [0x7B, 0xFB, 0, 0x80, 0x80]),
        "float8_e4m3fnuz_per_tensor": ([480, -480, 0.0, 0.0, 0.0], [0x7F, 0xFF, 0, 0, 0]),
        "float4_e2m1_per_tensor": ([12, -12, 0.0, -0.0, -0.0], [7, 15, 0, 8, 8]),
        "nf4_per_group64": ([2, -2, 0.0, 0.0, 0.0], [15, 0, 7, 7, 7]),
    }
    for name, (values, codes) in expected.items():
        q = NEW[name].replace(granularity=PerTensor())
        assert_same_bits(np.array(values, np.float32), fake_quantize(q, x, two), call=name)
        assert_same_bits(np.array(codes, q.format.storage), quantize(q, x, two), call=name)
    loose = {"float8_e5m2_per_tensor": np.inf, "float8_e4m3fn_per_tensor": np.nan, "float4_e2m1_per_tensor": 12}
    for name, instead in loose.items():
        got = fake_quantize(NEW[name].replace(saturate=False), x[:2], two)
        assert_same_bits(np.array([instead, -instead], np.float32), got)


@pytest.mark.parametrize("name", NEW)
def test_nan_is_propagated_and_encoded_where_there_is_a_code(name: str) -> None:
    q, one = NEW[name].replace(granularity=PerTensor()), QParams(np.float32(1))
    x = np.array([np.nan, -np.nan, 1], np.float32)
    assert np.isnan(fake_quantize(q, x, one)[:2]).all()
    if q.format.has_nan:
        codes = quantize(q, x, one)
        assert codes[0] == codes[1]
        assert np.isnan(dequantize(q, codes, one)[:2]).all()
    else:
        with pytest.raises(ValueError, match="`x` must not hold NaN for quantize"):
            quantize(q, x, one)


@pytest.mark.parametrize(
    "name", [n for n, q in NEW.items() if (q.scale.restriction, q.scale.statistic) == ("float", "extremes")]
)
def test_parameters_bring_the_largest_element_to_the_largest_number(name: str) -> None:
    q = NEW[name].replace(granularity=PerTensor())
    x = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    qparams = choose_qparams(q, x)
    assert qparams.zero_point is None
    assert_same_bits(np.abs(x).max() / np.float32(q.format.hi), np.asarray(qparams.scale)[()])
    codes = quantize(q, x, qparams)
    assert np.abs(decode(q, codes, np.dtype(np.float32))).max() == q.format.hi
    assert_same_bits(fake_quantize(q, x), dequantize(q, codes, qparams))


@pytest.mark.parametrize("name", NEW)
def test_grid_verbs_round_trip(name: str) -> None:
    q = NEW[name]
    codes = {"binary": np.array([-1, 1]), "ternary 0.5": np.arange(-1, 2)}.get(
        str(q.format), np.arange(2**q.format.bits)
    )
    codes = codes.astype(q.format.storage)
    numbers = decode(q, codes, np.dtype(np.float32))
    finite = np.isfinite(numbers)
    assert finite.sum() >= 2
    assert_same_bits(codes[finite], encode(q, numbers[finite]))
    nearest = limit_to_grid(q, round_to_grid(q, numbers[finite]))
    assert_same_bits(numbers[finite], nearest)  # numbers of the format stay what they are


def brevitas_float(format: FloatFormat, scale: float) -> FloatQuant:
    infinity = ("1" * format.exponent_bits,) if format.specials == "ieee" else None
    return FloatQuant(
        True,
        BitWidthConst(format.exponent_bits),
        BitWidthConst(format.mantissa_bits),
        StatelessBuffer(torch.tensor(float(format.offset))),
        FloatClamp(TensorClamp(), True, infinity, ("1",) if format.has_nan else None, format.hi, format.saturate),
        Identity(),
        ComputeMaxMantissa(),
        ConstScaling(scale),
    )


@pytest.mark.parametrize(
    ("name", "saturate"), [(n, s) for n in ML for s in (True, False) if s or NEW[n].format.has_nan]
)
def test_oracle_brevitas_float_quant(name: str, saturate: bool) -> None:
    """Equal on finite input, knife edges included; infinities become NaN there (inf / inf), ours saturate or stay."""
    q = NEW[name].replace(saturate=saturate)
    numbers = np.arange(2**q.format.bits, dtype=np.uint8).view(ML[name]).astype(np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    places = np.concatenate([numbers, numbers[:-1] + np.diff(numbers) / 2, [1.01 * q.format.hi, -9 * q.format.hi]])
    for scale in (1.0, 0.1, 3e-5):
        s = np.float32(scale)
        x = neighbours((places * float(s)).astype(np.float32), 2)
        with torch.no_grad():
            theirs = brevitas_float(q.format, float(s))(torch.from_numpy(x))[0].numpy()
        ours = fake_quantize(q, x, QParams(s))
        assert_same_bits(np.where(theirs == 0, 0, theirs), np.where(ours == 0, 0, ours), inputs=x)
    one = QParams(np.float32(1))
    assert torch.isnan(brevitas_float(q.format, 1.0)(torch.tensor([math.inf, -math.inf]))[0]).all()
    assert not np.isnan(fake_quantize(q, np.array([np.inf], np.float32), one)).all() or not saturate


@pytest.mark.parametrize("scale", [0.5, 0.1, 3.0])
def test_oracle_brevitas_binary_and_ternary(scale: float) -> None:
    """Values of all three, gradients where both are straight-through with a clipping mask.

    Brevitas looks at the sign of x, we at that of x / s, which is zero, and so positive, where the quotient underflows;
    and it compares |x| with the rounded ``threshold * s``, which a threshold of 1/2 does not round.
    """
    s = np.float32(scale)
    x = neighbours(np.array([0.0, 0.5, 1.0, 2.0, -0.5, -1.0, -2.0], np.float32) * s, 4)
    x = np.concatenate([x, np.random.default_rng(0).standard_normal(1000).astype(np.float32)])
    x, one = x[np.abs(x) > 1e-40], QParams(s)
    for entry, peer in (
        ("binary_per_tensor", BinaryQuant(ConstScaling(float(s)))),
        ("binary_per_tensor", ClampedBinaryQuant(ConstScaling(float(s)))),
        ("ternary_per_tensor", TernaryQuant(ConstScaling(float(s)), 0.5)),
    ):
        q, leaf = NEW[entry], torch.from_numpy(x.copy()).requires_grad_()
        theirs = peer(leaf)[0]
        assert_same_bits(theirs.detach().numpy() + np.float32(0), fake_quantize(q, x, one), inputs=x)
        theirs.sum().backward()
        clipped = fake_quantize_vjp(q, x, one, np.ones_like(x)).x
        if isinstance(peer, ClampedBinaryQuant):  # theirs is scaled by s; x / s rounds to 1 just beyond s
            inside = np.abs(x) / s <= 1
            assert_same_bits(np.where(inside, np.float32(1), np.float32(0)), clipped)
            agree = (np.abs(x) <= s) == inside
            assert leaf.grad is not None
            assert_same_bits(leaf.grad.numpy()[agree], clipped[agree] * s)
            assert (~agree).sum() <= 4


def test_oracle_underflowing_quotients_are_positive() -> None:
    x, q = np.array([-1e-45], np.float32), NEW["binary_per_tensor"]
    assert fake_quantize(q, x, QParams(np.float32(4))) == 4
    assert BinaryQuant(ConstScaling(4.0))(torch.from_numpy(x))[0] == -4


def test_nf4_are_the_quantiles_of_its_paper() -> None:
    """arXiv 2305.14314, appendix E: quantiles of the normal distribution, 7 below 0 and 8 above, over the largest."""
    quantile = np.vectorize(NormalDist().inv_cdf)
    below, above = (quantile(np.linspace(0.9677083, 0.5, n + 1)[:-1]) for n in (7, 8))
    quantiles = np.sort(np.concatenate([-below, [0.0], above])) / above[0]
    assert np.abs(quantiles - NF4.values).max() < 2e-7  # the published table was computed in float32


def test_oracle_torchao_nf4() -> None:
    """The nearest entry. Torchao's own table is the same, cut to four digits."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    theirs = NF4Tensor.from_tensor(weight, 64, 64).nf4
    assert np.round(NF4.values, 4).tolist() == np.round(theirs.double().numpy(), 4).tolist()
    table = torch.tensor(NF4.values)
    u = np.random.default_rng(0).uniform(-1, 1, 20000).astype(np.float32)
    codes = NF4Tensor.quantize_tensor_nearest(torch.from_numpy(u), table).numpy()
    q = Quantizer(format=NF4)
    assert_same_bits(codes.astype(np.uint8), quantize(q, u, QParams(np.float32(1))), inputs=u)


@DTYPE
@pytest.mark.parametrize("name", NEW)
def test_gradients_pass_where_the_rounded_quotient_is_in_range(name: str, dtype: np.dtype[Any]) -> None:
    q, wide = NEW[name].replace(granularity=PerTensor()), np.float64 if dtype == np.float64 else np.float32
    hi, s = q.format.hi, np.array(0.1, wide)
    quantum = 2.0 ** (q.format.max_exponent - q.format.mantissa_bits) if isinstance(q.format, FloatFormat) else 0.0
    ends = np.array([end * float(s) for end in (hi, hi + quantum / 2, hi + quantum, hi / 2)])
    x = np.concatenate([neighbours(np.concatenate([ends, -ends]).astype(dtype), 3), specials(dtype)])
    g = np.random.default_rng(0).standard_normal(x.shape).astype(dtype)
    u = x.astype(wide) / s
    # a tie at the upper end goes to hi if that is even, that is, if its last bit is 0
    even = not isinstance(q.format, FloatFormat) or int(encode(q, np.array([hi], np.float32))[0]) % 2 == 0
    inside = np.abs(u) <= hi + quantum / 2 if even else np.abs(u) < hi + quantum / 2
    inside |= np.isnan(u)
    got = fake_quantize_vjp(q, x, QParams(s), g)
    assert_same_bits(np.where(inside, g, np.zeros_like(g)), got.x, inputs=x)
    assert inside.any()
    assert not inside.all()
    assert got.zero_point is None
    everywhere = fake_quantize_vjp(q.replace(gradient="pass_through"), x, QParams(s), g)
    assert_same_bits(g, everywhere.x)
    number = limit_to_grid(q, round_to_grid(q, u))
    one = np.isfinite(x) & np.isfinite(number)  # a number that overflows to infinity or NaN makes such a sum
    terms = (g.astype(wide) * (number - np.where(inside, u, np.zeros_like(u))))[one]
    exact = sum(map(Fraction, terms.tolist()))
    want = round_fraction(exact, np.dtype(wide).name) if exact else 0.0
    assert_same_bits(np.array(want, wide), np.asarray(fake_quantize_vjp(q, x[one], QParams(s), g[one]).scale))
