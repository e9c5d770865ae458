"""The devices that modes run on: the CPU, and a GPU of NVIDIA.

    =======================  ==================================================================
    mode                     runs, on a GPU
    =======================  ==================================================================
    ``torch cuda eager``     `samebits.torch_frontend`, operation by operation
    ``torch cuda compiled``  the same in ``torch.compile(fullgraph=True)``, compiled by Triton
    ``jax gpu jit``          `samebits.jax_backend` in one ``jax.jit`` program
    =======================  ==================================================================

Arrays go there and back for each call. On a machine with a GPU the modes of the CPU stay on the CPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

ACCELERATED = ("torch cuda eager", "torch cuda compiled", "jax gpu jit")
DEVICES = ("cpu", "cuda")
# Where torch and JAX put arrays for a device.
PLACES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"torch": MappingProxyType({"cpu": "cpu", "cuda": "cuda"}), "jax": MappingProxyType({"cpu": "cpu", "cuda": "gpu"})}
)


class Way(NamedTuple):
    """What the name of a mode says: ``framework`` (None for ``numpy``), ``device`` of `DEVICES`, and how it runs."""

    framework: Literal["torch", "jax"] | None
    device: str
    how: str  # "numpy", "eager", "compiled" or "jit"

    @property
    def compiled(self) -> bool:
        """Whether a whole program is compiled."""
        return self.how in ("compiled", "jit")


def way_of(mode: str) -> Way:
    """What the name of a mode says. Of `execution.MODES` and `ACCELERATED`; no other name is looked for here."""
    first, *rest = mode.split()
    framework: Any = first if first in ("torch", "jax") else None
    return Way(framework, "cuda" if mode in ACCELERATED else "cpu", rest[-1] if rest else first)


def same_way_on(mode: str, device: str) -> str:
    """The mode that does the same on another device; itself where there is none."""
    way = way_of(mode)
    known = (one for one in ACCELERATED if way_of(one).framework == way.framework and way_of(one).how == way.how)
    return next(known, mode) if device == "cuda" else mode


def missing_device(mode: str) -> str | None:
    """Why a framework has no device for the mode, in one line, or None. It imports the framework of a mode of a GPU."""
    way = way_of(mode)
    if way.device == "cpu":
        return None
    found = _cuda_of_torch() if way.framework == "torch" else _gpu_of_jax()
    return found or (_triton_of_torch() if way.how == "compiled" else None)


def _cuda_of_torch() -> str | None:
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device"


def _triton_of_torch() -> str | None:
    from torch.utils._triton import has_triton

    return None if has_triton() else "torch finds no Triton, which compiles for CUDA devices"


def _gpu_of_jax() -> str | None:
    import jax

    try:
        jax.devices(PLACES["jax"]["cuda"])
    except RuntimeError:  # no such platform, or one that cannot be initialized
        return f"jax {jax.__version__} finds no GPU"
    return None


def torch_place(mode: str) -> str:
    """The device of torch on which the tensors of a mode lie."""
    return PLACES["torch"][way_of(mode).device]


@contextmanager
def in_jax(mode: str) -> Iterator[None]:
    """JAX puts arrays, and runs programs, where the mode has them. Without a GPU nothing is changed for the CPU."""
    import jax

    place = PLACES["jax"][way_of(mode).device]
    if place == jax.default_backend():
        yield
        return
    with jax.default_device(jax.devices(place)[0]):
        yield
