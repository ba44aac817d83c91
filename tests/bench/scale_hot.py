"""`hot`: what payments cost on an account with 100 times the mean rate, and on a terminal with 1,000,000 in its window.

The stages over RocksDB in this process, as in steps.py. The windows of one hot entity are made by so many payments, and
stored under the names of many, so that a fifth of all payments is on hot ones while each of them gets no more than its
own rate. Seconds without hot payments alternate with seconds with; the CPU that differs is theirs. A checkpoint ends
each second, so what a changed entity costs to write is in it.
"""

import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from load import ACCOUNTS, DAY_MS, MATURITY_MS, START_MS, TERMINALS
from scale_load import Stream
from scale_verdict import Row, say, verdict
from steps import Line

from stream import collector
from stream.features import ENTITY_INDEX
from stream.stages import keys
from stream.windows.entity import EntityWindows, Observations
from topics.control import encode_control
from topics.limits import LIMITS_DEFAULT

PER_SECOND = 1_000  # the rate of the latency run: a hot terminal's checkpoint is then shared by one payment
BATCH = 250
HOT_SHARE = 0.2
HOT_RATE = 100  # times the mean account's
WINDOW_PAYMENTS = 1_000_000
WINDOW_DAYS = 30
TIMES = 3.0


def hot_windows(payments: int, days: float, end_ms: int, *, others: int, maturity_ms: int) -> tuple[bytes, int]:
    """The packed windows of an entity with so many payments over so many days up to `end_ms`; its count over 30 d."""
    rng = np.random.default_rng(7)
    windows = EntityWindows()
    slot = windows.slots([b"Ehot"], lambda wanted: [None] * len(wanted))[0]
    times = np.linspace(end_ms - days * DAY_MS, end_ms - 1, payments).astype(np.int64)
    features = np.empty((0, 0), np.float32)
    for first in range(0, payments, 100_000):
        n = min(100_000, payments - first)
        rows = Observations(
            event_ms=times[first : first + n],
            amount=rng.integers(100, 20_000, n),
            other=rng.integers(1, others + 1, n).astype(np.uint64),
            payment=rng.integers(1, 2**62, n).astype(np.uint64),
            category=np.full(n, 5411, np.int32),
            minute_of_week=(times[first : first + n] // 60_000 % 10_080).astype(np.int32),
            latitude=np.full(n, np.nan, np.float32),
            longitude=np.full(n, np.nan, np.float32),
            label_clock=np.zeros(n, np.int64),
            counts=np.ones(n, np.bool_),
        )
        features = windows.observe(np.full(n, slot, np.int32), rows, maturity_ms=maturity_ms)
    packed = windows.export_dirty()[b"Ehot"]
    return packed, int(features[-1, ENTITY_INDEX["payments_30d_count"]])


class HotLine(Line):
    """A line whose stages begin with windows that were made elsewhere."""

    def plant(self, topic: str, names: list[str], packed: bytes) -> None:
        for name in names:
            self.runners[topic].state.put(keys.entity_key("default", name), packed)

    def spent_us(self) -> float:
        return sum(self.cpu_s.values()) * 1e6


def compare(which: str, seconds: int, *, warm: int, window_payments: int) -> dict[str, Any]:
    """CPU µs a payment: all plain, and of the hot ones. `which`: account or terminal."""
    rng = random.Random(11)
    ms_between = 60.0 * DAY_MS / 1_000_000  # a mean terminal gets 50 payments in 30 days, a mean account 10
    stream = Stream(seed=40, accounts=ACCOUNTS, ms_between=ms_between)
    start_ms = START_MS + int(warm * ms_between)
    of_hot = int(PER_SECOND * HOT_SHARE)
    topic = "account-journal" if which == "account" else "terminal-journal"
    if which == "account":
        each = max(1, HOT_RATE * PER_SECOND // ACCOUNTS)  # payments of one hot account in a second
        packed, count = hot_windows(
            int(HOT_RATE * 90 * DAY_MS / ms_between / ACCOUNTS), 90, start_ms, others=TERMINALS, maturity_ms=MATURITY_MS
        )
    else:
        each = 1
        packed, count = hot_windows(window_payments, WINDOW_DAYS, start_ms, others=ACCOUNTS, maturity_ms=MATURITY_MS)
    names = [f"hot{i:05d}" for i in range(of_hot // each)]
    say(f"hot {which}: {len(names)} of them, {each} payments a second each, {count:,} in 30 d, {len(packed)} bytes")
    with tempfile.TemporaryDirectory(prefix="fraudstream-hot-") as directory:
        line = HotLine(Path(directory))
        collector.settle()
        limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=MATURITY_MS)
        settings = encode_control(kind="settings", by="bench", why="measure", payload=limits, written_at=0)
        line.feed("control", [(b"settings", settings, ())])
        line.plant(topic, names, packed)

        def second(hot: bool) -> float:
            before = line.spent_us()
            picks = [None] * (PER_SECOND - of_hot) + [names[i % len(names)] if hot else None for i in range(of_hot)]
            rng.shuffle(picks)
            for first in range(0, PER_SECOND, BATCH):
                made = [stream.payment(**({which: pick} if pick else {})) for pick in picks[first : first + BATCH]]
                line.feed("payments", [(key, value, ()) for key, value in made])
            line.feed("labels", [(late.key, late.value, ()) for late in stream.due()])
            line.checkpoint()
            return (line.spent_us() - before) / PER_SECOND

        for _ in range(warm // PER_SECOND):
            second(False)
        second(True)  # loads them once
        both = [(second(False), second(True)) for _ in range(seconds)]
    plain = statistics.median(a for a, _ in both)
    extra = statistics.median(b - a for a, b in both) / HOT_SHARE
    return {
        "plain_us": round(plain, 1),
        "hot_us": round(plain + extra, 1),
        "times": round((plain + extra) / plain, 3),
        "count_30d": count,
        "packed_bytes": len(packed),
        "seconds": seconds,
    }


def hot(*, short: bool) -> dict[str, Any]:
    seconds, warm, in_window = (4, 2_000, 20_000) if short else (40, 40_000, WINDOW_PAYMENTS)
    account = compare("account", seconds, warm=warm, window_payments=in_window)
    terminal = compare("terminal", seconds, warm=warm, window_payments=in_window)
    rows = [
        Row(f"an account at {HOT_RATE} times the mean rate: CPU per payment on it", account["times"], TIMES, "times"),
        Row(
            f"a terminal with {terminal['count_30d']:,} payments in 30 d: CPU per payment on it",
            terminal["times"],
            TIMES,
            "times",
        ),
    ]
    return verdict(rows, account=account, terminal=terminal)
