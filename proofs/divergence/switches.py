"""Which switches of a compiler take a difference away: the smallest sets of them, found by trying.

Switches are those that inductor and XLA take for one program, so that nothing else in the process is changed.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import combinations
from typing import Any

from numpy.typing import NDArray

from ..inputs.compare import differences
from .causes import Program, flat, function_of, run, trace
from .strict import evaluate, outputs

Array = NDArray[Any]
TORCH: Mapping[str, Mapping[str, Any]] = {
    "torch._inductor.config.emulate_precision_casts = True": {"emulate_precision_casts": True},
    "torch._inductor.config.eager_numerics.division_rounding = True": {"eager_numerics.division_rounding": True},
    'torch.compile(backend="aot_eager")': {},
}
JAX: Mapping[str, Mapping[str, Any]] = {
    "xla_disable_hlo_passes=algsimp": {"xla_disable_hlo_passes": "algsimp"},
    "xla_allow_excess_precision=false": {"xla_allow_excess_precision": False},
    "xla_disable_hlo_passes=fusion": {"xla_disable_hlo_passes": "fusion"},
    "xla_backend_optimization_level=0": {"xla_backend_optimization_level": 0},
}
AT_MOST = 2  # switches in a set


def switches_of(program: Program, mode: str) -> tuple[tuple[str, ...], ...]:
    """The smallest sets of switches with which the mode gives what the program says as it is written.

    The empty set alone where it does so without any; nothing where no set of `AT_MOST` does, and for eager torch.
    """
    graph = trace(program, mode.split()[0])
    written = outputs(graph, evaluate(graph, program.arguments))

    def same(got: list[Array]) -> bool:
        return all(differences(a, b).same for a, b in zip(written, got, strict=True))

    if same(run(program, mode)):
        return ((),)
    known = TORCH if mode == "torch compiled" else JAX if mode.startswith("jax") else {}
    runs = _torch if mode == "torch compiled" else _jit if mode == "jax jit" else _eager
    for size in range(1, AT_MOST + 1):
        found = [names for names in combinations(known, size) if _tried(runs, program, names, same)]
        if found:
            return tuple(found)
    return ()


def _tried(
    runs: Callable[..., list[Array]], program: Program, names: tuple[str, ...], same: Callable[[list[Array]], bool]
) -> bool:
    """False, too, where a release does not know the switch."""
    try:
        return same(runs(program, names))
    except (AttributeError, RuntimeError, ValueError):
        return False


def _torch(program: Program, names: tuple[str, ...]) -> list[Array]:
    import torch
    from torch._inductor import config

    from ..modes.arrays import to_torch

    torch.compiler.reset()
    backend = "aot_eager" if any(not TORCH[name] for name in names) else "inductor"
    with ExitStack() as stack, torch.no_grad():
        for name in names:
            stack.enter_context(config.patch(dict(TORCH[name])))
        call = torch.compile(function_of(program, "torch"), fullgraph=True, backend=backend)
        return flat(call(*map(to_torch, program.arguments)))


def _jit(program: Program, names: tuple[str, ...]) -> list[Array]:
    import jax

    from ..modes.arrays import to_jax

    return flat(jax.jit(function_of(program, "jax"), compiler_options=_options(names))(*map(to_jax, program.arguments)))


def _eager(program: Program, names: tuple[str, ...]) -> list[Array]:
    """Operation by operation, each compiled with the switches: which is what eager JAX does without them."""
    from .graph_jax import op_by_op

    return flat(op_by_op(function_of(program, "jax"), _options(names), *program.arguments))


def _options(names: tuple[str, ...]) -> dict[str, Any]:
    """Passes of several switches make one list."""
    options: dict[str, Any] = {}
    for name in names:
        for key, value in JAX[name].items():
            options[key] = f"{options[key]},{value}" if key in options else value
    return options
