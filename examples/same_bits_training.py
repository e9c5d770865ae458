"""Two trainings in both frameworks: one whose runs part at the first step, and one that ends at identical weights.

    python examples/same_bits_training.py [--steps N] [--modes NAME ...] [--plot FILE.svg]

**Ordinary training.** The digit classifier, in float and with weights and activations quantized to 4 bits as textbooks
have it, by SGD, from the same weights, on the same data in the same order in every mode. Shown are how far the loss of
each mode is from that of eager torch, step by step, and the first quantity of the first step that has other bits: what
is quantized, an output of a layer, the loss, a gradient.

**Exact training.** A perceptron of 64, 32 and 10 neurons whose forward pass, backward pass and SGD step are made of
operations of this project alone, written once for all three rooms: activations, weights and gradients are quantized to
8 bits, every product is a contraction of their codes, and the weights themselves are multiples of 2**-13. Exit code 1
unless all modes end at the same bits.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, catalog
from samebits.proofs import differences
from samebits.proofs.inputs.digits import accuracy, batches, held_out, images

Array = NDArray[Any]
Tensors = dict[str, Any]
Distances = Mapping[str, list[float]]
MODES = ("numpy", "torch eager", "torch compiled", "jax eager", "jax jit")
BATCH = 64
RATE = 2.0**-3  # of ordinary training
SIGNED, UNSIGNED = catalog["int8_per_tensor"], catalog["uint8_per_tensor"]
KEPT = SIGNED.replace(bits=16)  # what weights are rounded to after a step
GRID = np.float32(2.0**-13)  # its scale
EXACT_RATE = np.float32(2.0**-8)  # a power of two: its product with a gradient is exact
HIDDEN = 32


def data(steps: int) -> list[tuple[Array, Array]]:
    """Batches of images, float32 ``(64, 1, 8, 8)``, and labels, one-hot float32 ``(64, 10)``."""
    x, y = images()
    train = ~held_out()
    epochs = steps * BATCH // int(train.sum()) + 2
    found = [(a.astype(np.float32), np.eye(10, dtype=np.float32)[b]) for a, b in batches(x[train], y[train], epochs, 0)]
    return found[:steps]


# --- ordinary training: the same program in torch and in JAX ----------------------------------------------------------


def float_weights() -> dict[str, Array]:
    """Where ordinary training starts."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "linear": (10, 512)}
    sizes = {name: np.prod(shape[1:]) ** -0.5 for name, shape in shapes.items()}
    return {name: (rng.uniform(-1, 1, shapes[name]) * size).astype(np.float32) for name, size in sizes.items()}


def torch_fake(x: Any) -> Any:
    """4 bits by the operation of torch; straight through."""
    scale = (x.detach().abs().amax() / 7).clamp(min=1e-9)
    return torch.fake_quantize_per_tensor_affine(x, scale, torch.zeros((), dtype=torch.int32), -8, 7)


def torch_forward(w: Tensors, x: Any, target: Any, quantized: bool) -> Tensors:
    """Every quantity of the forward pass by its name, in order; the loss is the last."""
    conv, seen = torch.nn.functional.conv2d, {}

    def operands(name: str, x: Any) -> tuple[Any, Any]:
        if not quantized:
            return x, w[name]
        seen[f"input of {name}"], seen[f"weight of {name}"] = both = torch_fake(x), torch_fake(w[name])
        return both

    seen["conv1"] = first = conv(*operands("conv1", x), padding=1)
    seen["conv2"] = second = conv(*operands("conv2", torch.relu(first)), stride=2, padding=1)
    flat, weight = operands("linear", torch.relu(second).flatten(1))
    seen["linear"] = logits = flat @ weight.T
    seen["loss"] = -(torch.log_softmax(logits, 1) * target).sum(1).mean()
    return seen


def torch_step(w: Tensors, x: Any, target: Any, quantized: bool) -> tuple[Tensors, Tensors]:
    """The weights after a step of SGD, and every quantity of it."""
    leaves = {name: value.detach().requires_grad_() for name, value in w.items()}
    seen = torch_forward(leaves, x, target, quantized)
    grads = torch.autograd.grad(seen["loss"], list(leaves.values()))
    seen = {name: value.detach() for name, value in seen.items()}
    for name, grad in reversed(list(zip(w, grads, strict=True))):
        seen[f"gradient of {name}"] = grad
    return {name: w[name] - RATE * grad for name, grad in zip(w, grads, strict=True)}, seen


def jax_fake(x: Any) -> Any:
    """4 bits as papers have it; straight through."""
    scale = jnp.maximum(lax.stop_gradient(jnp.abs(x).max()) / 7, 1e-9)
    return x + lax.stop_gradient(jnp.clip(jnp.round(x / scale), -8, 7) * scale - x)


