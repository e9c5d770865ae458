"""The fastest quantization for each linear layer of a torch model: recorded, measured, chosen, swapped.

What is chosen, and the cache of times, is said by `samebits.core.autoquant`; this measures layers of torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

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
from ..arrays import dtype_name
from .configs import Filter, is_linear, quantize_, taken
from .quant_weight import quant_weight
from .recording import evaluating

Model = TypeVar("Model", bound=nn.Module)
Progress = Callable[[Iterable[Any]], Iterable[Any]]
KEPT = 1024  # rows of an input that errors are computed on
FUNCTIONS: dict[Any, str] = {  # torch has a function for a name in several places
    getattr(place, one): name
    for name in EPILOGUES
    for one in (name, f"{name}_")
    for place in (F, torch.Tensor, torch)
    if hasattr(place, one)
}


def autoquant(
    model: Model,
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
) -> Model:
    """Gives each linear layer the quantization that is the fastest for the inputs that it sees. In place.

    With ``example``, arguments of the model, at once. Else the next call of the model does it, before it computes; with
    ``manual``, calls are only recorded, until ``model.finalize_autoquant()``. Recording is a run of its own, in
    evaluation mode. A layer that is never called stays as it is. If anything raises, no layer has changed.

    Args:
        model: or what ``torch.compile`` made of one.
        filter_fn: which layers, as `quantize_`.
        plan: the candidates and a cache of times, which gets new ones, and what was chosen; None for an empty one.
        max_error: how large ``norm(y - y_float) / norm(y_float)`` may be for the output of a layer, on the inputs that
            were recorded (the first 1024 rows of each shape); candidates beyond it are not chosen.
        compiled: whether layers are compiled to be measured, with the function of `EPILOGUES` that follows them, by
            default seen in the recorded run; None: whether ``model`` is.
        epilogues: such functions, by the names of layers; those that are seen count for other layers.
        shapes: of inputs, by the names of layers, in the place of a call; errors are then on random numbers.
        measure: ``"missing"``, what the plan has no time for, ``"again"``, all, or ``"never"``: a plan from another
            version or device, or of another model, is an error. None for ``"never"`` unless the plan is empty.
        timer: ``timer(call, case, candidate)`` gives the seconds, or any other cost, of ``call()``.
        progress: what the list of measurements is run through, such as ``tqdm.tqdm``; None: nothing is shown.
    Returns:
        The model.
    Raises:
        ValueError: no linear layer, a plan that does not fit, both ``example`` and ``shapes``, a name that no layer
            has, weights with NaN or infinities. RuntimeError: no linear layer was called, or it is under autocast.
            TypeError: arguments of another kind.
    """
    if shapes is not None and (example or manual):
        raise ValueError("`shapes` must not be given with `example` or `manual`, which record them")
    inner = getattr(model, "_orig_mod", model)
    compiled = inner is not model if compiled is None else compiled
    session = _session(inner, filter_fn, plan, max_error, compiled, epilogues or {}, measure, timer, progress)
    if shapes is not None:
        session.take_shapes(shapes)
    elif example:
        session.record(example, {})
    if shapes is None and (manual or not example):
        _wait(model, session, manual)
    else:
        session.finish()
    return model


def _session(
    model: nn.Module,
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
    layers: dict[str, Any] = dict(taken(model, is_linear if filter_fn is None else filter_fn))
    check_layers(
        layers, [f"'{name}' ({type(one).__name__})" for name, one in layers.items() if not is_linear(one, name)]
    )
    check_bound(max_error)
    check_epilogues(epilogues, layers)
    place = _place(next(iter(layers.values())).weight, compiled)
    plan = Plan() if plan is None else plan
    return _Session(model, layers, plan, place, max_error, measure, timer, progress, filter_fn, dict(epilogues))


def _place(weight: Tensor, compiled: bool) -> Place:
    if weight.is_cuda:
        device = torch.cuda.get_device_name(weight.device)
    else:
        device = f"{weight.device.type}: {processor()}, {torch.get_num_threads()} threads"
    return Place(f"torch {torch.__version__}", samebits_version(), device, compiled)


@dataclass
class _Session:
    """What one model was seen to do, and how it is measured."""

    model: nn.Module
    layers: dict[str, Any]
    plan: Plan
    place: Place
    max_error: float | None
    measure: str | None
    timer: Timer
    progress: Progress | None
    filter_fn: Filter | None
    given: dict[str, str]  # epilogues
    calls: dict[str, dict[Case, int]] = field(default_factory=dict)
    inputs: dict[tuple[str, Case], Tensor] = field(default_factory=dict)  # if errors are asked for
    recording: bool = False

    def record(self, args: Any, kwargs: Any) -> None:
        """Runs the model, and counts what its layers compute."""
        seen = _Seen(self)
        handles = [
            layer.register_forward_hook(seen.hook(name), with_kwargs=True) for name, layer in self.layers.items()
        ]
        self.recording = True
        try:
            with evaluating(self.model), seen:
                self.model(*args, **kwargs)
        finally:
            self.recording = False
            for handle in handles:
                handle.remove()
        for name, case, x in seen.calls:
            self.count(name, case)
            if x is not None:
                self.inputs.setdefault((name, case), x)

    def case(self, name: str, shape: Sequence[int], epilogue: str = "") -> Case:
        """What a layer computes on an input of this shape."""
        layer = self.layers[name]
        weight = (layer.weight.shape[0], layer.weight.shape[1])
        epilogue = self.given.get(name, epilogue) if self.place.compiled else ""
        return Case(prod(shape[:-1]), weight, dtype_name(layer.weight.dtype), layer.bias is not None, epilogue)

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
                check_shape(name, shape, self.layers[name].weight.shape[1])
                self.count(name, self.case(name, shape))

    def finish(self) -> None:
        """Measures what the plan lacks, chooses, and swaps."""
        if not self.calls:
            raise RuntimeError(f"autoquant: none of the layers was called: {', '.join(map(repr, self.layers))}")
        plan, calls = self.plan, {name: self.calls.get(name, {}) for name in self.layers}
        lacking = to_measure(plan, self.place, calls, self.measure)
        owners = {case: name for name in reversed(calls) for case in calls[name]}
        with torch.no_grad():
            for case, candidate in self.progress(lacking) if self.progress else lacking:
                plan.times[self.place, case, candidate] = self._seconds(owners[case], case, candidate)
            errors = {} if self.max_error is None else {name: self._errors(name) for name in self.calls}
        made = choices(plan, self.place, calls, errors, self.max_error)
        configs = ModuleConfigs({name: plan.candidates.get(one.chosen) for name, one in made.items()})
        quantize_(self.model, configs, self.filter_fn)
        plan.layers = made

    def _seconds(self, name: str, case: Case, candidate: str) -> float:
        config = self.plan.candidates[candidate]
        if not fits(config, case):
            return float("inf")
        layer = self.layers[name]
        call = _trial(self._weight(name, config), layer.bias, case, self.place.compiled)
        return check_seconds(self.timer(call, case, candidate), case, candidate)

    def _weight(self, name: str, config: Config | None) -> Tensor:
        w = self.layers[name].weight.detach()
        if config is None:
            return w  # type: ignore[no-any-return]  # of Any
        return checked(name, lambda: quant_weight(config.weight, w, None, config.act_quant, config.layout))

    def _errors(self, name: str) -> dict[str, float]:
        """The error of each candidate that fits, over all inputs of a layer."""
        layer = self.layers[name]
        inputs = [self.inputs.get((name, case), _random(case, layer.weight)) for case in self.calls[name]]
        x = torch.cat([x[:KEPT] for x in inputs])
        want = F.linear(x, layer.weight, layer.bias)
        return {
            one: _relative_error(F.linear(x, self._weight(name, config), layer.bias), want)
            for one, config in self.plan.candidates.items()
            if one != FLOAT and all(fits(config, case) for case in self.calls[name])
        }


class _Seen(TorchFunctionMode):
    """The calls of layers in one run, and the function that takes what a layer gave."""

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self.session = session
        self.calls: list[tuple[str, Case, Tensor | None]] = []
        self.output: Any = None  # of the last layer

    def hook(self, name: str) -> Callable[..., None]:
        """For a layer, behind its call."""
        return lambda module, args, kwargs, y: self.seen(name, args[0] if args else kwargs["input"], y)

    def seen(self, name: str, x: Tensor, y: Tensor) -> None:
        """A layer took ``x`` and gave ``y``."""
        if torch.is_autocast_enabled(x.device.type):
            raise RuntimeError("autoquant measures without autocast: leave it, or convert the model to the dtype")
        kept = None if self.session.max_error is None else x.detach().reshape(-1, x.shape[-1])[:KEPT].clone()
        self.calls.append((name, self.session.case(name, x.shape), kept))
        self.output = y

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function; where it takes what a layer gave, it follows that."""
        if func in FUNCTIONS and args and args[0] is self.output:
            name, case, x = self.calls[-1]
            shape = (case.rows, case.weight[1])
            self.calls[-1] = name, self.session.case(name, shape, FUNCTIONS[func]), x
            self.output = None
        return func(*args, **(kwargs or {}))


