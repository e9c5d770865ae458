"""The fastest quantization for each linear layer of a flax model or pytree: recorded, measured, chosen, swapped.

What is chosen, and the cache of times, is said by `samebits.core.autoquant`; this measures layers of JAX.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core.autoquant import (
    EPILOGUES,
    FLOAT,
    Case,
    Place,
    Plan,
    Timer,
    check_bound,
    check_epilogues,
    check_layers,
    check_names,
    check_seconds,
    check_shape,
    choices,
    fits,
    median_seconds,
    processor,
    samebits_version,
    to_measure,
)
from ...core.configs import Config, ModuleConfigs, checked
from ..arrays import is_concrete
from ..interop import torch_path
from .configs import IN_OUT, Filter, is_nnx_linear, is_qarray, is_weight, path_name, quantize_
from .modules import set_kernel
from .qarray import quant_array
from .recording import handed_on

Array = jax.Array
Progress = Callable[[Iterable[Any]], Iterable[Any]]
KEPT = 1024  # rows of an input that errors are computed on
FUNCTIONS: dict[str, Any] = {name: getattr(jax.nn, name, None) or getattr(jnp, name) for name in EPILOGUES}


def autoquant(
    model: Any,
    *example: Any,
    filter_fn: Filter | None = None,
    plan: Plan | None = None,
    max_error: float | None = None,
    compiled: bool | None = None,
    epilogues: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
    measure: str | None = None,
    timer: Timer = median_seconds,
    manual: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Gives each linear layer the quantization that is the fastest for the inputs that it sees.

    Of an nnx model in place: with ``example``, arguments of the model, at once. Else the next call of the model does
    it, before it computes; with ``manual``, calls are only recorded, until ``model.finalize_autoquant()``. Recording is
    a run of its own, of a copy. A layer that is never called stays as it is. If anything raises, no layer has changed.
    Of a pytree, whose products nobody can call, in a new one: its ``shapes`` must be given.

    Args:
        model: an nnx model, or a pytree with weights as `quantize_` takes them.
        filter_fn: which layers or leaves, as `quantize_`.
        plan: the candidates and a cache of times, which gets new ones, and what was chosen; None for an empty one.
        max_error: how large ``norm(y - y_float) / norm(y_float)`` may be for the output of a layer, on the inputs that
            were recorded (the first 1024 rows of each shape); candidates beyond it are not chosen.
        compiled: whether layers are under ``jax.jit`` to be measured, with the function of `EPILOGUES` that follows
            them, by default what follows in an ``nnx.Sequential``; None for True.
        epilogues: such functions, by the names of layers; those that are seen count for other layers.
        shapes: of inputs, by the names of layers, in the place of a call; errors are then on random numbers.
        measure: ``"missing"``, what the plan has no time for, ``"again"``, all, or ``"never"``: a plan from another
            version or device, or of another model, is an error. None for ``"never"`` unless the plan is empty.
        timer: ``timer(call, case, candidate)`` gives the seconds, or any other cost, of ``call()``.
        progress: what the list of measurements is run through, such as ``tqdm.tqdm``; None: nothing is shown.
    Returns:
        The model, or the new pytree.
    Raises:
        ValueError: no linear layer, a plan that does not fit, both ``example`` and ``shapes`` or, of a pytree, no
            ``shapes``, a name that no layer has, weights with NaN or infinities. RuntimeError: no linear layer was
            called, or the model within ``jax.jit``. TypeError: arguments of another kind.
    """
    if shapes is not None and (example or manual):
        raise ValueError("`shapes` must not be given with `example` or `manual`, which record them")
    compiled = compiled is not False
    session = _session(model, filter_fn, plan, max_error, compiled, epilogues or {}, measure, timer, progress)
    if shapes is not None:
        session.take_shapes(shapes)
    elif not isinstance(model, nnx.Module):
        raise ValueError(f"`shapes` must be given for a {type(model).__name__}, which cannot be called")
    elif example:
        session.record(example, {})
    if shapes is None and (manual or not example):
        return _waiting(model, session, manual)
    return session.finish()


def _session(
    model: Any,
    filter_fn: Filter | None,
    plan: Plan | None,
    max_error: float | None,
    compiled: bool,
    epilogues: Mapping[str, str],
    measure: str | None,
    timer: Timer,
    progress: Progress | None,
) -> "_Session":
    """Of the arguments of `autoquant`, checked."""
    layers, is_module = _layers(model, filter_fn), isinstance(model, nnx.Module)
    wrong = [name for name, layer in layers.items() if is_module and not is_nnx_linear(name, layer)]
    check_layers(layers, [f"'{name}' ({type(layers[name]).__name__})" for name in wrong])
    check_bound(max_error)
    check_epilogues(epilogues, layers)
    follows = (_following(model) if is_module else {}) | dict(epilogues)
    plan = Plan() if plan is None else plan
    return _Session(model, layers, plan, _place(compiled), max_error, measure, timer, progress, filter_fn, follows)


