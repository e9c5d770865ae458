"""A torch and a JAX model on the same inputs: both run, one beside the other, and every place is judged."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.requirements import explaining
from ...jax_backend.interop import torch_path
from ..inputs.compare import differences
from ..modes.arrays import to_jax, to_numpy, to_torch

with explaining(__name__):
    import jax
    import torch
    from flax import nnx
    from torch import nn

from .explain import allowed, distances, elsewhere, explanations, nearer
from .follow import Following, Observation, alone, follow, order_of_calls
from .pairing import Part, paired
from .promises import atomic, promises_bits
from .record import Call, Recording, record
from .results import Example, Inputs, Model, Row, Validation, ValidationError, Verdict

Array = NDArray[Any]
SHOWN = 8  # numbers of an input


def compared(
    torch_model: Model,
    jax_model: Model,
    inputs: Inputs,
    jax_inputs: Inputs | None,
    pairs: Mapping[str, str] | None,
    *,
    explain: bool,
) -> Validation:
    """What `validate` says; the arguments are those of it, and what is raised."""
    for name, model in (("torch_model", torch_model), ("jax_model", jax_model)):
        if not callable(model):
            raise TypeError(f"`{name}` must be a module or a function, got {type(model).__name__}")
    here = _arguments(torch_model, inputs, "torch", lambda x: to_torch(x))
    there = _arguments(jax_model, inputs if jax_inputs is None else jax_inputs, "jax", _to_jax)
    torch_parts, jax_parts, watched = _parts_of_torch(torch_model), *_parts_of_jax(jax_model)
    recording: list[Recording] = []

    def order() -> tuple[list[str], list[str]]:
        recording.append(record(torch_model, *here, list(torch_parts)))
        steps = {path: calls[0].steps for path, calls in recording[0].calls.items()}
        return sorted(torch_parts, key=lambda p: steps.get(p, (2**62,))), order_of_calls(jax_model, *there, watched)

    found = paired(torch_parts, jax_parts, pairs, order)
    run = record(torch_model, *here, list(found))
    _check_alike(jax_model, there, run)
    following = follow(jax_model, *there, run, watched, found)
    lost = [path for path in found if path in run.calls and path and path not in following.reached]
    if lost and following.hidden and not following.stopped:  # they are part of what is around them
        found = {here: there for here, there in found.items() if here not in lost}
        run = record(torch_model, *here, list(found))
        following = follow(jax_model, *there, run, watched, found)
    modules = dict(torch_model.named_modules()) if isinstance(torch_model, nn.Module) else {}
    rows = _rows(run, following, modules, found, explain=explain)
    if following.stopped and not any(row.verdict is Verdict.BEYOND for row in rows):
        raise ValidationError(following.stopped)
    unpaired = (
        tuple(p for p, part in torch_parts.items() if part.leaf and part.shapes and p not in found),
        tuple(p for p, part in jax_parts.items() if part.leaf and part.shapes and p not in found.values()),
    )
    results = alone(jax_model, *there, [watched[p] for p, part in jax_parts.items() if part.leaf and p in watched])
    whole = _whole(run, results)
    return Validation(tuple(rows), tuple(found.items()), unpaired, whole, following.stopped)


def _arguments(
    model: Model, inputs: Inputs, side: str, convert: Callable[[Array], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """What a model is called with."""
    named: dict[str, Array] = {}
    if isinstance(inputs, Mapping):
        named = {name: to_numpy(value) for name, value in inputs.items()}
        own = {name.partition(".")[2]: value for name, value in named.items() if name.startswith(f"{side}.")}
        named = {n: v for n, v in named.items() if not n.startswith(("torch.", "jax."))} | own
    else:
        values = inputs if isinstance(inputs, tuple | list) else [inputs]
        named = {str(i): to_numpy(value) for i, value in enumerate(values)}
    if not named:
        raise ValidationError("`inputs` must hold an array, got none")
    for name, value in named.items():
        if value.dtype == object or (value.dtype.kind in "USVc" and value.dtype.name != "bfloat16"):
            raise ValidationError(f"`inputs`: {name!r} must be numbers, got dtype {value.dtype}")
        if side == "jax" and value.dtype == np.float64 and not _wide():
            raise ValidationError(f"`inputs`: {name!r} is float64, which JAX rounds to float32; give float32")
    converted = {name: convert(value) for name, value in named.items()}
    call = model.forward if isinstance(model, nn.Module) else model
    try:
        kinds = signature(call).parameters
    except (TypeError, ValueError):
        return list(converted.values()), {}
    by_name = {n for n, p in kinds.items() if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    return ([], converted) if set(converted) <= by_name else (list(converted.values()), {})


def _to_jax(x: Array) -> Any:
    """For JAX, which has integers of 32 bits."""
    if x.dtype.itemsize == 8 and x.dtype.kind in "iu" and not _wide():
        ends = np.iinfo(np.int32)
        if x.size and (x.min() < ends.min or x.max() > ends.max):
            raise ValidationError(f"`inputs` must fit 32 bits in JAX, got {x.min()} to {x.max()}")
        x = x.astype(np.int32)
    return to_jax(x)


def _wide() -> bool:
    """Whether JAX has 64 bits."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def _parts_of_torch(model: Model) -> dict[str, Part]:
    if not isinstance(model, nn.Module):
        return {"": Part(type(model).__name__, (), True)}
    found: dict[str, Part] = {}
    hidden: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{one}.") for one in hidden if one) or isinstance(
            module, nn.ModuleList | nn.ModuleDict
        ):
            continue
        if path and atomic(module):
            hidden.append(path)
        leaf = atomic(module) or not any(True for _ in module.children())
        shapes = tuple(tuple(p.shape) for p in module.parameters(recurse=atomic(module)))
        found[path] = Part(type(module).__name__, shapes, leaf)
    return found


