"""What a result depends on besides the code: versions of all libraries, Python, the operating system, the processor."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("samebits", "numpy", "ml_dtypes", "torch", "jax", "jaxlib", "flax", "safetensors")


def versions() -> dict[str, str]:
    """Name and version of everything that takes part; a library that is not installed says so. Imports none of them."""
    found = {name: _version(name) for name in LIBRARIES}
    return found | {"Python": platform.python_version(), "system": platform.platform(), "processor": processor()}


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
