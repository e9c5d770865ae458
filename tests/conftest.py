"""What all tests share: Hypothesis draws the same examples at every run; memory is bounded, and its peak is told."""

import gc
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from samebits.proofs.certificates.schedule import give_back_memory, resident_memory
from samebits.proofs.modes.devices import ACCELERATED
from samebits.proofs.modes.execution import without_device
from samebits.proofs.modes.workers import wait_idly

wait_idly()  # one process for each core, each with threads of its own

settings.register_profile(
    "samebits", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("samebits")

THOROUGH = Path(__file__).parent / "thorough.txt"
GOLDEN = 0.6180339887498949  # its multiples lie evenly in [0, 1), and have no period that parameters could have too
LARGE = 1 * 2**30  # bytes of a process, above which the programs of a file that is done are dropped
PEAKS: dict[str, str] = {}  # of each process of `make test`


def slower_than_their_worth() -> dict[str, int]:
    """Tests, with or without their parameters, that `thorough.txt` lists: one in how many cases stays, 0 for none."""
    lines = (line.partition("#")[0].strip() for line in THOROUGH.read_text().splitlines())
    halves = (line.partition(" 1/") if line[-1] != "]" else (line, "", "") for line in lines if line)
    return {name: int(stays or 0) for name, _, stays in halves}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them, as `pytest.mark.thorough` marks others."""
    listed, seen = slower_than_their_worth(), Counter[str]()
    for item in items:
        function = item.nodeid.partition("[")[0]
        stays = listed.get(item.nodeid, listed.get(function, 1))
        if stays == 0 or seen[function] * GOLDEN % 1 >= 1 / stays:
            item.add_marker(pytest.mark.thorough)
        seen[function] += 1
    of_a_gpu = [item for item in items if item.get_closest_marker("cuda")]
    reason = without_device(ACCELERATED) if of_a_gpu else None
    for item in of_a_gpu if reason else ():
        item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


@pytest.fixture(autouse=True, scope="module")
def _drop_programs() -> Iterator[None]:
    """What eager JAX and inductor compiled for one file is of little use to the next, and piles up."""
    yield
    if resident_memory() > LARGE:
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        if "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()
        for found in [f for f in gc.get_objects() if type(f).__name__ == "_lru_cache_wrapper"]:
            if getattr(found, "__module__", None) in (
                "samebits.proofs.modes.programs",
                "samebits.proofs.modes.gradient_of_x",
            ):
                found.cache_clear()
        give_back_memory()


def _peak() -> str:
    """The most memory that this process, and that any process it started and ended, ever held."""
    own, others = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return f"{own:.1f} GiB, its processes {others:.1f} GiB"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist tells the process that prints."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["peak"] = _peak()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker has ended: it told, unless it crashed."""
    PEAKS[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak", "unknown, it crashed")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line at the end."""
    peaks = PEAKS or {"this process": _peak()}
    terminalreporter.write_line("peak memory: " + "; ".join(f"{name} {peak}" for name, peak in sorted(peaks.items())))
