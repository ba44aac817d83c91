"""`accounts`: 1,000,000 accounts beside 10,000: CPU per payment of a real worker, and its resident memory.

Both deployments are warmed first, each account met at least once; then the same number of payments, spread evenly over
the accounts, goes to each in turns.
"""

import statistics
import time
from typing import Any

from meter import Figure, memory_mb
from ours import PRODUCTION
from scale_load import Stream
from scale_run import Running, bench, running
from scale_verdict import Row, say, verdict

FEW, MANY = 10_000, 1_000_000
TIMES = 1.3
MEMORY_MB = 1_500.0
CHUNK = 50_000
PAYMENTS = 200_000  # in a round: with fewer it is chance whether a compaction, two seconds of CPU, falls into one
REST_S, REST_S_MAX, IDLE_CORES = 2.0, 60.0, 0.1
MS_BETWEEN = 5_000.0  # a million payments take 58 days of event time


def _warm(found: Running, payments: int) -> float:
    """In pieces, so that the broker's and our memory is not what is measured. Returns the most memory seen, in MB."""
    most_mb = 0.0
    while found.feeder.sent < payments:
        found.feeder.send(min(CHUNK, payments - found.feeder.sent))
        found.await_answers(600.0)
        most_mb = max(most_mb, found.memory_mb())
        if found.feeder.sent % (4 * CHUNK) == 0:
            say(f"{found.feeder.sent:,} payments, {most_mb:.0f} MB")
    return most_mb


def _at_rest(found: Running) -> None:
    """Compactions that the warming has left are waited for: they are not what the measured payments cost."""
    end_s = time.monotonic() + REST_S_MAX
    while time.monotonic() < end_s:
        before_s = found.cpu_s()
        time.sleep(REST_S)
        if found.cpu_s() - before_s < IDLE_CORES * REST_S:
            return
    say(f"still at work after {REST_S_MAX:g} s")


def accounts(*, short: bool) -> dict[str, Any]:
    few, many, payments, rounds = (500, 5_000, 4_000, 1) if short else (FEW, MANY, PAYMENTS, 2)
    figures: dict[str, list[Figure]] = {"few": [], "many": []}
    streams = {
        "few": Stream(seed=60, accounts=few, ms_between=MS_BETWEEN, once_each=True),
        "many": Stream(seed=61, accounts=many, ms_between=MS_BETWEEN, once_each=True),
    }
    every = {"tick_s": PRODUCTION.tick_every_s, "snapshot_s": PRODUCTION.snapshot_every_s}
    with (
        bench() as place,
        running(place, streams["few"], **every) as of_few,
        running(place, streams["many"], **every) as of_many,
    ):
        _warm(of_few, min(many, 10 * few))
        warm_mb = _warm(of_many, many)
        for _ in range(rounds):
            for name, found in (("few", of_few), ("many", of_many)):
                _at_rest(found)
                got = found.measure(payments, timeout_s=900.0)
                figures[name].append(got)
                say(f"{name}: {got.cpu_us:.1f} CPU µs, {got.memory_mb:.0f} MB {got.by_thread_us}")
        end_mb = {name: memory_mb(found.processes[0].pid) for name, found in (("few", of_few), ("many", of_many))}
    us = {name: statistics.mean(figure.cpu_us for figure in found) for name, found in figures.items()}
    most_mb = max(warm_mb, *(figure.memory_mb for figure in figures["many"]))
    rows = [
        Row(f"{few:,} → {many:,} accounts: CPU per payment", us["many"] / us["few"], TIMES, "times"),
        Row(f"{many:,} accounts: resident memory, the most seen", most_mb, MEMORY_MB, "MB"),
    ]
    return verdict(
        rows,
        payments=payments,
        cpu_us_per_payment={name: [round(figure.cpu_us, 1) for figure in found] for name, found in figures.items()},
        cpu_us_by_thread={
            name: {k: round(v, 1) for k, v in found[-1].by_thread_us.items()} for name, found in figures.items()
        },
        memory_mb_end={name: round(mb) for name, mb in end_mb.items()},
    )
