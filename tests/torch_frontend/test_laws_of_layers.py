"""Laws of quantizers that are bound through a layer: as its activation, and as its weight, eager and in one program.

Those of the catalog, and every ready quantizer. Parameters that a law names are put into the state of a quantizer that
learns them, under the names of a ``state_dict``; those that it leaves to the implementation are chosen by the quantizer
itself, in another layer, which has seen nothing before.
"""

import copy
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
from samebits.core.inject import Declaration
from samebits.core.scales import Restriction
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.laws.judging import only_finite, without_nan
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.proofs.modes.execution import Implementation, implementation
from samebits.torch_frontend import quant
from samebits.torch_frontend.nn import QuantIdentity, QuantLinear, TensorQuantizer

from ..law_cases import INTEGERS, KINDS_OF_ELEMENTS, SHAPE, cases_of

Array = NDArray[Any]
ONES = np.ones(SHAPE, np.float32)
RANGE = {"min_val": -1.7, "max_val": 1.3}  # what some declarations ask for
Key = tuple[str, str]  # role and name
TRIED = {name: catalog[name] for name in (*INTEGERS, *KINDS_OF_ELEMENTS)}
OF_CATALOG = (  # learned scales of activations are those of the whole tensor or of an axis
    *(("act", name) for name, q in TRIED.items() if isinstance(q.granularity, PerTensor | PerAxis)),
    *(("weight", name) for name in TRIED if not name.endswith("_per_tensor")),
)
# A bias that takes the scale of the accumulator has none of its own: tests/torch_frontend/test_bias.py.
DECLARED = {
    name: d.let(**RANGE)
    for name, d in quant.declared().items()
    if not ("requires_input_scale" in d and d.requires_input_scale)
}
READY = tuple((d.role, name) for name, d in DECLARED.items())
TOGETHER = 6
SLOW = ("Int8ActPerTensorFloatHQO", "Int8WeightPerChannelFloatHQO")  # seconds; the other eight HQO ones are not
COMPILED = (("act", "uint8_affine_per_tensor"), ("weight", "int4_per_channel"))


def described(name: str) -> Quantizer:
    """What a name of the catalog, or of a ready quantizer, stands for."""
    found: Quantizer = catalog[name] if name in TRIED else DECLARED[name].quantizer
    return found


def layer_of(role: str, given: str | Quantizer | Declaration) -> Any:
    """A layer with that as its activation, its weight, or its bias."""
    if role == "weight":
        return QuantLinear(SHAPE[1], SHAPE[0], bias=False, weight_quant=given)
    if role == "bias":
        return QuantLinear(1, SHAPE[0] * SHAPE[1], bias_quant=given)
    if isinstance(given, Declaration) and isinstance(given.quantizer.granularity, PerAxis):
        given = given.let(per_channel_broadcastable_shape=(1, SHAPE[1]))
    return QuantIdentity(given)


def quantizer_in(role: str, layer: Any) -> Any:
    return getattr(layer, f"{role}_quant")


class Bound(nn.Module):
    """A quantizer twice in layers of one kind: with its own scale, and with one that is learned."""

    def __init__(self, role: str, name: str, *, stateless: bool = False) -> None:
        """With ``stateless``, what learns gives the statistic it begins with, at every call."""
        super().__init__()
        q = described(name)
        self.role, self.held_as = role, role
        if role == "bias" or not isinstance(q.granularity, PerTensor | PerAxis):
            self.held_as = "weight"  # activations have no learned scales of groups, and biases none at all
        given: str | Quantizer | Declaration = name if name in TRIED else DECLARED[name]
        if stateless and q.scale.source not in ("statistic", "constant"):
            given = q.replace(source="statistic" if q.scale.scale_value is None else "constant")
        self.own = layer_of(role, given)
        self.learned = layer_of(self.held_as, q.replace(source="learned"))
        self.new = copy.deepcopy(self.own)

    def set(self, x: Array, qparams: QParams | None) -> tuple[Tensor, Tensor]:
        """Numbers for one of the two layers, ones for the other; given parameters as the state of the learned one."""
        held: TensorQuantizer = quantizer_in(self.held_as, self.learned)
        known = usual(held.quantizer) if qparams is None else qparams
        state = {n: to_torch(np.array(p, np.float32)) for n, p in known._asdict().items() if p is not None}
        held.load_state_dict({n: p for n, p in state.items() if n in ("scale", "zero_point")})
        own, learned = (x, ONES) if qparams is None else (ONES, x)
        return placed(self.role, self.own, own), placed(self.held_as, self.learned, learned)

    def renew(self) -> None:
        """The layer of its own has seen nothing."""
        self.own = copy.deepcopy(self.new)

    def forward(self, own: Tensor, learned: Tensor) -> tuple[Any, ...]:
        """Values by the scale of its own, that scale, and values by the learned one."""
        value = values(self.role, self.own, own)
        chosen = quantizer_in(self.role, self.own).eval().qparams(own)
        return value, tuple(chosen[:2]), values(self.held_as, self.learned, learned)


