"""`saturation`: latency at 70 % of what the same worker has just shown to be its most."""

from typing import Any

from latency import latency
from scale_run import bench
from scale_soak import SATURATION_PAYMENTS, saturation
from scale_verdict import Row, say, verdict

SHARE = 0.7
P99_MS = 250.0


def at_saturation(*, short: bool) -> dict[str, Any]:
    payments, seconds = (4_000, 4.0) if short else (SATURATION_PAYMENTS, 60.0)
    with bench() as place:
        most = saturation(place, payments)
        rate = most * SHARE
        say(f"saturation {most:,.0f}/s: latency at {rate:,.0f}/s for {seconds:g} s")
        times = latency(place.bootstrap, place.directory, rate=rate, seconds=seconds, tick_s=5.0, snapshot_s=10.0)
    p99 = float("inf") if times["p99"] is None else times["p99"]
    rows = [Row(f"latency at {SHARE:.0%} of saturation ({rate:,.0f}/s): p99", p99, P99_MS, "ms")]
    return verdict(rows, saturation_per_s=round(most), latency_ms=times)
