"""Which method for which layer, by rules of thumb, each with its name and its words.

Source: the rules of thumb in "Quantization in Pytorch" after PyTorch's own guide: dynamic quantization for transformers
and recurrent networks, static for convolutions, training where static loses too much, single parts left in floats. That
a batch of one is bound by memory and a large one by computing, and that groups keep outliers apart, is torchao's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from .methods import GROUPS, NONE, config_of, group_of
from .plan import Planned, kind_of

GOALS = ("throughput", "latency", "size", "accuracy")
STATIC, RECURRENT = "prepare and convert", "quantize_dynamic"  # methods that need data, or a model, not weights alone
SMALL = 4096  # elements of a weight below which codes save less than they cost

RULES: Mapping[str, str] = MappingProxyType(
    {
        "dynamic_for_linear": "linear layers, as of transformers, are bound by computing or by reading weights: int8 "
        "weights, and inputs in int8 as they come; no data is needed",
        "dynamic_for_recurrent": "recurrent layers are bound by reading weights: quantize_dynamic, which needs no data",
        "static_for_convolutions": "convolutional networks are bound by moving activations: prepare, calibrate on some "
        "batches, convert; linear layers behind convolutions with them",
        "weights_for_small_batches": "with one row at a time, reading weights is all that takes time: codes of weights "
        "alone, int8",
        "groups_for_size": "4 bits are half of 8; one scale for each group of inputs keeps outliers to their group",
        "no_group_divides": "no group of 128, 64 or 32 divides its inputs: int8, with a scale for each output",
        "weights_lose_least": "int8 weights with a scale for each output lose least, and inputs stay as they are",
        "embeddings_for_size": "an embedding is looked up, not multiplied: codes save its size, not time",
        "embeddings_stay": "an embedding is looked up, not multiplied: codes would save no time",
        "small_layers_stay": f"fewer than {SMALL} weights: what codes save is less than what they cost",
        "vectors_stay": "biases, norms and other vectors are few numbers that errors come through: they stay floats",
    }
)
NOTES: Mapping[str, str] = MappingProxyType(
    {
        "measure_first": "methods that need no data are a baseline: measure accuracy with them before others are tried",
        "calibrated_weights": "where 4 bits lose too much: gptq_ with some batches of inputs gives the same file size",
        "train_when_it_loses": "where static quantization loses too much: prepare_qat, train, convert",
        "parts_may_stay": "where accuracy drops at one go: leave single layers in floats, by the table of errors",
    }
)


@dataclass(frozen=True)
class Recommendation:
    """What is advised for each tensor, and for the whole.

    Args:
        goal: one of `GOALS`.
        layers: an entry for each tensor; ``why`` is the name of a rule of `RULES`. Those without a config have a method
            that needs data or the model itself, or ``"none"``.
        notes: names in `NOTES`.
    """

    goal: str
    layers: tuple[Planned, ...]
    notes: tuple[str, ...]

    @property
    def rules(self) -> dict[str, str]:
        """Rules that were used, with their words."""
        used = {one.why for one in self.layers}
        return {name: words for name, words in RULES.items() if name in used}

    def __str__(self) -> str:
        lines = [f"{one.name}: {one.method}{_group(one)} ({one.why})" for one in self.layers if one.kind != "other"]
        words = [f"{name}: {text}" for name, text in [*self.rules.items(), *((n, NOTES[n]) for n in self.notes)]]
        return "\n".join([*lines, *words])


def recommend(model: Any, goal: str = "throughput") -> Recommendation:
    """The method for each weight of a model.

    Args:
        model: shapes of tensors by name, in torch's layout; a torch module, or a flax nnx one.
        goal: ``"throughput"``, of large batches; ``"latency"``, of one row; ``"size"``; ``"accuracy"``.
    Raises:
        TypeError: another model. ValueError: another goal, or no tensors.
    """
    if goal not in GOALS:
        raise ValueError(f"`goal` must be one of {', '.join(map(repr, GOALS))}; got {goal!r}")
    shapes = shapes_of(model)
    kinds = {name: kind_of(name, shape) for name, shape in shapes.items()} | kinds_of_modules(model)
    if not shapes:
        raise ValueError("`model` must have tensors, got none")
    convolutional = "convolution" in kinds.values()
    layers = tuple(_advised(name, shape, kinds[name], goal, convolutional) for name, shape in shapes.items())
    used = {one.why for one in layers}
    notes = {
        "measure_first": True,
        "calibrated_weights": "groups_for_size" in used,
        "train_when_it_loses": convolutional,
        "parts_may_stay": True,
    }
    return Recommendation(goal, layers, tuple(name for name, holds in notes.items() if holds))


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the float tensors of a model by name, as `recommend` takes it; of a mapping, what it holds.

    Raises:
        TypeError: something else.
    """
    if isinstance(model, Mapping):
        return {str(name): tuple(map(int, shape)) for name, shape in model.items()}
    if hasattr(model, "state_dict"):
        return {n: tuple(t.shape) for n, t in model.state_dict().items() if t.is_floating_point()}
    if any(base.__module__.startswith("flax.nnx") for base in type(model).__mro__):
        from ...jax_backend import interop

        return {name: tuple(value.shape) for name, value in interop.state_dict(model).items()}
    raise TypeError(f"`model` must be shapes by name, a torch module or a flax nnx module, got {type(model).__name__}")


def kinds_of_modules(model: Any) -> dict[str, str]:
    """What the weights of a torch module are, as far as their layers say, whatever their names; else nothing."""
    found = {}
    for name, part in model.named_modules() if hasattr(model, "named_modules") else ():
        layer = next((base.__name__ for base in type(part).__mro__ if base.__module__.startswith("torch.nn")), "")
        kind = "convolution" if layer.startswith("Conv") else {"Linear": "linear", "Embedding": "embedding"}.get(layer)
        if kind:
            found[f"{name}.weight".lstrip(".")] = kind
    return found


def _advised(name: str, shape: tuple[int, ...], kind: str, goal: str, convolutional: bool) -> Planned:
    """What is advised for one tensor."""

    def stays(rule: str, method: str = NONE) -> Planned:
        return Planned(name, shape, kind, method, None, rule)

    def becomes(rule: str, method: str, group_size: int | None = None) -> Planned:
        return Planned(name, shape, kind, method, config_of(method, group_size), rule)

    if kind == "other":
        return stays("vectors_stay")
    if prod(shape) < SMALL:
        return stays("small_layers_stay")
    if kind == "convolution" or (kind == "linear" and convolutional and goal in ("throughput", "latency")):
        return stays("static_for_convolutions", STATIC)
    if kind == "recurrent":
        return stays("dynamic_for_recurrent", RECURRENT)
    if kind == "embedding":
        return becomes("embeddings_for_size", "int8_weight_only") if goal == "size" else stays("embeddings_stay")
    if goal == "throughput":
        return becomes("dynamic_for_linear", "int8_dynamic_activation_int8_weight")
    if goal == "latency":
        return becomes("weights_for_small_batches", "int8_weight_only")
    if goal == "accuracy":
        return becomes("weights_lose_least", "int8_weight_only")
    group = next((size for size in GROUPS if shape[1] % size == 0), None)
    if group is None:
        return becomes("no_group_divides", "int8_weight_only")
    return becomes("groups_for_size", "int4_weight_only", group)


def _group(one: Planned) -> str:
    size = None if one.config is None else group_of(one.config)
    return "" if size is None else f", group {size}"
