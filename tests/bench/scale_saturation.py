"""`saturation`: latency at 70 % of the most that the worker answers beside the same load.

With a backlog and nobody who sends it would be more; but the broker, the load and the reader are there in the run that
is measured, on the same cores, and so they are when the most is found: at a rate that is too high for all of them.
"""

from typing import Any

from latency import latency
from ours import PRODUCTION
from scale_load import Stream
from scale_run import Bench, bench, running
from scale_verdict import Row, say, verdict

SHARE = 0.7
P99_MS = 250.0
PARTITIONS = 1  # as in the run at 1,000 payments/s
PAYMENTS = 60_000
SEARCH_S = 20.0
LATENCY_S = 60.0


def of_backlog(place: Bench, payments: int) -> float:
    """Payments a second of one worker with a backlog."""
    with running(place, Stream(seed=70, accounts=50_000, ms_between=60_000.0)) as found:
        found.feeder.send(payments // 5)
        found.await_answers(600.0)
        return found.measure(payments, timeout_s=900.0).per_second


def beside_load(place: Bench, rate: float, seconds: float) -> float:
    """Payments a second that are answered when `rate` are sent meanwhile, on the same cores; no snapshot falls in."""
    return _latency(place, rate, seconds, every_s=1.5 * seconds)["answered_per_s"]


def _latency(place: Bench, rate: float, seconds: float, *, every_s: float) -> dict[str, Any]:
    """`every_s`: how often there is a tick and a snapshot, unless production has them more often."""
    return latency(
        place.bootstrap,
        place.directory,
        rate=rate,
        seconds=seconds,
        tick_s=min(PRODUCTION.tick_every_s, every_s),
        snapshot_s=min(PRODUCTION.snapshot_every_s, every_s),
        partitions=PARTITIONS,
    )


def at_saturation(*, short: bool) -> dict[str, Any]:
    payments, seconds = (4_000, 4.0) if short else (PAYMENTS, LATENCY_S)
    with bench() as place:
        backlog = of_backlog(place, payments)
        most = beside_load(place, backlog, seconds / LATENCY_S * SEARCH_S)
        rate = most * SHARE
        say(
            f"{most:,.0f}/s beside the load ({backlog:,.0f}/s of a backlog): latency at {rate:,.0f}/s for {seconds:g} s"
        )
        times = _latency(place, rate, seconds, every_s=seconds / 2)
    p99 = float("inf") if times["p99"] is None else times["p99"]
    rows = [Row(f"latency at {SHARE:.0%} of saturation ({rate:,.0f}/s): p99", p99, P99_MS, "ms")]
    return verdict(rows, saturation_per_s=round(most), backlog_per_s=round(backlog), latency_ms=times)
