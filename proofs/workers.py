"""Running independent jobs in a few fresh processes, results as they come."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """``function(job)`` for every job, in the order in which they finish.

    Args:
        function: a function of a module (it is found again by its name in the other process).
        workers: how many processes, started afresh so that no framework is shared; 0 to stay in this one, in order.
    Raises:
        Whatever ``function`` raises; jobs that have not begun are dropped then.
    """
    if not workers:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(function, job) for job in jobs]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