def _layers(model: Any, filter_fn: Filter | None) -> dict[str, Any]:
    """What is to be quantized, by name."""
    if isinstance(model, nnx.Module):
        takes = is_nnx_linear if filter_fn is None else filter_fn
        named = {".".join(torch_path(model, path)): part for path, part in nnx.iter_modules(model)}
    else:
        takes = is_weight if filter_fn is None else filter_fn
        leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_qarray)
        named = {path_name(path): leaf for path, leaf in leaves}
    return {name: part for name, part in named.items() if takes(name, part)}


def is_layer(part: Any) -> bool:
    """Whether it is a layer of an nnx model, and not a leaf of a pytree."""
    return isinstance(part, nnx.Module)


def _following(model: nnx.Module) -> dict[str, str]:
    """The epilogues of layers that a function follows in an ``nnx.Sequential``."""
    found = {}
    for path, part in nnx.iter_modules(model):
        inside = list(part.layers) if isinstance(part, nnx.Sequential) else []
        for k, (layer, after) in enumerate(pairwise(inside)):
            names = [name for name, function in FUNCTIONS.items() if function is after]
            if isinstance(layer, nnx.Linear) and names:
                found[".".join(torch_path(model, (*path, "layers", k)))] = names[0]
    return found


def _place(compiled: bool) -> Place:
    device = jax.devices()[0]
    kind = f"{processor()}, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    return Place(f"jax {jax.__version__}", samebits_version(), f"{device.platform}: {kind}", compiled)