def jax_forward(w: Tensors, x: Any, target: Any, quantized: bool) -> tuple[Any, Tensors]:
    """The loss, and what `torch_forward` returns."""
    seen: Tensors = {}

    def operands(name: str, x: Any) -> tuple[Any, Any]:
        if not quantized:
            return x, w[name]
        seen[f"input of {name}"], seen[f"weight of {name}"] = both = jax_fake(x), jax_fake(w[name])
        return both

    def conv(name: str, x: Any, stride: int) -> Any:
        layouts = ("NCHW", "OIHW", "NCHW")
        strides, margins = (stride, stride), ((1, 1), (1, 1))
        return lax.conv_general_dilated(*operands(name, x), strides, margins, dimension_numbers=layouts)

    seen["conv1"] = first = conv("conv1", x, 1)
    seen["conv2"] = second = conv("conv2", jnp.maximum(first, 0), 2)
    flat, weight = operands("linear", jnp.maximum(second, 0).reshape(len(x), -1))
    seen["linear"] = logits = flat @ weight.T
    seen["loss"] = -(jax.nn.log_softmax(logits) * target).sum(1).mean()
    return seen["loss"], seen


def jax_step(w: Tensors, x: Any, target: Any, quantized: bool) -> tuple[Tensors, Tensors]:
    """As `torch_step`."""
    grads, seen = jax.grad(partial(jax_forward, quantized=quantized), has_aux=True)(w, x, target)
    seen |= {f"gradient of {name}": grads[name] for name in reversed(w)}
    return {name: w[name] - RATE * grads[name] for name in w}, seen


def ordinary(mode: str, steps: int, quantized: bool) -> Iterator[dict[str, Array]]:
    """Every quantity of each step of ordinary training."""
    put, call = in_mode(mode, partial(torch_step, quantized=quantized), partial(jax_step, quantized=quantized))
    weights = {name: put(value) for name, value in float_weights().items()}
    for x, target in data(steps):
        weights, seen = call(weights, put(x), put(target))
        yield {name: np.asarray(value) for name, value in seen.items()}


def in_mode(mode: str, in_torch: Any, in_jax: Any) -> tuple[Callable[[Array], Any], Callable[..., Any]]:
    """How arrays become those of a mode, and the function that runs in it."""
    framework = mode.split()[0]
    put: Any = torch.as_tensor if framework == "torch" else jnp.asarray
    call = in_torch if framework == "torch" else in_jax
    compiled: dict[str, Any] = {"torch compiled": torch.compile, "jax jit": jax.jit}
    return put, compiled[mode](call) if mode in compiled else call


# --- exact training: one program for all three rooms ------------------------------------------------------------------


class Perceptron(NamedTuple):
    """Weights ``(out, in)`` and biases."""

    w1: Any
    b1: Any
    w2: Any
    b2: Any


