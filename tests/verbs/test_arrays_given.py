"""What users give in the place of an array: taken as it is meant, or refused by name; nothing silently lost."""

import array
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, accumulator, catalog, learned_rounding, learned_sigma, straight_through
from samebits.jax_backend import accumulator as jax_accumulator
from samebits.jax_backend import learned_rounding as jax_learned_rounding
from samebits.jax_backend import learned_sigma as jax_learned_sigma
from samebits.jax_backend import straight_through as jax_straight_through
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend import accumulator as torch_accumulator
from samebits.torch_frontend import learned_rounding as torch_learned_rounding
from samebits.torch_frontend import learned_sigma as torch_learned_sigma
from samebits.torch_frontend import straight_through as torch_straight_through

Array = NDArray[Any]
Q, AFFINE, CHANNELS = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
LEARNED, SIGMA = CHANNELS.replace(rounding="learned"), Q.replace(statistic="mean_sigma")
X, S, Z = np.array([[0.1, -0.26, 3.0]], np.float32), np.array(0.1, np.float32), np.array(3, np.int32)
ROW = np.array([[0.1]], np.float32)

# every array argument of every public function: name of the argument, and the call; `m` is the room's modules
CALLS: dict[str, tuple[str, Array, Callable[[Any, Any, Any], Any]]] = {
    "choose_qparams": ("x", X, lambda m, v, to: m[0].choose_qparams(Q, v)),
    "quantize": ("x", X, lambda m, v, to: m[0].quantize(Q, v, QParams(to(S)))),
    "fake_quantize": ("x", X, lambda m, v, to: m[0].fake_quantize(Q, v)),
    "scale": ("qparams.scale", S, lambda m, v, to: m[0].fake_quantize(Q, to(X), QParams(v))),
    "zero point": ("qparams.zero_point", Z, lambda m, v, to: m[0].quantize(AFFINE, to(X), QParams(to(S), v))),
    "learned rounding": (
        "qparams.rounding",
        X,
        lambda m, v, to: m[0].fake_quantize(LEARNED, to(X), QParams(to(ROW), rounding=v)),
    ),
    "codes": ("codes", X.astype(np.int8), lambda m, v, to: m[0].dequantize(Q, v, QParams(to(S)))),
    "scale of codes": ("qparams.scale", S, lambda m, v, to: m[0].dequantize(Q, to(X.astype(np.int8)), QParams(v))),
    "vjp": ("x", X, lambda m, v, to: m[0].fake_quantize_vjp(Q, v, QParams(to(S)), to(X))),
    "cotangent": ("g", X, lambda m, v, to: m[0].fake_quantize_vjp(Q, to(X), QParams(to(S)), v)),
    "linear x": ("x", X, lambda m, v, to: m[0].linear(Q, v, QParams(to(S)), Q, to(X), QParams(to(S)))),
    "linear w": ("w", X, lambda m, v, to: m[0].linear(Q, to(X), QParams(to(S)), Q, v, QParams(to(S)))),
    "bias": ("bias", X[0, :1], lambda m, v, to: m[0].linear(Q, to(X), QParams(to(S)), Q, to(X), QParams(to(S)), v)),
    "scale of w": ("qparams.scale", S, lambda m, v, to: m[0].linear(Q, to(X), QParams(to(S)), Q, to(X), QParams(v))),
    "round_ste": ("x", X, lambda m, v, to: m[1].round_ste(v)),
    "tensor_clamp": ("x", X, lambda m, v, to: m[1].tensor_clamp(v, to(S), to(S))),
    "lower bound": ("lo", X, lambda m, v, to: m[1].tensor_clamp(to(X), v, 1.0)),
    "upper bound": ("hi", X, lambda m, v, to: m[1].tensor_clamp_ste(to(X), -1.0, v)),
    "clamp's cotangent": ("g", X, lambda m, v, to: m[1].tensor_clamp_vjp(to(X), -1.0, 1.0, v)),
    "sign": ("x", X, lambda m, v, to: m[1].binary_sign_ste(v)),
    "sigma": ("sigma", S, lambda m, v, to: m[2].scale_at_sigma(SIGMA, to(X), v)),
    "sigma's x": ("x", X, lambda m, v, to: m[2].scale_at_sigma(SIGMA, v, to(S))),
    "sigma's cotangent": ("d_scale", S, lambda m, v, to: m[2].sigma_gradient(SIGMA, to(X), to(S), v)),
    "weight": ("w", X, lambda m, v, to: m[3].accumulator_scale(v, to(ROW), 10.0)),
    "weight's scale": ("scale", ROW, lambda m, v, to: m[3].accumulator_scale(to(X), v, 10.0)),
    "norm": ("g", ROW, lambda m, v, to: m[3].weight_norm_scale(to(X), to(ROW), v)),
    "initial rounding": ("x", X, lambda m, v, to: m[4].initial_rounding(LEARNED, v, QParams(to(ROW)))),
}
MODULES: dict[str, tuple[tuple[Any, ...], Callable[[Array], Any]]] = {
    "core": ((core, straight_through, learned_sigma, accumulator, learned_rounding), lambda a: a),
    "torch_frontend": (
        (torch_frontend, torch_straight_through, torch_learned_sigma, torch_accumulator, torch_learned_rounding),
        to_torch,
    ),
    "jax_backend": (
        (jax_backend, jax_straight_through, jax_learned_sigma, jax_accumulator, jax_learned_rounding),
        jnp.asarray,
    ),
}


