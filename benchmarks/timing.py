"""Timing side by side: every competitor once a round, on the same machine; medians over rounds."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

Program = Callable[[], object]


def medians(programs: Mapping[str, Program], rounds: int, seconds: float = 0.02) -> dict[str, float]:
    """Median seconds per call of each program; arguments as `samples_of`."""
    return {name: statistics.median(values) for name, values in samples_of(programs, rounds, seconds).items()}


def samples_of(programs: Mapping[str, Program], rounds: int, seconds: float = 0.02) -> dict[str, list[float]]:
    """Seconds per call of each program, one number a round.

    Args:
        programs: callables that return only when their result is ready.
        rounds: how often each is measured. Every round has an order of its own, since thread pools of one framework
            that are still spinning slow down whatever comes next.
        seconds: least length of one measurement; short programs are called repeatedly within it.
    """
    repeats = {name: _repeats(program, seconds) for name, program in programs.items()}
    samples: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(names)
        for name in names:
            programs[name]()
            samples[name].append(_sample(programs[name], repeats[name]))
    return samples


def _repeats(program: Program, seconds: float) -> int:
    """Calls that take so long. Found by doubling: one call alone may take ten times as long as it does in a row."""
    for _ in range(3):  # compile, allocate, warm up
        program()
    calls = 1
    while (total := calls * _sample(program, calls)) < seconds / 2:
        calls *= 2
    return max(1, round(calls * seconds / total))


def _sample(program: Program, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        program()
    return (time.perf_counter() - start) / repeats