def placed(role: str, layer: Any, x: Array) -> Tensor:
    """``x`` where the layer quantizes it."""
    if role == "act":
        return to_torch(np.array(x)).requires_grad_()
    parameter: Tensor = getattr(layer, role)
    layer.load_state_dict({role: to_torch(np.array(x)).reshape(parameter.shape)}, strict=False)
    return parameter


def values(role: str, layer: Any, x: Tensor) -> Tensor:
    """What the layer computes with. (A product with the identity would lose NaN and the sign of zeros.)"""
    y: Tensor = layer(x) if role == "act" else quantizer_in(role, layer)(getattr(layer, role))
    return y.reshape(SHAPE)


def together(key: Key) -> tuple[Key, ...]:
    """What is compiled with it: compiling some costs little more than one."""
    if key in COMPILED:
        return COMPILED
    first = READY.index(key) // TOGETHER * TOGETHER
    return READY[first : first + TOGETHER]


@cache
def modules(keys: tuple[Key, ...], compiled: bool) -> tuple[dict[Key, Bound], Callable[..., Any]]:
    """The layers, and one program that runs them all."""
    bound = {key: Bound(*key, stateless=compiled) for key in keys}
    if compiled:
        torch._dynamo.reset()  # the program below is one function: how often it is compiled has a limit

    def program(inputs: list[tuple[Tensor, Tensor]]) -> list[tuple[Any, ...]]:
        return [module(*pair) for module, pair in zip(bound.values(), inputs, strict=True)]

    return bound, torch.compile(program, fullgraph=True, dynamic=False) if compiled else program


def through(key: Key, compiled: bool) -> Implementation:
    """The five functions; codes, which layers do not give, are those of the functions."""
    alone = implementation("torch eager")
    bound, program = modules(together(key) if compiled else (key,), compiled)

    def run(x: Array, qparams: QParams | None) -> tuple[Tensor, tuple[Any, ...]]:
        if not compiled:
            bound[key].renew()
        others = {k: m.set(ONES, None) for k, m in bound.items() if k != key}
        inputs = {**others, key: bound[key].set(x, qparams)}
        results = program([inputs[k] for k in bound])
        return inputs[key][1], results[list(bound).index(key)]

    def choose_qparams(q: Quantizer, x: Array) -> QParams:
        chosen = run(x, None)[1][1]
        scale, zero = (None if p is None else to_numpy(p) for p in chosen)
        if zero is not None and not q.arithmetic.has_float_zeros:
            zero = whole(zero)  # states of layers are float32
        return QParams(scale, zero)

    def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
        return alone.quantize(q, without_nan(x) if compiled and not q.format.has_nan else x, qparams)

    def fake_quantize(q: Quantizer, x: Array, qparams: QParams | None = None) -> Array:
        own, _, learned = run(x, qparams)[1]
        return to_numpy(own if qparams is None else learned)

    def fake_quantize_vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> QuantizerGradients:
        leaf, (_, _, learned) = run(x, qparams)
        held = quantizer_in(bound[key].held_as, bound[key].learned)
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


@cache
def usual(q: Quantizer) -> QParams:
    """Parameters of ones."""
    return core.choose_qparams(q, ONES)


def whole(zero: Array) -> Array:
    assert (zero == np.rint(zero)).all()
    return zero.astype(np.int32)


def check_all(key: Key, *, compiled: bool) -> None:
    q = described(key[1])
    for x, given, g in cases_of(q, "float32"):
        restricted = q.scale.restriction is not Restriction.FLOAT or q.scale.floor is not None  # by the layer, too
        qparams = core.choose_qparams(q, only_finite(x)) if restricted else given
        for name, law in LAWS.items():
            if applies(name, q):
                with np.errstate(all="ignore"):
                    law(through(key, compiled), q, x, qparams, g)


def marked(key: Key) -> Any:
    return pytest.param(*key, marks=pytest.mark.thorough if key[1] in SLOW else ())


@pytest.mark.parametrize(("role", "name"), map(marked, [*OF_CATALOG, *READY]))
def test_laws(role: str, name: str) -> None:
    check_all((role, name), compiled=False)


@pytest.mark.parametrize(("role", "name"), COMPILED)
def test_laws_in_one_compiled_program(role: str, name: str) -> None:
    check_all((role, name), compiled=True)


@pytest.mark.thorough
@pytest.mark.parametrize(("role", "name"), READY)
def test_laws_of_every_ready_quantizer_in_compiled_programs(role: str, name: str) -> None:
    """Minutes. Quicker: the two of the catalog above, and `test_ready_quantizers.py`, compiled."""
    check_all((role, name), compiled=True)


@pytest.mark.parametrize("name", ["int4_per_channel", "uint4_affine_per_group32", "nvfp4"])
def test_a_linear_layer_computes_with_the_weight_that_the_laws_judge(name: str) -> None:
    """A product with the identity gives its columns."""
    module = Bound("weight", name)
    for layer in (module.own, module.learned):
        assert torch.equal(layer(torch.eye(SHAPE[1])).T, layer.weight_quant(layer.weight))