@dataclass
class _Session:
    """What one model was seen to do, and how it is measured."""

    model: Any
    layers: dict[str, Any]
    plan: Plan
    place: Place
    max_error: float | None
    measure: str | None
    timer: Timer
    progress: Progress | None
    filter_fn: Filter | None
    follows: dict[str, str]  # epilogues
    calls: dict[str, dict[Case, int]] = field(default_factory=dict)
    inputs: dict[tuple[str, Case], Array] = field(default_factory=dict)  # if errors are asked for

    def record(self, args: Any, kwargs: Any) -> None:
        """Runs a copy of the model, and counts what its layers compute."""
        copy, seen = nnx.clone(self.model), []
        object.__setattr__(copy, "__class__", getattr(type(copy), "waits_for", type(copy)))
        layers = {name: layer for name, layer in _layers(copy, None).items() if name in self.layers}

        def before(name: str, x: Array) -> None:
            kept = self.max_error is not None and is_concrete(x)
            seen.append((name, self.case(name, x.shape, x.dtype), x.reshape(-1, x.shape[-1])[:KEPT] if kept else None))

        with handed_on(layers, before, lambda name, y: None):
            copy(*args, **kwargs)
        for name, case, x in seen:
            self.count(name, case)
            if x is not None:
                self.inputs.setdefault((name, case), x)

    def case(self, name: str, shape: Sequence[int], dtype: Any = None) -> Case:
        """What a layer computes on an input of this shape, of its own dtype or another."""
        layer: Any = self.layers[name]
        follows = self.follows.get(name, "") if self.place.compiled else ""
        if not is_layer(layer):
            return Case(prod(shape[:-1]), _shape(name, layer), layer.dtype.name, False, follows)
        kernel, bias = layer.kernel[...], None if layer.bias is None else layer.bias[...]
        found = layer.dtype or jnp.result_type(*(kernel, dtype or kernel, kernel if bias is None else bias))
        return Case(prod(shape[:-1]), _shape(name, layer), jnp.dtype(found).name, bias is not None, follows)

    def count(self, name: str, case: Case) -> None:
        """One more call; of no rows none."""
        if case.rows:
            own = self.calls.setdefault(name, {})
            own[case] = own.get(case, 0) + 1

    def take_shapes(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Counts calls with inputs of these shapes."""
        check_names("shapes", shapes, self.layers)
        for name, several in shapes.items():
            for shape in several:
                check_shape(name, shape, _shape(name, self.layers[name])[1])
                self.count(name, self.case(name, shape))

    def finish(self) -> Any:
        """Measures what the plan lacks, chooses, and swaps: the model, or the new pytree."""
        if not self.calls:
            raise RuntimeError(f"autoquant: none of the layers was called: {', '.join(map(repr, self.layers))}")
        plan, calls = self.plan, {name: self.calls.get(name, {}) for name in self.layers}
        lacking = to_measure(plan, self.place, calls, self.measure)
        owners = {case: name for name in reversed(calls) for case in calls[name]}
        for case, candidate in self.progress(lacking) if self.progress else lacking:
            plan.times[self.place, case, candidate] = self._seconds(owners[case], case, candidate)
        errors = {} if self.max_error is None else {name: self._errors(name) for name in self.calls}
        made = choices(plan, self.place, calls, errors, self.max_error)
        configs = ModuleConfigs({name: plan.candidates.get(one.chosen) for name, one in made.items()})
        quantized = quantize_(self.model, configs, self.filter_fn)
        plan.layers = made
        return quantized

    def _seconds(self, name: str, case: Case, candidate: str) -> float:
        config = self.plan.candidates[candidate]
        if not fits(config, case):
            return float("inf")
        function, arrays = _program(name, self.layers[name], config)
        follows = FUNCTIONS[case.epilogue] if case.epilogue else lambda y: y

        def layer(arrays: Any, x: Array) -> Any:
            return follows(function(arrays, x))

        run, x = jax.jit(layer) if self.place.compiled else layer, _random(case)
        return check_seconds(self.timer(lambda: _done(run(arrays, x)), case, candidate), case, candidate)

    def _errors(self, name: str) -> dict[str, float]:
        """The error of each candidate that fits, over all inputs of a layer."""
        layer, cases = self.layers[name], self.calls[name]
        inputs = [self.inputs.get((name, case), _random(case)) for case in cases]
        x = jnp.concatenate([x[:KEPT] for x in inputs])

        def output(config: Config | None) -> Array:
            function, arrays = _program(name, layer, config)
            y: Array = function(arrays, x)
            return y

        want = output(None)
        return {
            one: _relative_error(output(config), want)
            for one, config in self.plan.candidates.items()
            if one != FLOAT and all(fits(config, case) for case in cases)
        }


def _shape(name: str, layer: Any) -> tuple[int, int]:
    """``(out, in)`` of a layer or leaf."""
    turned = is_layer(layer) or name.rpartition(".")[2] in IN_OUT
    a, b = layer.kernel.shape if is_layer(layer) else layer.shape
    return (b, a) if turned else (a, b)


def _program(name: str, layer: Any, config: Config | None) -> tuple[Callable[[Any, Array], Array], Any]:
    """A function of arrays and an input that computes what a layer or leaf does with a config, and these arrays.

    Weights are arguments: what a program closes over would be dequantized once, when it is compiled.
    """
    is_module = is_layer(layer)
    turned = is_module or name.rpartition(".")[2] in IN_OUT
    w: Any = layer.kernel[...] if is_module else layer
    if config is not None:
        rows = jnp.asarray(w).T if turned else w
        made = checked(name, lambda: quant_array(config.weight, rows, None, config.act_quant, config.layout))
        w = made.T if turned else made
    if not is_module:
        return lambda arrays, x: x @ (arrays if turned else arrays.T), w
    own = nnx.clone(layer)
    if config is not None:
        set_kernel(own, w)
    graph, state = nnx.split(own)
    leaves, structure = jax.tree.flatten(state)
    return lambda arrays, x: nnx.merge(graph, jax.tree.unflatten(structure, arrays))(x), leaves


def _done(y: Array) -> Array:
    """The array, when it is computed."""
    return y.block_until_ready()


def _random(case: Case) -> Array:
    """The same normal numbers at each call."""
    return jnp.asarray(np.random.default_rng(0).standard_normal((case.rows, case.weight[1])), case.dtype)


def _relative_error(y: Array, want: Array) -> float:
    """``norm(y - want) / norm(want)``; infinite where that is no number."""
    exact = np.asarray(want).astype(np.float64)
    difference, size = (float(np.linalg.norm(a)) for a in (np.asarray(y).astype(np.float64) - exact, exact))
    if difference == 0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if error == error else float("inf")


def _waiting(model: Any, session: _Session, manual: bool) -> Any:
    """Lets the next calls of a model be recorded, and the first of them finish unless that is done by hand.

    Until then it is an instance of a class made for that, as nnx models have no hooks.
    """
    own: Any = type(model)

    def finalize_autoquant(self: Any) -> None:
        session.finish()
        object.__setattr__(model, "__class__", own)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not model or not is_concrete(*jax.tree.leaves((args, kwargs))):
            raise RuntimeError("autoquant measures: call the model itself first, not within jax.jit and no copy of it")
        session.record(args, kwargs)
        if not manual:
            finalize_autoquant(self)
        return own.__call__(self, *args, **kwargs)

    members = {"__call__": call, "finalize_autoquant": finalize_autoquant, "waits_for": own}
    object.__setattr__(model, "__class__", type(own.__name__, (own,), members))
    return model
