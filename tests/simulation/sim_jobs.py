"""Many seeds in several processes; what comes out does not depend on how many."""

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from sim_seed import Ran, run_seed
from sim_world import Crash

AHEAD_PER_JOB = 8  # seeds handed out before the oldest has ended: a slow one keeps nobody waiting


class Failed(NamedTuple):
    seed: int
    what: str
    trace: str


def jobs_default() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_seeds(seeds: Iterable[int], *, payments: int, jobs: int) -> Generator[Ran | Failed]:
    """One result a seed, in the order of seeds. Close it to stop early: seeds that have begun are waited for."""
    if jobs == 1:
        yield from (run_or_fail(seed, payments) for seed in seeds)
        return
    executor = ProcessPoolExecutor(jobs, get_context("fork"), _begin, (os.getpid(),))
    try:
        pending: deque[Future[Ran | Failed]] = deque()
        for seed in seeds:
            pending.append(executor.submit(run_or_fail, seed, payments))
            if len(pending) == jobs * AHEAD_PER_JOB:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def run_or_fail(seed: int, payments: int) -> Ran | Failed:
    try:
        return run_seed(seed, payments=payments)
    except (Exception, Crash) as error:
        return Failed(seed, f"{type(error).__name__}: {error}", traceback.format_exc())


def _begin(parent: int) -> None:
    """Signals are the parent's business. A process whose parent is gone goes too: nobody would read what it finds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
