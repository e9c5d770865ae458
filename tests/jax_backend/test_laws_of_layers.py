"""The laws of quantizers, on what a flax layer holds: its scale and zero point are parameters of the module."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from samebits.core import Quantizer, catalog
from samebits.core.descriptions import QParams, QuantizerGradients
from samebits.core.scaling import restrict_scale
from samebits.jax_backend import dequantize, quantize
from samebits.jax_backend.nn import QuantIdentity
from samebits.jax_backend.tensor_quantizer import TensorQuantizer
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.execution import Implementation

from ..law_cases import INTEGERS, KINDS_OF_ELEMENTS, VARIANTS, cases_of

Array = NDArray[Any]
FEW = ("int8_per_tensor", "uint4_affine_per_group32", "float8_e4m3fn_per_channel", "mxfp8_e5m2", "toward_negative")
NAMES = [name for name in (*INTEGERS, *KINDS_OF_ELEMENTS, *VARIANTS) if name != "stochastic"]  # draws by its own steps
MODES = [
    *(pytest.param(mode, name, id=f"{mode}-{name}") for name in FEW for mode in ("eager", "jit")),
    *(pytest.param("eager", name, id=name, marks=pytest.mark.thorough) for name in NAMES if name not in FEW),
]


def bound(q: Quantizer, x: Array, qparams: QParams | None) -> nnx.Module:
    """A layer with this quantizer, in evaluation; parameters that are given are its parameters."""
    if qparams is None:
        return QuantIdentity(TensorQuantizer(q, x.shape, use_running_average=True))
    learned = q.replace(source="learned")
    return QuantIdentity(TensorQuantizer(learned, x.shape, qparams=qparams, use_running_average=True))


@cache
def compiled(jit: bool) -> tuple[Any, Any]:
    """A call of a layer, and its derivatives towards its parameters and its input."""

    def call(layer: Any, x: Any) -> Any:
        return layer(x)

    def pulled_back(layer: Any, x: Any, g: Any) -> Any:
        graph, learned, rest = nnx.split(layer, nnx.Param, ...)
        return jax.vjp(lambda params, x: nnx.merge(graph, params, rest)(x), learned, x)[1](g)

    return (nnx.jit(call), nnx.jit(pulled_back)) if jit else (call, pulled_back)


def of_layers(jit: bool) -> Implementation:
    """A layer as what the laws are applied to; its codes are those of the parameters that it uses."""
    call, pulled_back = compiled(jit)

    def used(q: Quantizer, x: Array, qparams: QParams) -> QParams:
        return bound(q, x, qparams).act_quant.qparams(np.zeros(x.shape, np.float32))

    def gradients(q: Quantizer, x: Array, qparams: QParams, g: Array) -> QuantizerGradients:
        layer = bound(q, x, qparams)
        params, dx = pulled_back(layer, x, g)
        found = params["act_quant"]
        zero = np.asarray(found["zero_point"][...]) if q.affine else None
        return QuantizerGradients(np.asarray(dx), np.asarray(found["scale"][...]), zero)

    return Implementation(
        "flax jit" if jit else "flax",
        lambda q, x: to_numpy(bound(q, x, None).act_quant.qparams(x)),
        lambda q, x, qparams: np.asarray(quantize(q, x, used(q, x, qparams))),
        lambda q, codes, qparams, dtype=None: np.asarray(dequantize(q, codes, used(q, codes, qparams), dtype=dtype)),
        lambda q, x, qparams=None: np.asarray(call(bound(q, x, qparams), x)),
        gradients,
    )


def to_numpy(qparams: Any) -> QParams:
    return QParams(np.asarray(qparams.scale), None if qparams.zero_point is None else np.asarray(qparams.zero_point))


@pytest.mark.parametrize(("mode", "name"), MODES)
def test_laws(mode: str, name: str) -> None:
    q = {**catalog, **VARIANTS}[name]
    for x, qparams, g in cases_of(q, "float32"):
        own = qparams._replace(scale=restrict_scale(q, qparams.scale))
        for law in LAWS:
            if applies(law, q):
                LAWS[law](of_layers(mode == "jit"), q, x, own, g)
