"""CPU of a process tree and a count of its answers, over time; every candidate is measured by this and nothing else."""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer

from stream.broker.offsets import watermarks

TICKS_S = os.sysconf("SC_CLK_TCK")
LOOK_EVERY_S = 0.1
STEADY_FROM, STEADY_TO = 0.20, 0.95


class BenchFailed(Exception):
    """A candidate did not do its work; its log says more."""


@dataclass
class Figure:
    """One run between 20 % and 95 % of its answers. CPU in µs a payment, of all the candidate's processes."""

    name: str
    cpu_us: float
    per_second: float
    answers: int
    by_thread_us: dict[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    load_average: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    at_s: float
    answers: int
    cpu_s: float
    threads: dict[str, float]


def tree(pid: int) -> list[int]:
    """`pid` and all that descends from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_s(pid: int) -> float:
    """utime + stime of a process, its threads that have ended included; 0 once it is gone."""
    return _ticks(Path(f"/proc/{pid}/stat"))[1] / TICKS_S


def _ticks(stat: Path) -> tuple[str, int]:
    try:
        text = stat.read_text()
    except OSError:
        return "", 0
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, int(fields[11]) + int(fields[12])


def threads_s(pid: int) -> dict[str, float]:
    """CPU by name of thread; those of one pool together."""
    found: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        name, ticks = _ticks(task)
        if task.parent.name == str(pid):
            name = "main"
        found[name.rstrip("0123456789-#") or "?"] += ticks / TICKS_S
    return dict(found)


def memory_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


class Answers:
    """Counts the records of a topic by its watermarks: nothing is fetched."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "bench-eye", "enable.auto.commit": False}
        )
        self._topic = topic
        self._partitions = partitions

    def count(self) -> int:
        return sum(watermarks(self._consumer, self._topic, p)[1] for p in range(self._partitions))

    def close(self) -> None:
        self._consumer.close()


def watch(
    process: "subprocess.Popen[bytes]",
    answers: Answers,
    wanted: int,
    *,
    timeout_s: float,
    each: Callable[[int], None] = lambda _: None,
    ends_itself: bool = False,
) -> tuple[list[Sample], float]:
    """Look until `wanted` answers are there. `each` is called with their number at every look.

    `ends_itself`: a peer that exits when it is done. Returns the samples and the most memory seen, in MB.
    Raises `BenchFailed` if the process dies early or takes longer than `timeout_s`.
    """
    samples: list[Sample] = []
    most_mb = 0.0
    end_s = time.monotonic() + timeout_s
    while True:
        done = answers.count()
        pids = tree(process.pid)
        sample = Sample(time.monotonic(), done, sum(cpu_s(pid) for pid in pids), threads_s(process.pid))
        if process.poll() is None:  # a dead process shows no CPU
            samples.append(sample)
            most_mb = max(most_mb, sum(memory_mb(pid) for pid in pids))
        elif ends_itself and done >= wanted * STEADY_TO:
            return samples, most_mb
        else:
            raise BenchFailed(f"ended with code {process.returncode} after {done} of {wanted} answers")
        each(done)
        if done >= wanted:
            return samples, most_mb
        if time.monotonic() > end_s:
            raise BenchFailed(f"{done} of {wanted} answers after {timeout_s:.0f} s")
        time.sleep(LOOK_EVERY_S)


def figure(name: str, samples: list[Sample], wanted: int, most_mb: float) -> Figure:
    """ΔCPU / Δanswers over the steady part. Raises `BenchFailed` if it was seen too seldom to say."""
    steady = [s for s in samples if wanted * STEADY_FROM <= s.answers <= wanted * STEADY_TO]
    if len(steady) < 2 or steady[-1].answers - steady[0].answers < wanted * 0.3:
        raise BenchFailed(f"{name}: only {len(steady)} looks at its steady part: give it more --payments")
    first, last = steady[0], steady[-1]
    payments = last.answers - first.answers
    by_thread = {
        thread: (seconds - first.threads.get(thread, 0.0)) / payments * 1e6 for thread, seconds in last.threads.items()
    }
    return Figure(
        name,
        (last.cpu_s - first.cpu_s) / payments * 1e6,
        payments / (last.at_s - first.at_s),
        last.answers,
        dict(sorted(((k, v) for k, v in by_thread.items() if v >= 0.1), key=lambda item: -item[1])),
        most_mb,
        os.getloadavg()[0],
    )
