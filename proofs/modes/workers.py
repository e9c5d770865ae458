"""Running jobs in a few fresh processes, results as they come."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from itertools import pairwise
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """``function(job)`` for every job, in the order in which they finish.

    Each process works through consecutive jobs, so that what neighbours share is compiled once; one that has no more
    takes the last of the longest list of another.

    Args:
        function: a function of a module (it is found again by its name in the other process).
        workers: how many processes, started afresh so that no framework is shared; 0 to stay in this one, in order.
    Raises:
        Whatever ``function`` raises; jobs that have not begun are dropped then.
    """
    todo = list(jobs)
    if not workers:
        yield from map(function, todo)
        return
    queues = [deque(part) for part in _parts(todo, workers)]
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=wait_idly)) for _ in queues]
        running: dict[Future[Result], int] = {}

        def start(worker: int) -> None:
            longest = max(queues, key=len)
            if longest:
                job = queues[worker].popleft() if queues[worker] else longest.pop()
                running[pools[worker].submit(function, job)] = worker

        for worker in range(len(queues)):
            start(worker)
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                start(running.pop(done))
                yield done.result()


def wait_idly() -> None:
    """Threads of OpenMP that wait for others let them run, if no library has started OpenMP yet.

    They spin otherwise, and several processes on few cores then wait for each other: ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _parts(jobs: Sequence[Job], count: int) -> list[Sequence[Job]]:
    """The jobs cut into consecutive parts of about the same length, none of them empty."""
    count = min(count, len(jobs))
    ends = [len(jobs) * i // count for i in range(count + 1)] if count else [0]
    return [jobs[start:end] for start, end in pairwise(ends)]