def _parts_of_jax(model: Model) -> tuple[dict[str, Part], dict[str, Any]]:
    if not isinstance(model, nnx.Module):
        return {"": Part("function", (), True)}, {}
    found, watched, hidden = dict[str, Part](), dict[str, Any](), list[str]()
    modules = {".".join(torch_path(model, path)): m for path, m in nnx.iter_modules(model)}
    for path, module in sorted(modules.items(), key=lambda item: item[0].count(".") if item[0] else -1):
        if any(path.startswith(f"{one}.") for one in hidden if one) or not callable(module):
            continue
        if path and atomic(module):
            hidden.append(path)
        below = any(other != path and other.startswith(f"{path}." if path else "") for other in modules)
        own = [v for v in vars(module).values() if isinstance(v, nnx.Variable) and not isinstance(v, nnx.RngState)]
        shapes = tuple(tuple(np.shape(v[...])) for v in own)
        found[path] = Part(type(module).__name__, shapes, atomic(module) or not below)
        watched[path] = module
    return found, watched


def _check_alike(model: Model, there: tuple[list[Any], dict[str, Any]], run: Recording) -> None:
    """That arguments of the models are the same arrays but for layout."""
    own = [to_numpy(leaf) for leaf in jax.tree.leaves(there)]
    given = [to_numpy(run.value(number)) for number in run.root.inputs]
    if len(own) == len(given) and all(a.size == b.size for a, b in zip(own, given, strict=True)):
        return
    shapes = [[tuple(x.shape) for x in side] for side in (given, own)]
    raise ValidationError(
        f"the models must be given the same numbers, got shapes {shapes[0]} in torch and {shapes[1]} in JAX"
    )


def _rows(
    run: Recording, following: Following, modules: Mapping[str, nn.Module], pairs: Mapping[str, str], *, explain: bool
) -> list[Row]:
    rows = []
    for seen in following.observations:
        inside = seen.call if seen.what == "output" else seen.parent
        assert inside is not None
        sources = {*inside.inputs, *(number for part in inside.parts for number in part.outputs)}
        if seen.value in sources and differences(run.value(seen.value), seen.got).same:
            continue  # handed on as it is
        module = modules.get(seen.call.path)
        if seen.what == "output" and module is not None and atomic(module):
            sources |= _contracted(run, seen.call)  # quantized operands have the same bits everywhere
        row = _judged(run, seen, sources, module)
        if explain and row.verdict is Verdict.BEYOND:
            row = replace(row, explanations=_explained(run, following, seen, sources))
        if explain and row.verdict is Verdict.WITHIN:
            row = replace(row, hints=nearer(run, seen.value, sources, seen.got))
        rows.append(row)
    if following.results:
        root = run.root.kind
        rows.append(Row("", "", "output", root, Verdict.BEYOND, np.inf, np.inf, reason=following.results))
    for path, calls in run.calls.items():
        if path and path not in following.reached and path in pairs and not following.stopped:
            rows.append(
                Row(
                    path,
                    pairs[path],
                    "output",
                    calls[0].kind,
                    Verdict.BEYOND,
                    np.inf,
                    np.inf,
                    reason="JAX does not call it",
                    explanations=("a layer is missing",),
                )
            )
    return rows


def _contracted(run: Recording, call: Call) -> set[int]:
    """What the contractions of a call take."""
    steps = run.tape.steps[slice(*call.steps)]
    names = ("mm", "bmm", "addmm", "baddbmm", "convolution")
    return {number for step in steps if step.name in names for number in step.inputs}