@pytest.mark.parametrize("room", MODULES)
@pytest.mark.parametrize("call", CALLS)
def test_masked_arrays_are_refused_by_name(room: str, call: str) -> None:
    """Their mask would be lost. torch takes no array of NumPy's at all, but numbers for bounds."""
    (name, value, function), (modules, to) = CALLS[call], MODULES[room]
    function(modules, to(value), to)  # as it is meant
    masked = np.ma.array(value, mask=np.ones_like(value, bool))
    kind = "a torch.Tensor, got" if room == "torch_frontend" and name not in ("lo", "hi") else ""
    kind = kind or "masked array, whose mask would be lost"
    with pytest.raises(TypeError, match=rf"^`{name}` must .*{kind}"):
        function(modules, masked, to)


@pytest.mark.parametrize("room", ["core", "jax_backend"])
def test_other_byte_orders_and_memory_are_read_as_they_are_meant(room: str) -> None:
    (module, *_), _ = MODULES[room]
    want = core.fake_quantize(Q, X, QParams(S))
    read_only = X.copy()
    read_only.flags.writeable = False
    for x in (
        X.astype(">f4"),
        np.asmatrix(X),
        memoryview(X),
        read_only,
        np.asfortranarray(X),
        X[::-1, ::-1][::-1, ::-1],
    ):
        got = module.fake_quantize(Q, x, QParams(S.astype(">f4")))
        assert_same_bits(want, np.asarray(got), call=type(x).__name__)
    d = core.fake_quantize_vjp(AFFINE, X, QParams(S, Z), X)
    swapped = module.fake_quantize_vjp(
        AFFINE, X.astype(">f4"), QParams(S.astype(">f4"), Z.astype(">i2")), X.astype(">f4")
    )
    assert_same_bits((d.x, d.scale, d.zero_point), tuple(map(np.asarray, swapped[:3])))
    codes = core.dequantize(Q, X.astype(np.int8), QParams(S), ">f4")
    assert codes.dtype.isnative
    half = X.astype(np.float16)
    assert_same_bits(core.fake_quantize(Q, half), np.asarray(module.fake_quantize(Q, half.astype(">f2"))))
    assert_same_bits(want[0], np.asarray(module.fake_quantize(Q, array.array("f", X[0].tolist()), QParams(S))))
    assert read_only.tolist() == X.tolist()


@pytest.mark.parametrize("room", ["core", "jax_backend"])
@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (X.astype(object), "object"),
        (np.zeros(2, [("a", "f4")]), "void32"),
        (np.array(["a"]), "str32"),
        (X.astype("m8[s]"), "timedelta64[s]"),
        (X.astype(np.longdouble), "float128"),
        (X.astype(ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
        (None, "object"),
    ],
    ids=str,
)
def test_dtypes_that_are_no_numbers_of_ours_are_refused_by_name(room: str, x: Any, dtype: str) -> None:
    (module, *_), _ = MODULES[room]
    with pytest.raises(TypeError) as caught:
        module.fake_quantize(Q, x)
    assert str(caught.value) == f"`x` must have dtype float32, bfloat16, float16, float64; got {dtype}"
    with pytest.raises(TypeError, match=re.escape(f"must have dtype float32, bfloat16, float16; got {dtype}")):
        module.fake_quantize(Q, X, QParams(x))


@pytest.mark.parametrize("room", ["core", "jax_backend"])
def test_tensors_of_torch_are_read_where_numpy_reads_them(room: str) -> None:
    (module, *_), _ = MODULES[room]
    tensor = torch.from_numpy(X)
    assert_same_bits(core.fake_quantize(Q, X), np.asarray(module.fake_quantize(Q, tensor)))
    unreadable = {
        "requires grad": tensor.clone().requires_grad_(),
        "ScalarType BFloat16": tensor.bfloat16(),
        "Sparse": tensor.to_sparse(),
        "meta": tensor.to("meta"),
        "inhomogeneous": [[1.0], [1.0, 2.0]],
    }
    for reason, x in unreadable.items():
        with pytest.raises(TypeError, match=rf"^`x` must be what NumPy reads as an array, got .*{reason}"):
            module.fake_quantize(Q, x)


