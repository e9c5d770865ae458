"""Laws of quantizers that are bound through a layer: as its activation, and as its weight, eager and in one program.

Parameters that a law names are put into the state of a quantizer that learns them, under the names of a ``state_dict``;
those that it leaves to the implementation are chosen by the quantizer of the catalog itself, in another layer.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samebits import core
from samebits.core import PerAxis, PerTensor, QParams, Quantizer, QuantizerGradients, catalog
from samebits.core.scales import Restriction
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.laws.judging import only_finite, without_nan
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.proofs.modes.execution import Implementation, implementation
from samebits.torch_frontend.nn import QuantIdentity, QuantLinear, TensorQuantizer

from ..law_cases import INTEGERS, KINDS_OF_ELEMENTS, SHAPE, cases_of

Array = NDArray[Any]
COMPILED = (("activation", "uint8_affine_per_tensor"), ("weight", "int4_per_channel"))
ONES = np.ones(SHAPE, np.float32)
Key = tuple[str, str]
TRIED = {name: catalog[name] for name in (*INTEGERS, *KINDS_OF_ELEMENTS)}
ALL = (  # learned scales of activations are those of the whole tensor or of an axis
    *(("activation", name) for name, q in TRIED.items() if isinstance(q.granularity, PerTensor | PerAxis)),
    *(("weight", name) for name in TRIED if not name.endswith("_per_tensor")),
)


class Bound(nn.Module):
    """A quantizer twice in layers of one kind: with its own scale, and with one that is learned."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__()
        self.kind, q = kind, catalog[name]
        self.own, self.learned = self.layer(q), self.layer(q.replace(source="learned"))

    def layer(self, q: Quantizer) -> Any:
        if self.kind == "activation":
            return QuantIdentity(q)
        return QuantLinear(SHAPE[1], SHAPE[0], bias=False, weight_quant=q)

    def held(self, layer: Any) -> TensorQuantizer:
        found: TensorQuantizer = layer.act_quant if self.kind == "activation" else layer.weight_quant
        return found

    def set(self, x: Array, qparams: QParams | None) -> tuple[Tensor, Tensor]:
        """Numbers for one of the two layers, ones for the other; given parameters as the state of the learned one."""
        known = usual(self.held(self.own).quantizer) if qparams is None else qparams
        state = {n: to_torch(np.array(p, np.float32)) for n, p in known._asdict().items() if p is not None}
        self.held(self.learned).load_state_dict({n: p for n, p in state.items() if n in ("scale", "zero_point")})
        pair = (x, ONES) if qparams is None else (ONES, x)
        if self.kind == "activation":
            return to_torch(np.array(pair[0])), to_torch(np.array(pair[1])).requires_grad_()
        for layer, numbers in zip((self.own, self.learned), pair, strict=True):
            layer.load_state_dict({"weight": to_torch(np.array(numbers))}, strict=False)
        return self.own.weight, self.learned.weight

    def quantized(self, layer: Any, x: Tensor) -> Tensor:
        """What the layer computes with. (A product with the identity would lose NaN and the sign of zeros.)"""
        y: Tensor = layer(x) if self.kind == "activation" else layer.weight_quant(layer.weight)
        return y

    def forward(self, own: Tensor, learned: Tensor) -> tuple[Any, ...]:
        """Values by the scale of its own, that scale, and values by the learned one."""
        chosen = self.held(self.own).qparams(own)
        return self.quantized(self.own, own), tuple(chosen[:2]), self.quantized(self.learned, learned)


@cache
def modules(keys: tuple[Key, ...], compiled: bool) -> tuple[dict[Key, Bound], Callable[..., Any]]:
    """The layers, and one program that runs them all."""
    bound = {key: Bound(*key) for key in keys}

    def program(inputs: list[tuple[Tensor, Tensor]]) -> list[tuple[Any, ...]]:
        return [module(*pair) for module, pair in zip(bound.values(), inputs, strict=True)]

    return bound, torch.compile(program, fullgraph=True, dynamic=False) if compiled else program


def through(key: Key, compiled: bool) -> Implementation:
    """The five functions; codes, which layers do not give, are those of the functions."""
    alone = implementation("torch eager")
    bound, program = modules(COMPILED if compiled else (key,), compiled)

    def run(x: Array, qparams: QParams | None) -> tuple[Tensor, tuple[Any, ...]]:
        others = {k: m.set(ONES, None) for k, m in bound.items() if k != key}
        inputs = {**others, key: bound[key].set(x, qparams)}
        results = program([inputs[k] for k in bound])
        return inputs[key][1], results[list(bound).index(key)]

    def choose_qparams(q: Quantizer, x: Array) -> QParams:
        chosen = run(x, None)[1][1]
        return QParams(*(None if p is None else to_numpy(p) for p in chosen))

    def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
        return alone.quantize(q, without_nan(x) if compiled and not q.format.has_nan else x, qparams)

    def fake_quantize(q: Quantizer, x: Array, qparams: QParams | None = None) -> Array:
        own, _, learned = run(x, qparams)[1]
        return to_numpy(own if qparams is None else learned)

    def fake_quantize_vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> QuantizerGradients:
        leaf, (_, _, learned) = run(x, qparams)
        held = bound[key].held(bound[key].learned)
        leaves = [p for p in (leaf, held.scale, held.zero_point) if p is not None]
        return QuantizerGradients(*(to_numpy(d) for d in torch.autograd.grad(learned, leaves, to_torch(g))))

    return Implementation(
        f"layer, {key[0]}{', compiled' * compiled}",
        choose_qparams,
        quantize,
        alone.dequantize,
        fake_quantize,
        fake_quantize_vjp,
        refuses=not compiled,
    )


def usual(q: Quantizer) -> QParams:
    """Parameters of ones."""
    return core.choose_qparams(q, ONES)


def check_all(key: Key, *, compiled: bool) -> None:
    q = catalog[key[1]]
    for x, given, g in cases_of(q, "float32"):
        restricted = q.scale.restriction is not Restriction.FLOAT  # by the layer, too
        qparams = core.choose_qparams(q, only_finite(x)) if restricted else given
        for name, law in LAWS.items():
            if applies(name, q):
                with np.errstate(all="ignore"):
                    law(through(key, compiled), q, x, qparams, g)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_laws(kind: str, name: str) -> None:
    check_all((kind, name), compiled=False)


@pytest.mark.parametrize(("kind", "name"), COMPILED)
def test_laws_in_one_compiled_program(kind: str, name: str) -> None:
    check_all((kind, name), compiled=True)


@pytest.mark.parametrize("name", ["int4_per_channel", "uint4_affine_per_group32", "nvfp4"])
def test_a_linear_layer_computes_with_the_weight_that_the_laws_judge(name: str) -> None:
    """A product with the identity gives its columns."""
    module = Bound("weight", name)
    for layer in (module.own, module.learned):
        assert torch.equal(layer(torch.eye(SHAPE[1])).T, layer.weight_quant(layer.weight))