def exact_weights() -> Perceptron:
    """Where exact training starts: multiples of `GRID`."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        w = rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(shape[1] ** -0.5)
        return core.fake_quantize(KEPT, w, QParams(GRID))

    return Perceptron(drawn(HIDDEN, 64), np.zeros(HIDDEN, np.float32), drawn(10, HIDDEN), np.zeros(10, np.float32))


def exact_step(room: Any, w: Perceptron, x: Any, target: Any, ones: Any, rate: Any, grid: Any) -> Perceptron:
    """One step of SGD on the squared error, by the verbs of ``room``.

    ``x`` is ``(batch, 64)``, ``target`` ``(batch, 10)``, ``ones`` ``(1, batch)``. What is no verb rounds once: the
    difference from the target, and that of a weight and its move; a mask selects. Quantizing to 8 bits without a sign
    is the ReLU.
    """
    choose, linear, fake = room.choose_qparams, room.linear, room.fake_quantize
    of_x, of_ones, of_w1, of_w2 = choose(UNSIGNED, x), choose(SIGNED, ones), choose(SIGNED, w.w1), choose(SIGNED, w.w2)
    hidden = linear(UNSIGNED, x, of_x, SIGNED, w.w1, of_w1, w.b1)
    of_hidden = choose(UNSIGNED, hidden)
    error = linear(UNSIGNED, hidden, of_hidden, SIGNED, w.w2, of_w2, w.b2) - target
    of_error = choose(SIGNED, error)
    back = linear(SIGNED, error, of_error, SIGNED, w.w2.T, of_w2) * (fake(UNSIGNED, hidden, of_hidden) > 0)
    of_back = choose(SIGNED, back)
    moves = Perceptron(
        linear(SIGNED, back.T, of_back, UNSIGNED, x.T, of_x),
        linear(SIGNED, back.T, of_back, SIGNED, ones, of_ones)[:, 0],
        linear(SIGNED, error.T, of_error, UNSIGNED, hidden.T, of_hidden),
        linear(SIGNED, error.T, of_error, SIGNED, ones, of_ones)[:, 0],
    )
    return Perceptron(*(fake(KEPT, v - move * rate, QParams(grid)) for v, move in zip(w, moves, strict=True)))


def exact(mode: str, steps: int) -> Perceptron:
    """The weights at the end of exact training, NumPy arrays."""
    rooms = {"numpy": core, "torch": torch_frontend, "jax": jax_backend}
    room = rooms[mode.split()[0]]

    def step(*arrays: Any) -> Any:
        return tuple(exact_step(room, Perceptron(*arrays[:4]), *arrays[4:]))

    put, call = (np.asarray, step) if mode == "numpy" else in_mode(mode, step, step)
    weights = tuple(map(put, exact_weights()))
    constants = put(np.ones((1, BATCH), np.float32)), put(np.asarray(EXACT_RATE)), put(np.asarray(GRID))
    for x, target in data(steps):
        weights = call(*weights, put(x.reshape(len(x), -1)), put(target), *constants)
    return Perceptron(*(np.asarray(v) for v in weights))


def held_out_accuracy(w: Perceptron) -> float:
    """Of the exact perceptron, in percent; by the specification."""
    x, labels = images()
    x = x.reshape(len(x), -1)
    choose, linear = core.choose_qparams, core.linear
    hidden = linear(UNSIGNED, x, choose(UNSIGNED, x), SIGNED, w.w1, choose(SIGNED, w.w1), w.b1)
    logits = linear(UNSIGNED, hidden, choose(UNSIGNED, hidden), SIGNED, w.w2, choose(SIGNED, w.w2), w.b2)
    return accuracy(logits, labels)


# --- what is shown ----------------------------------------------------------------------------------------------------


def compare_ordinary(modes: list[str], steps: int, console: Console, *, quantized: bool) -> Distances:
    """Prints how ordinary trainings part; the distance of the losses of each mode from those of the first."""
    runs = {mode: list(ordinary(mode, steps, quantized)) for mode in modes}
    first, others = modes[0], modes[1:]
    table = Table("mode", "first other bits", "elements", "loss after 1", f"after {steps}", "at most")
    distances = {}
    for mode in others:
        pairs = zip(runs[first], runs[mode], strict=True)
        gaps = [abs(float(a["loss"]) - float(b["loss"])) for a, b in pairs]
        place, count = parting(runs[first], runs[mode])
        table.add_row(mode, place, count, f"{gaps[0]:.1e}", f"{gaps[-1]:.1e}", f"{max(gaps):.1e}")
        distances[mode] = gaps
    loss, kind = float(runs[first][-1]["loss"]), "in 4 bits" if quantized else "in float"
    console.print(f"\nOrdinary training {kind}: how far losses are from that of {first}, which ends at {loss:.4f}")
    console.print(table)
    return distances


def parting(a: list[dict[str, Array]], b: list[dict[str, Array]]) -> tuple[str, str]:
    """The first quantity of two runs with other bits, and how many elements of it."""
    for step, (here, there) in enumerate(zip(a, b, strict=True), 1):
        for name in here:
            found = differences(here[name], there[name])
            if found.differing:
                return f"step {step}, {name}", f"{found.differing:,} of {here[name].size:,}"
    return "none", "0"


def compare_exact(modes: list[str], steps: int, console: Console) -> bool:
    """Prints where exact trainings end; whether that is one place."""
    ends = {mode: exact(mode, steps) for mode in modes}
    table = Table("mode", "SHA-256 of the weights", "held-out digits right")
    for mode, end in ends.items():
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in end)).hexdigest()
        table.add_row(mode, digest[:16], f"{held_out_accuracy(end):.1f} %")
    console.print(f"\nExact training, {steps} steps: the same bits in every mode")
    console.print(table)
    return all(differences(tuple(ends[modes[0]]), tuple(end)).same for end in ends.values())


def plot(panels: Mapping[str, Distances], first: str, path: str) -> None:
    """Draws how far the losses part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (title, distances) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for mode, gaps in distances.items():
            axes.plot(np.arange(1, len(gaps) + 1), np.maximum(gaps, 1e-8), label=mode, linewidth=1)
        axes.set(xlabel="step", title=title, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel=f"distance of the loss from {first}")
    figure.axes[-1].legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="default %(default)s")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="NAME", help="default: all five")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw how far the losses part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more
    console = Console()
    floats = [mode for mode in arguments.modes if mode != "numpy"]
    panels = {
        title: compare_ordinary(floats, arguments.steps, console, quantized=quantized)
        for title, quantized in (("float", False), ("4 bits", True))
    }
    if arguments.plot:
        plot(panels, floats[0], arguments.plot)
    return 0 if compare_exact(list(arguments.modes), arguments.steps, console) else 1


if __name__ == "__main__":
    sys.exit(main())