def test_numbers_and_lists_are_float64_as_numpy_reads_them() -> None:
    """So a scale of theirs is one, too; JAX has none, unless it is told so."""
    assert core.fake_quantize(Q, [0.1, 0.26], QParams(0.1)).tolist() == [0.1, 0.30000000000000004]
    for x, s in ((X, 0.1), ([0.1], S)):
        with pytest.raises(TypeError, match=r"`qparams.scale` must have dtype float"):
            core.fake_quantize(Q, x, QParams(s))
        with pytest.raises(TypeError, match="must not be float64 unless jax_enable_x64 is set"):
            jax_backend.fake_quantize(Q, x, QParams(s))
    with jax.enable_x64(True):
        assert jax_backend.fake_quantize(Q, [0.1, 0.26], QParams(0.1)).tolist() == [0.1, 0.30000000000000004]


def test_weak_types_and_keys_in_jax() -> None:
    weak = jnp.asarray(0.1) * 1.0
    assert_same_bits(core.fake_quantize(Q, X, QParams(S)), np.asarray(jax_backend.fake_quantize(Q, X, QParams(weak))))
    in_jit = jax.jit(lambda s: jax_backend.fake_quantize(Q, X, QParams(s)))
    assert_same_bits(core.fake_quantize(Q, X, QParams(S)), np.asarray(in_jit(0.1)))
    assert_same_bits(core.fake_quantize(Q, np.float32(0.26)), np.asarray(jax_backend.fake_quantize(Q, weak * 2.6)))
    with pytest.raises(TypeError, match="`x` must have dtype float32, bfloat16, float16, float64; got key<fry>"):
        jax_backend.fake_quantize(Q, jax.random.key(0))
    with pytest.raises(TypeError, match="`x` must be what NumPy reads as an array, got PRNGKeyArray"):
        core.fake_quantize(Q, jax.random.key(0))


def test_tensors_without_strides_are_refused_by_torch_frontend() -> None:
    x = torch.from_numpy(X)
    bad = {
        "torch.sparse_coo": x.to_sparse(),
        "torch.sparse_csr": x.to_sparse_csr(),
        "nested": torch.nested.nested_tensor([x[0]]),
        "torch._mkldnn": x.to_mkldnn(),
    }
    for layout, tensor in bad.items():
        for given in ((tensor, QParams(torch.tensor(0.1))), (x, QParams(tensor))):
            with pytest.raises(TypeError, match=rf"must be a dense \(strided\) torch.Tensor, got .* {layout}"):
                torch_frontend.fake_quantize(Q, *given)
    quantized = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="`x` must have dtype float32, bfloat16, float16, float64; got qint8"):
        torch_frontend.fake_quantize(Q, quantized)
    for other in (X, jnp.asarray(X), X.tolist(), 0.5, None):
        with pytest.raises(TypeError, match=f"^`x` must be a torch.Tensor, got {type(other).__name__}"):
            torch_frontend.fake_quantize(Q, other)


def test_tensors_without_values_have_a_shape() -> None:
    y = torch_frontend.fake_quantize(Q, torch.empty(2, 3, device="meta"), QParams(torch.tensor(0.1, device="meta")))
    assert (y.device.type, y.shape, y.dtype) == ("meta", (2, 3), torch.float32)


def test_a_float64_parameter_of_the_other_width_is_refused() -> None:
    for x, s in ((X, S.astype(np.float64)), (X.astype(np.float64), S), (X.astype(np.float64), S.astype(np.float16))):
        with pytest.raises(TypeError, match="scale` must have dtype"):
            core.fake_quantize(Q, x, QParams(s))
        with pytest.raises(TypeError, match="scale` must have dtype"):
            torch_frontend.fake_quantize(Q, to_torch(x), QParams(to_torch(s)))
        with jax.enable_x64(True), pytest.raises(TypeError, match="scale` must have dtype"):
            jax_backend.fake_quantize(Q, x, QParams(s))


def test_what_numpy_gives_back_is_an_array_of_its_own() -> None:
    values = {"matrix": np.asmatrix(X), "number": np.float32(0.26), "0-d": np.array(0.26, np.float32)}
    for name, x in values.items():
        y = to_numpy(core.fake_quantize(Q, x, QParams(S)))
        assert type(y) is np.ndarray, name
        assert y.dtype == np.float32, name
