"""Jobs in this process, in a few local processes, or on a Dask cluster, by one interface.

Whatever does the work, each job is a function of its argument alone, so results do not depend on it. A process that
dies takes with it only the job it was at, and that job is done again.
"""

import ctypes
import gc
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Pools = MutableSequence[ProcessPoolExecutor]  # of one process each
ATTEMPTS = 4  # of one job whose processes die
CONNECT = 10  # seconds to wait for a scheduler
IN_FLIGHT = 4  # jobs a cluster is given at a time, for each of its threads
MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8  # parameters of glibc's mallopt
_replaceable = False  # whether this process is one of `local_processes`


class FreshProcessWanted(Exception):
    """Raised by a job that is to be done by a new process instead, in place of this one."""


@contextmanager
def local_processes(count: int) -> Iterator[Pools]:
    """Processes for several calls of `run_anywhere`: what they have compiled stays at hand."""
    pools = [_pool(place, count) for place in range(count)]
    try:
        yield pools
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def run_anywhere(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int | Pools = 0, scheduler: str | None = None
) -> Iterator[tuple[int, Result]]:
    """``function(job)`` for every job with the place of the job in the list, in the order in which they finish.

    Args:
        function: a function of a module, found again by its name in other processes.
        workers: local processes, or how many; 0 to stay in this one. Each begins with a run of neighbours, which share
            compiled programs, and then helps out.
        scheduler: address of a Dask scheduler, e.g. "tcp://10.0.0.1:8786", whose workers have samebits installed.
    Raises:
        ConnectionError: no scheduler answers at the address.
        RuntimeError: a job whose processes died `ATTEMPTS` times.
        Whatever ``function`` raises.
    """
    if scheduler:
        return _on_cluster(function, jobs, scheduler)
    if workers:
        return _in_processes(function, jobs, workers)
    return ((i, function(job)) for i, job in enumerate(jobs))


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | Pools
) -> Iterator[tuple[int, Result]]:
    if isinstance(workers, int):
        with local_processes(workers) as own:
            yield from _in_processes(function, jobs, own)
        return
    pools, count = workers, max(1, min(len(workers), len(jobs)))
    queues = [deque(range(len(jobs) * i // count, len(jobs) * (i + 1) // count)) for i in range(count)]
    running: dict[Future[Result], tuple[int, int]] = {}
    deaths: Counter[int] = Counter()

    def start(worker: int, job: int | None = None) -> None:
        if job is None:
            longest = max(queues, key=len)
            if not longest:
                return
            job = queues[worker].popleft() if queues[worker] else longest.pop()
        running[pools[worker].submit(function, jobs[job])] = worker, job

    try:
        for worker in range(count):
            start(worker)
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                worker, job = running.pop(done)
                try:
                    result = done.result()
                except (BrokenProcessPool, FreshProcessWanted) as reason:
                    deaths[job] += isinstance(reason, BrokenProcessPool)
                    if deaths[job] == ATTEMPTS:
                        raise RuntimeError(f"job {jobs[job]} ended {ATTEMPTS} processes") from None
                    pools[worker].shutdown(wait=False)
                    pools[worker] = _pool(worker, len(pools))
                    start(worker, job)
                    continue
                start(worker)
                yield job, result
    finally:
        for future in running:
            future.cancel()


def _pool(place: int, count: int) -> ProcessPoolExecutor:
    """One process of so many, started afresh so that no framework is shared."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (place, count))


def _begin(place: int, count: int) -> None:
    global _replaceable
    _replaceable = True
    _keep_to_own_cores(place, count)
    keep_memory()
    _end_with_parent()


def _keep_to_own_cores(place: int, count: int) -> None:
    """Share the cores out among the processes, where the system can: XLA would use all of them in each.

    Two processes on two cores take a quarter less time so.
    """
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))[place::count]
        if own:
            os.sched_setaffinity(0, own)


def keep_memory() -> None:
    """Have this process keep the memory that it frees. Nothing happens where the C library is not glibc.

    Arrays of megabytes are otherwise given back and asked for anew with every operation, page by page: that is half of
    the time of the modes that go operation by operation. XLA frees in one thread what another allocated: all of them
    share one heap.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_THRESHOLD, 1 << 30)
        mallopt(TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_memory() -> None:
    """Have this process give back the memory that it keeps and does not use."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def ask_for_fresh_process() -> None:
    """Have the job that calls this done by a new process, where there can be one; else nothing happens.

    Not to be called by the first job of a process.
    """
    if _replaceable:
        raise FreshProcessWanted


def resident_memory() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed for instance: nobody waits for its tile then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait_for([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _on_cluster(function: Callable[[Job], Result], jobs: Sequence[Job], address: str) -> Iterator[tuple[int, Result]]:
    import distributed

    dask: Any = distributed  # its functions are not annotated
    try:
        connected = dask.Client(address, set_as_default=False, timeout=CONNECT)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(f"no Dask scheduler at {address}: {reason}") from None
    with connected as client:
        client.wait_for_workers(1, timeout=60)
        client.register_worker_callbacks(keep_memory)
        waiting = iter(range(len(jobs)))
        places: dict[Any, int] = {}

        def submit(job: int) -> Any:
            future = client.submit(function, jobs[job], pure=False, retries=ATTEMPTS)
            places[future.key] = job
            return future

        threads = sum(client.nthreads().values()) or 1
        first = [submit(job) for job in islice(waiting, IN_FLIGHT * threads)]
        finished = dask.as_completed(first, loop=client.loop)
        for future in finished:
            result = future.result()
            job = places.pop(future.key)
            with suppress(StopIteration):
                finished.add(submit(next(waiting)))
            yield job, result