def _judged(run: Recording, seen: Observation, sources: Collection[int], module: nn.Module | None) -> Row:
    """The verdict on one value."""
    expected = to_numpy(run.value(seen.value))
    names = seen.call.path, seen.jax_path, seen.what, seen.call.kind
    if seen.got.shape != expected.shape:
        reason = f"shape {seen.got.shape} instead of {expected.shape}"
        return Row(*names, Verdict.BEYOND, np.inf, np.inf, expected.size, expected.size, reason)
    if seen.got.dtype != expected.dtype and expected.dtype.kind in "fV":
        reason = f"dtype {seen.got.dtype.name} instead of {expected.dtype.name}"
        return Row(
            *names,
            Verdict.BEYOND,
            float(distances(expected, seen.got).max(initial=0)),
            np.inf,
            expected.size,
            expected.size,
            reason,
        )
    found = differences(expected, seen.got.astype(expected.dtype))
    if found.same:
        return Row(*names, Verdict.SAME, compared=expected.size)
    far = distances(expected, seen.got)
    counts = found.differing, expected.size
    if seen.what == "output" and module is not None and promises_bits(module):
        row = Row(
            *names, Verdict.BEYOND, float(far.max()), np.inf, *counts, reason="other bits, where bits are promised"
        )
        return replace(row, example=_example(run, seen, expected, far, np.zeros(far.shape)))
    with torch.no_grad():
        made = run.tape.again(seen.value, sources)
    if made.error is None:
        return Row(
            *names, Verdict.UNBOUNDED, float(far.max()), None, *counts, reason=f"no bound is known of {made.reason}"
        )
    bound = allowed(made.error)
    finite = np.isfinite(bound) & np.isfinite(far)
    shares = np.where(finite, far, np.where(np.isinf(far), np.inf, 0.0)) / np.where(finite, bound, 1.0)
    ratio = float(shares.max())
    if not _outside(far, bound).any():
        if (np.isinf(bound) & (far > 0)).any():
            return Row(
                *names, Verdict.UNBOUNDED, float(far.max()), None, *counts, reason="rounding may change anything"
            )
        return Row(*names, Verdict.WITHIN, float(far.max()), ratio, *counts)
    return Row(
        *names, Verdict.BEYOND, float(far.max()), ratio, *counts, example=_example(run, seen, expected, far, bound)
    )


def _outside(far: Array, bound: Array) -> Array:
    """Where a distance lies beyond its bound; special values on one side alone lie beyond any."""
    return np.asarray((far > 0) & (~(far <= bound) | np.isinf(far)))


def _example(run: Recording, seen: Observation, expected: Array, far: Array, bound: Array) -> Example:
    """Of the elements beyond the bound the one whose input is smallest: the row of the input that its index names."""
    wrong = np.argwhere(_outside(far, bound))
    inside = seen.call if seen.what == "output" or seen.parent is None else seen.parent
    last = inside.parts[-1].outputs if inside.parts and seen.what == "output" else inside.inputs
    given = [to_numpy(run.value(number)) for number in (*last, *inside.inputs)]
    x = next((v for v in given if v.ndim and v.dtype.kind == "f" and v.shape[0] == (expected.shape or (0,))[0]), None)
    if x is not None and wrong.shape[1]:
        pairs = zip(x.shape[:-1], expected.shape, strict=False)
        unlike = next((i for i, (a, b) in enumerate(pairs) if a != b), min(x.ndim - 1, expected.ndim))
        shared = max(unlike, 1)  # axes of the input that are axes of the value, too
        sizes = np.abs(x.astype(np.float64)).reshape(*x.shape[:shared], -1).max(-1)
        wrong = wrong[np.argsort([sizes[tuple(at[:shared])] for at in wrong], kind="stable")]
    at = tuple(int(i) for i in wrong[0])
    shown: tuple[float, ...] = ()
    if x is not None and at:
        shown = tuple(float(v) for v in np.ravel(x[at[:shared]])[:SHOWN])
    return Example(at, float(expected[at]), float(seen.got[at]), float(bound[at]), shown, at[0] if at else None)


def _explained(run: Recording, following: Following, seen: Observation, sources: Collection[int]) -> tuple[str, ...]:
    found = explanations(run, seen.value, sources, seen.got)
    if seen.what == "input" and seen.parent is not None:
        order = following.order.get(id(seen.parent), [])
        found = (*elsewhere(run, seen.parent, seen.call, seen.got, order), *found)
    return found


def _whole(run: Recording, results: Sequence[Array]) -> float:
    """How far the results of the models lie apart when each goes its own way."""
    expected = [to_numpy(run.value(number)) for number in run.root.outputs]
    pairs = [(a, b) for a, b in zip(expected, results, strict=False) if a.shape == b.shape]
    return max((float(distances(a, b).max(initial=0)) for a, b in pairs), default=np.inf)
