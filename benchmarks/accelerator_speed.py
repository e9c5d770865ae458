"""Speed of fake quantization on a device, beside a copy of the same bytes and what torch and torchao have.

float32, int8 per tensor, a scale that is given. Calls are started one after the other and waited for together, as a
training step does; figures are medians over rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import Program, medians

from samebits.core import QParams, catalog
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.proofs.modes.devices import in_jax, torch_place, way_of

Array = NDArray[Any]
Row = dict[str, Any]
ELEMENTS, FEW = 1 << 26, 1 << 16
IN_A_ROW = 20
BYTES = {"forward": 8, "forward and backward": 20}  # of each element: x, y; and x, g and its gradient
ROUNDS = 15


def speed(modes: Sequence[str], quick: bool) -> Iterator[Row]:
    """A row for each program, with its time relative to a copy, and to copies of as many bytes as it must move."""
    x = np.random.default_rng(0).standard_normal(FEW if quick else ELEMENTS, np.float32)
    torch_mode = next(mode for mode in modes if way_of(mode).framework == "torch")
    jax_mode = next(mode for mode in modes if way_of(mode).framework == "jax")
    for direction, moved in BYTES.items():
        with in_jax(jax_mode):
            found = {
                "torch": in_torch(torch_mode, x, direction != "forward"),
                "jax": in_jax_programs(x, direction != "forward"),
            }
            for framework, all_of_them in found.items():
                programs, broken = apart(all_of_them)
                yield from ({"framework": framework, "direction": direction, **row} for row in broken)
                seconds = medians(programs, 2 if quick else ROUNDS)
                for name, one in seconds.items():
                    ratio = one / seconds["copy"]
                    yield {
                        "framework": framework,
                        "program": name,
                        "direction": "copy" if name == "copy" else direction,
                        "ms": round(one / IN_A_ROW * 1e3, 4),
                        "of a copy": round(ratio, 3),
                        "of copies of its bytes": round(ratio if name == "copy" else ratio * 8 / moved, 3),
                    }


def apart(programs: Mapping[str, Program]) -> tuple[Mapping[str, Program], list[Row]]:
    """Programs that run, and rows for others: peers change from release to release; ours, and a copy, must run."""
    usable, broken = dict(programs), list[Row]()
    for name, program in programs.items():
        try:
            program()
        except Exception as error:  # of any kind: they are others'
            if name == "copy":
                raise
            del usable[name]
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            broken.append({"program": name, "failed" if name.startswith("samebits") else "left out": reason})
    return usable, broken


def in_torch(mode: str, x: Array, backward: bool) -> Mapping[str, Program]:
    """Programs of torch; torchao's where that is installed."""
    import torch

    from samebits import torch_frontend

    q, place = catalog["int8_per_tensor"], torch_place(mode)
    data = to_torch(x, place)
    out, g, scale = torch.empty_like(data), torch.ones_like(data), torch.full((), 0.03, device=place)
    zero = torch.zeros((), dtype=torch.int32, device=place)

    def textbook(v: torch.Tensor) -> torch.Tensor:
        quotient = v / scale
        rounded = quotient + (torch.round(quotient) - quotient).detach() if backward else torch.round(quotient)
        return torch.clamp(rounded, -128, 127) * scale

    def ours(v: torch.Tensor) -> torch.Tensor:
        return torch_frontend.fake_quantize(q, v, QParams(scale))

    forwards: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "textbook, compiled": torch.compile(textbook, fullgraph=True),
        "samebits, compiled": torch.compile(ours, fullgraph=True),
        "torch.fake_quantize_per_tensor_affine": lambda v: torch.fake_quantize_per_tensor_affine(
            v, scale, zero, -128, 127
        ),
    }
    try:
        from torchao.quantization.quant_primitives import _fake_quantize_affine

        forwards["torchao, compiled"] = torch.compile(
            lambda v: _fake_quantize_affine(v, tuple(v.shape), scale, zero, torch.int8, -128, 127), fullgraph=True
        )
    except ImportError:
        pass

    def several(call: Callable[[], object]) -> Program:
        def program() -> None:
            for _ in range(IN_A_ROW):
                call()
            if place == "cuda":
                torch.cuda.synchronize()

        return program

    def both(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        leaf = data.detach().requires_grad_()
        return (lambda: torch.autograd.grad(forward(leaf), leaf, g)) if backward else lambda: forward(data)

    return {"copy": several(lambda: out.copy_(data))} | {name: several(both(f)) for name, f in forwards.items()}


def in_jax_programs(x: Array, backward: bool) -> Mapping[str, Program]:
    """Programs of JAX."""
    import jax
    import jax.numpy as jnp

    from samebits import jax_backend

    q, data, scale = catalog["int8_per_tensor"], to_jax(x), jnp.float32(0.03)
    g = jnp.ones_like(data)

    def textbook(v: jax.Array, s: jax.Array) -> jax.Array:
        quotient = v / s
        rounded = quotient + jax.lax.stop_gradient(jnp.round(quotient) - quotient) if backward else jnp.round(quotient)
        return jnp.clip(rounded, -128, 127) * s

    def ours(v: jax.Array, s: jax.Array) -> jax.Array:
        return jax_backend.fake_quantize(q, v, QParams(s))

    def several(function: Callable[..., Any]) -> Program:
        def program() -> None:
            for _ in range(IN_A_ROW):
                last = function()
            jax.block_until_ready(last)  # type: ignore[no-untyped-call]

        return program

    def call(forward: Callable[..., Any]) -> Callable[[], Any]:
        if not backward:
            compiled = jax.jit(forward)
            return lambda: compiled(data, scale)

        def both(v: jax.Array, s: jax.Array, cotangent: jax.Array) -> Any:
            y, pull = jax.vjp(lambda u: forward(u, s), v)
            return y, pull(cotangent)[0]

        compiled_both = jax.jit(both)
        return lambda: compiled_both(data, scale, g)

    copy = jax.jit(jnp.copy)
    forwards = {"textbook, jit": textbook, "samebits, jit": ours}
    return {"copy": several(lambda: copy(data))} | {name: several(call(f)) for name, f in forwards.items()}
