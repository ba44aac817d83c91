"""What all are measured on: payments made once per run, seeded, and the labels that ours takes beside them."""

import random
from dataclasses import dataclass

import msgspec

DAY_MS = 86_400_000
START_MS = 1_750_000_000_000  # 2025-06-15: historic, so that a broker which trusted event times would delete them
SPAN_MS = 60 * DAY_MS
MATURITY_MS = 6 * DAY_MS  # a tenth of the span: from then on about one payment matures for each that comes
CLOCK_EVERY_MS = DAY_MS // 4
ACCOUNTS = 50_000
TERMINALS = 10_000
LABEL_SHARE = 0.005
PARETO_SHAPE = 1.2


@dataclass(frozen=True)
class Late:
    """A record for `labels`, due when about `after` payments have been answered."""

    after: int
    key: bytes
    value: bytes


@dataclass(frozen=True)
class Load:
    """`payments`: (key, JSON of about 270 bytes) in order of event time; `labels`: by `after`, clocks among them."""

    payments: list[tuple[bytes, bytes]]
    labels: list[Late]

    @property
    def value_bytes_mean(self) -> float:
        return sum(len(value) for _, value in self.payments) / max(1, len(self.payments))


def _skewed(rng: random.Random, of: int) -> int:
    """Pareto: a few are met often, most are met seldom."""
    return int((rng.paretovariate(PARETO_SHAPE) - 1.0) * of / 20) % of


def make_load(payments: int, *, seed: int = 1) -> Load:
    """The same bytes for the same arguments."""
    rng = random.Random(seed)
    encode = msgspec.json.encode
    made: list[tuple[bytes, bytes]] = []
    labels: list[tuple[int, bytes, bytes]] = []
    step_ms = SPAN_MS / max(1, payments)
    for i in range(payments):
        event_ms = START_MS + int(i * step_ms)
        account = f"a{_skewed(rng, ACCOUNTS):06d}"
        fraud = rng.random() < LABEL_SHARE
        payment = {
            "payment_id": f"p{seed:02d}-{i:09d}",
            "event_time": event_ms,
            "account_id": account,
            "amount": rng.randrange(20_000, 300_000) if fraud else rng.randrange(100, 20_000),
            "currency": "EUR",
            "terminal_id": f"t{rng.randrange(TERMINALS):05d}",
            "merchant_id": f"m{rng.randrange(5_000):05d}",
            "mcc": rng.choice(("5411", "5812", "5999", "4111", "7995")),
            "merchant_country": rng.choice(("DE", "FR", "NL")),
            "issuer_country": "DE",
            "channel": "ecom" if rng.random() < 0.4 else "pos",
            "scheme": "visa",
            "funding": "credit",
        }
        made.append((account.encode(), encode(payment)))
        if fraud:
            observed_ms = event_ms + rng.randrange(DAY_MS, MATURITY_MS - DAY_MS)
            label = {
                "payment_id": payment["payment_id"],
                "account_id": account,
                "observed_at": observed_ms,
                "kind": "chargeback",
            }
            labels.append((observed_ms, account.encode(), encode(label)))
    end_ms = START_MS + SPAN_MS
    labels += [
        (at_ms, b"", encode({"kind": "clock", "observed_at": at_ms}))
        for at_ms in range(START_MS + CLOCK_EVERY_MS, end_ms, CLOCK_EVERY_MS)
    ]
    labels.sort(key=lambda label: label[0])
    due = [Late(int((at_ms - START_MS) / step_ms), key, value) for at_ms, key, value in labels if at_ms < end_ms]
    return Load(made, due)
