"""Causes: what is planted is found, what a compiler does is named, and what nothing explains is narrowed down."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import catalog
from samebits.proofs.cli.causes import causes_json, causes_of, show_causes
from samebits.proofs.divergence import graph_jax
from samebits.proofs.divergence.causes import Program, explain, explained, first_difference, run, trace
from samebits.proofs.divergence.programs import programs
from samebits.proofs.divergence.strict import CHANGES, Change, candidates, evaluate, outputs
from samebits.proofs.divergence.switches import switches_of
from samebits.proofs.inputs.compare import differences
from samebits.proofs.inputs.knife_edges import knife_edges

Array = NDArray[Any]
SCALE = np.float32(0.1)
X = np.asarray(knife_edges(catalog["int8_per_tensor"], SCALE, None, np.float32))
B = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)


def in_torch(x: torch.Tensor, s: Any, b: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.round(x / s), -128, 127) * s + b


def in_jax(x: jax.Array, s: Any, b: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(x / s), -128, 127) * s + b


def program(dtype: Any = np.float32) -> Program:
    return Program("textbook", tuple(np.asarray(a).astype(dtype) for a in (X, SCALE, B)), in_torch, in_jax)


def changes(program: Program, mode: str) -> dict[str, list[str]]:
    """By the operation, the kinds of its changes; all is explained by them."""
    found = explain(program, mode)
    assert (found.unexplained, found.first) == (0, None)
    assert (found.differing > 0) == bool(found.causes) == bool(found.example)
    names: dict[str, list[str]] = {}
    for cause in found.causes:
        names.setdefault(cause.operation.split(":")[0], []).append(cause.change.kind)
        assert 0 < cause.without <= found.compared
    return names


@pytest.mark.parametrize(
    ("mode", "dtype", "causes", "switches"),
    [
        ("torch eager", np.float32, {}, ((),)),
        ("torch eager", ml_dtypes.bfloat16, {}, ((),)),
        ("jax eager", np.float32, {"div": ["reciprocal"]}, (("xla_disable_hlo_passes=algsimp",),)),
        (
            "jax jit",
            np.float32,
            {"add": ["fused"]},
            (("xla_disable_hlo_passes=fusion",), ("xla_backend_optimization_level=0",)),
        ),
        ("jax jit", ml_dtypes.bfloat16, {}, ((),)),
        (
            "torch compiled",
            ml_dtypes.bfloat16,
            {"": ["wide"]},
            (("torch._inductor.config.emulate_precision_casts = True",), ('torch.compile(backend="aot_eager")',)),
        ),
    ],
)
def test_causes_of_textbook_code(mode: str, dtype: Any, causes: dict[str, list[str]], switches: Any) -> None:
    assert changes(program(dtype), mode) == causes
    assert switches_of(program(dtype), mode) == switches


def test_a_constant_scale_has_two_causes_under_jit() -> None:
    """And the sets of switches are those that take both away."""
    p = Program("constant", (X, B), None, lambda x, b: in_jax(x, 0.1, b))
    assert changes(p, "jax jit") == {"div": ["reciprocal"], "add": ["fused"]}
    assert all("xla_disable_hlo_passes=algsimp" in names and len(names) == 2 for names in switches_of(p, "jax jit"))


def test_subnormals_are_flushed_by_xla() -> None:
    x = np.float32([1e-39, -1e-40, 1e-38, 2.0, 3e-45])
    p = Program("sum", (x, x[::-1].copy()), lambda x, y: x * 0.5 + y, lambda x, y: x * 0.5 + y)
    assert changes(p, "torch eager") == {}
    assert changes(p, "jax jit")[""] == ["flushed"]


# --- what is planted is found -------------------------------------------------------------------------------------


def many(x: Any, s: Any, b: Any) -> Any:
    """A place for every kind of change."""
    scaled = (x / s) * s * b
    return jnp.stack([scaled - b, (x + b) - b, scaled * s + x, x.astype(jnp.bfloat16).astype(jnp.float32) * b / s])


PLACES = candidates(trace(Program("many", (X, SCALE, B), None, many), "jax"))


def test_there_is_a_place_for_every_change() -> None:
    assert {change.kind for change in PLACES} == set(CHANGES)


@pytest.mark.parametrize("planted", PLACES, ids=str)
def test_a_planted_change_is_found(planted: Change) -> None:
    x = np.concatenate([X, np.float32([1e-39, 3e-38, 1e30])])
    b = np.resize(B, x.shape)
    p = Program("many", (x, SCALE, b), None, many)
    graph = trace(p, "jax")
    got = outputs(graph, evaluate(graph, p.arguments, frozenset({planted})))
    found = explained(p, "planted", graph, got)
    assert found.differing > 0
    assert found.unexplained == 0
    assert [cause.change for cause in found.causes] == [planted]


def test_what_is_written_is_what_eager_torch_computes() -> None:
    """Every known operation, on special values, in three dtypes."""
    special = np.float32([0.0, -0.0, 1e-45, -1e-39, 0.5, -1.5, 2.5, 3e38, np.inf, -np.inf, np.nan, 1 / 3])

    def every(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return [
            x + y, x - y, x * y, x / y, -x, x.abs(), x.round(), x.floor(), torch.maximum(x, y), torch.minimum(x, y),
            torch.clamp(x, -1.5, 2), x.to(torch.bfloat16), x.double(), x.half().float(), x / 3, 0.1 * x,
        ]  # fmt: skip

    x, y = (a.ravel() for a in np.meshgrid(special, special))
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        p = Program("every", (x.astype(dtype), y.astype(dtype)), every)
        graph = trace(p, "torch")
        for index, (written, got) in enumerate(
            zip(outputs(graph, evaluate(graph, p.arguments)), run(p, "torch eager"), strict=True)
        ):
            assert differences(written, got).same, (dtype, index)


# --- what no change explains --------------------------------------------------------------------------------------


def test_the_first_operation_of_a_training_step_that_differs_is_named() -> None:
    """Inductor's gelu is not that of eager torch; the product before it is, and all else follows."""
    draw = np.random.default_rng(1)
    w, x = (draw.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (64, 16)))

    def step(w: torch.Tensor, x: torch.Tensor) -> Any:
        def loss(w: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x @ w).square().sum()

        gradient, value = torch.func.grad_and_value(loss)(w)
        return w - 0.1 * gradient, value

    found = explain(Program("step", (w, x), step), "torch compiled")
    assert found.unexplained > 0
    assert found.first is not None
    assert found.first.startswith("gelu: ")
    assert explain(Program("step", (w, x), step), "torch eager").differing == 0


