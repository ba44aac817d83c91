"""What the faults are tried on: payments with labels, and as much poison, repetition and disorder as asked. Seeded."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from stream.simulate.bad import CAUSES, spoil
from topics.refusals import Cause

START_MS = 1_750_000_000_000  # 2025-06-15: in the past, so that nothing is from the future
DAY_MS = 86_400_000
SPAN_MS = 20 * DAY_MS
CLOCK_EVERY_MS = 6 * 3_600_000


@dataclass(frozen=True)
class Mix:
    """Shares of the payments. `poison`: a bad record follows; `repeats`: the payment comes again;
    `disorder`: it happened up to two days before; `month_late`: 25 to 35 days before."""

    poison: float = 0.005
    repeats: float = 0.01
    disorder: float = 0.02
    month_late: float = 0.0
    frauds: float = 0.02
    causes: tuple[Cause, ...] = CAUSES


@dataclass
class Wanted:
    """One record to send. `cause`: why it must be refused; None: it must not."""

    topic: str
    key: bytes
    value: bytes
    cause: Cause | None = None
    repeat: bool = False


@dataclass
class Load:
    """About `payments` records for `payments` (poison and repeats come on top), with their labels and clocks."""

    payments: int
    seed: int
    mix: Mix = field(default_factory=Mix)
    accounts: int | None = None  # each pays in its turn; None: some pay more than others

    def __iter__(self) -> Iterator[Wanted]:
        rng = random.Random(self.seed)
        mix = self.mix
        accounts = max(20, self.payments // 40)
        terminals = max(10, self.payments // 100)
        step_ms = SPAN_MS / max(1, self.payments)
        labels: list[tuple[int, int, bytes, bytes]] = []
        clock_at_ms = START_MS + CLOCK_EVERY_MS
        bad = 0
        for i in range(self.payments):
            now_ms = START_MS + int(i * step_ms)
            while labels and labels[0][0] <= now_ms:
                _, _, key, value = heapq.heappop(labels)
                yield Wanted("labels", key, value)
            if now_ms >= clock_at_ms:
                yield Wanted("labels", b"", msgspec.json.encode({"kind": "clock", "observed_at": clock_at_ms}))
                clock_at_ms += CLOCK_EVERY_MS
            drawn = int(rng.random() ** 2 * accounts)
            account = f"a{drawn if self.accounts is None else i % self.accounts}"
            fraud = rng.random() < mix.frauds
            event_ms = now_ms
            draw = rng.random()
            if draw < mix.month_late:
                event_ms -= rng.randrange(25 * DAY_MS, 35 * DAY_MS)
            elif draw < mix.month_late + mix.disorder:
                event_ms -= rng.randrange(1, 2 * DAY_MS)
            payment = {
                "payment_id": f"{self.seed}-{i}",
                "event_time": event_ms,
                "account_id": account,
                "amount": rng.randrange(20_000, 300_000) if fraud else rng.randrange(100, 20_000),
                "currency": "EUR",
                "terminal_id": f"t{rng.randrange(terminals)}",
                "channel": "ecom" if fraud else "pos",
            }
            key, value = account.encode(), msgspec.json.encode(payment)
            yield Wanted("payments", key, value)
            if fraud:
                observed_ms = now_ms + rng.randrange(DAY_MS // 2, 4 * DAY_MS)
                label = {
                    "payment_id": payment["payment_id"],
                    "account_id": account,
                    "observed_at": observed_ms,
                    "kind": "chargeback",
                }
                heapq.heappush(labels, (observed_ms, i, key, msgspec.json.encode(label)))
            if rng.random() < mix.poison and mix.causes:
                cause = mix.causes[bad % len(mix.causes)]
                bad += 1
                yield Wanted("payments", key, spoil(value, cause, bad), cause)
            if rng.random() < mix.repeats:
                yield Wanted("payments", key, value, repeat=True)
