"""`saturation`: latency at 70 % of the most that the worker answers beside the same load.

With a backlog and nobody who sends it would be more; but the broker, the load and the reader are there in the run that
is measured, on the same cores, and so they are when the most is found: at a rate that is too high for all of them.
"""

from typing import Any

from latency import latency
from ours import PRODUCTION
from scale_run import bench
from scale_soak import SATURATION_PAYMENTS, saturation
from scale_verdict import Row, say, verdict

SHARE = 0.7
P99_MS = 250.0
PARTITIONS = 1  # as in the run at 1,000 payments/s


def at_saturation(*, short: bool) -> dict[str, Any]:
    payments, seconds = (4_000, 4.0) if short else (SATURATION_PAYMENTS, 60.0)
    ticks = {
        "tick_s": min(PRODUCTION.tick_every_s, seconds / 2),
        "snapshot_s": min(PRODUCTION.snapshot_every_s, seconds / 2),
        "partitions": PARTITIONS,
    }
    with bench() as place:
        backlog = saturation(place, payments)
        most = latency(place.bootstrap, place.directory, rate=backlog, seconds=seconds / 3, **ticks)["answered_per_s"]
        rate = most * SHARE
        say(
            f"{most:,.0f}/s beside the load ({backlog:,.0f}/s of a backlog): latency at {rate:,.0f}/s for {seconds:g} s"
        )
        times = latency(place.bootstrap, place.directory, rate=rate, seconds=seconds, **ticks)
    p99 = float("inf") if times["p99"] is None else times["p99"]
    rows = [Row(f"latency at {SHARE:.0%} of saturation ({rate:,.0f}/s): p99", p99, P99_MS, "ms")]
    return verdict(rows, saturation_per_s=round(most), backlog_per_s=round(backlog), latency_ms=times)
