"""What a result depends on besides the code: versions of all libraries, Python, system, processor; switches of XLA."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNKEPT = ("xla_cpu_enable_fast_math",)  # which may reorder, approximate, and forget NaN
LIBRARIES = ("samebits", "numpy", "ml_dtypes", "torch", "jax", "jaxlib", "flax", "safetensors")


def versions() -> dict[str, str]:
    """Name and version of everything that takes part; a library that is not installed says so. Imports none of them."""
    found = {name: _version(name) for name in LIBRARIES}
    return found | {"Python": platform.python_version(), "system": platform.platform(), "processor": processor()}


def switches() -> tuple[str, ...]:
    """Those in ``XLA_FLAGS`` with which modes of JAX are not promised the same bits. The last of each name counts."""
    given = (token.lstrip("-").partition("=") for token in os.environ.get("XLA_FLAGS", "").split())
    last = {name: value.lower() for name, _, value in given}
    return tuple(f"--{name}=true" for name in UNKEPT if last.get(name, "false") in ("", "true", "1", "t", "y", "yes"))


def processor() -> str:
    """Name of the CPU as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