def test_a_wrong_operation_is_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    real = graph_jax.with_all_values

    def wrong(function: Any, *arguments: Array) -> Any:
        traced = real(function, *arguments)
        return lambda *given: [jnp.nextafter(r, jnp.float32(9)) if i == 2 else r for i, r in enumerate(traced(*given))]

    monkeypatch.setattr(graph_jax, "with_all_values", wrong)
    p = Program("chain", (np.float32([0.3, 0.7]),), None, lambda x: jnp.sin(jnp.exp(x) + x) * x)
    graph = trace(p, "jax")
    assert first_difference(p, "jax eager") == graph.operations[2].text


def test_programs_and_modes_are_checked() -> None:
    with pytest.raises(ValueError, match="not written in torch"):
        explain(Program("p", (X,), None, lambda x: x), "torch eager")
    with pytest.raises(ValueError, match="`mode` must be one of"):
        explain(program(), "numpy")


# --- programs by name, and what is shown -----------------------------------------------------------------------------


def of_mine() -> Program:
    """What `samebits diverge tests.proofs.divergence.test_causes:of_mine` takes."""
    return Program("of mine", (X, B), None, lambda x, b: in_jax(x, SCALE, b))


def test_causes_are_shown_and_exported(capsys: pytest.CaptureFixture[str]) -> None:
    found = next(causes_of(programs([f"{__name__}:of_mine"])))
    show_causes(found)
    shown = capsys.readouterr().out
    assert "of mine" in shown
    assert "xla_backend_optimization_level=0" in shown
    assert "a fused multiply-add" in " ".join(shown.replace("│", " ").split())
    kinds = [
        [c["change"]["kind"] for c in one["explanation"]["causes"]]
        for one in json.loads(causes_json(found, ""))["explanations"]
    ]
    assert kinds == [["reciprocal"], ["reciprocal", "fused"]]


def test_targets_are_programs_on_their_knife_edges() -> None:
    found = programs(["textbook", "samebits"])
    assert len(found) == 24
    ours = next(p for p in found if p.name == "samebits, scalar scale, bfloat16, + b")
    assert explain(ours, "torch eager").differing == explain(ours, "jax eager").differing == 0
