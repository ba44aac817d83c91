"""`light`: what a worker takes when ten payments come in a second, and when nothing comes.

`two`: what the same payments cost two workers that share the partitions.
"""

import statistics
import threading
import time
from collections import Counter
from typing import Any

from load import START_MS
from meter import Figure, threads_s
from ours import PRODUCTION
from scale_load import Stream
from scale_run import AFTER_FROZEN_S, FROZEN_S, Running, bench, running
from scale_verdict import Row, say, verdict

LIGHT_CORES, IDLE_CORES = 0.05, 0.02
RATE = 10.0
WARM = 2_000
SLICE_S = 5.0
TWO_SHARE = 1.15


def cores(found: Running, seconds: float) -> tuple[float, dict[str, float]]:
    """CPU of the worker over so many seconds, in cores: in all, and by thread (in hundredths of a core).

    Counted by slices; one in which we stood still is left out, and so are those until the group has formed anew.
    """
    pid = found.processes[0].pid
    slice_s = min(SLICE_S, seconds)
    span_s = cpu_s = 0.0
    by_thread: Counter[str] = Counter()
    while span_s < seconds * 0.99:
        began_s, before_s, threads = time.monotonic(), found.cpu_s(), threads_s(pid)
        time.sleep(slice_s)
        found.alive()
        took_s = time.monotonic() - began_s
        if took_s > slice_s + FROZEN_S / 2:
            say(f"stood still for {took_s - slice_s:.0f} s")
            time.sleep(AFTER_FROZEN_S)
            continue
        span_s += took_s
        cpu_s += found.cpu_s() - before_s
        by_thread.update({name: s - threads.get(name, 0.0) for name, s in threads_s(pid).items()})
    return cpu_s / span_s, {name: round(s / span_s * 100, 2) for name, s in by_thread.items() if s > 0.0}


def _drip(found: Running, rate: float, stop: threading.Event) -> None:
    """Open loop: one payment at a time."""
    began_s, sent = time.monotonic(), 0
    while not stop.wait(max(0.0, began_s + sent / rate - time.monotonic())):
        found.feeder.send(1)
        sent += 1
        found.feeder.labels(found.feeder.sent)


def light(*, short: bool) -> dict[str, Any]:
    """With ticks and snapshots as often as a worker makes them by itself; long enough for one snapshot."""
    seconds = 5.0 if short else PRODUCTION.snapshot_every_s
    stream = Stream(seed=20, accounts=50_000, ms_between=60_000.0, start_ms=START_MS)
    with (
        bench() as place,
        running(place, stream, tick_s=PRODUCTION.tick_every_s, snapshot_s=PRODUCTION.snapshot_every_s) as found,
    ):
        found.feeder.send(200 if short else WARM)
        found.await_answers(600.0)
        stop = threading.Event()
        drip = threading.Thread(target=_drip, args=(found, RATE, stop), daemon=True)
        drip.start()
        time.sleep(1.0 if short else 10.0)
        busy, busy_threads = cores(found, seconds)
        stop.set()
        drip.join(10)
        found.await_answers(600.0)
        say(f"light: {busy:.4f} of a core {busy_threads}")
        time.sleep(1.0 if short else 5.0)
        idle, idle_threads = cores(found, seconds)
        say(f"idle: {idle:.4f} of a core {idle_threads}")
    rows = [
        Row(f"light load, {RATE:g} payments/s: worker", busy, LIGHT_CORES, "of a core"),
        Row("idle: worker", idle, IDLE_CORES, "of a core"),
    ]
    return verdict(rows, seconds=seconds, percent_by_thread={"light": busy_threads, "idle": idle_threads})


def two(*, short: bool) -> dict[str, Any]:
    payments, rounds = (4_000, 1) if short else (60_000, 2)
    figures: dict[int, list[Figure]] = {1: [], 2: []}
    with bench() as place:
        for number in range(rounds):
            for workers in (1, 2):
                stream = Stream(seed=30 + number, accounts=50_000, ms_between=60_000.0)
                with running(place, stream, workers=workers) as found:
                    found.feeder.send(payments // 5)
                    found.await_answers(600.0)
                    got = found.measure(payments, timeout_s=900.0)
                figures[workers].append(got)
                say(f"{workers} workers: {got.cpu_us:.1f} CPU µs, {got.per_second:,.0f}/s {got.by_thread_us}")
    one_us, two_us = (statistics.mean(figure.cpu_us for figure in figures[workers]) for workers in (1, 2))
    pairs = [b.cpu_us / a.cpu_us for a, b in zip(figures[1], figures[2], strict=True)]
    rows = [Row("two workers: CPU per payment beside one's", two_us / one_us, TWO_SHARE, "times")]
    return verdict(
        rows,
        payments=payments,
        cpu_us_per_payment={str(n): [round(f.cpu_us, 1) for f in figures[n]] for n in figures},
        payments_per_second={str(n): [round(f.per_second) for f in figures[n]] for n in figures},
        cpu_us_by_thread={str(n): {k: round(v, 1) for k, v in figures[n][-1].by_thread_us.items()} for n in figures},
        ratio_by_round=[round(pair, 3) for pair in pairs],
    )