def _random(case: Case, weight: Tensor) -> Tensor:
    """The same normal numbers at each call; other draws of the program go on as they would."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(case.rows, case.weight[1], generator=generator).to(weight.device, weight.dtype)


def _trial(weight: Tensor, bias: Tensor | None, case: Case, compiled: bool) -> Callable[[], object]:
    """A call of a layer, with what follows it, which returns when it is done."""
    x, name = _random(case, weight), case.epilogue
    bias = None if bias is None else bias.detach()
    follows = getattr(F, name) if hasattr(F, name) else getattr(torch, name) if name else None

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = F.linear(x, weight, bias)
        return y if follows is None else follows(y)

    run: Any = layer
    if compiled:  # Dynamo keeps its programs by the code of a function, and few of one
        code = FunctionType(layer.__code__.replace(), globals(), closure=layer.__closure__)
        run = torch.compile(code, fullgraph=True, dynamic=False)

    def done() -> object:
        y = run(x, weight, bias)
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        return y

    return done


def _relative_error(y: Tensor, want: Tensor) -> float:
    """``norm(y - want) / norm(want)``; infinite where that is no number."""
    difference = torch.linalg.vector_norm(y.double() - want.double()).item()
    size = torch.linalg.vector_norm(want.double()).item()
    if difference == 0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if error == error else float("inf")


def _wait(model: nn.Module, session: _Session, manual: bool) -> None:
    """Lets the next calls of a model be recorded, and the first of them finish unless that is done by hand."""
    own: Any = session.model  # what is compiled hands on its attributes

    def finalize_autoquant() -> None:
        session.finish()
        handle.remove()
        del own.finalize_autoquant

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if session.recording:
            return
        session.record(args, kwargs)
        if not manual:
            finalize_autoquant()

    disable: Any = torch.compiler.disable  # a program of the model computes; it does not measure
    handle = model.register_forward_pre_hook(disable(before), with_kwargs=True)
    own.finalize_autoquant = finalize_autoquant
