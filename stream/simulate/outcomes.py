"""What became of the payments: declines and refunds within minutes or days, the truth after weeks.

Labels of a fraud come in this order, each for a share of the frauds only: a `fraud_report` by the customer, then a
`chargeback` (cards) or `confirmed_fraud` (transfers), then `chargeback_reversed`. Some reports are false, and a
`confirmed_legit` overrides them. Some legitimate payments are disputed for other reasons than fraud.
"""

from typing import Final

import msgspec
import numpy as np

from stream.simulate.population import CATEGORY_CHANNEL, Accounts, Bools, Floats, Ints
from stream.simulate.rows import Rows
from stream.simulate.settings import DAY_MS, LabelDelay
from stream.simulate.world import FRAUDS, Channel, Entry, Kind

DECLINED_LEGIT: Final = 0.02
DECLINED_FRAUD: Final = 0.15
VOIDED: Final = 0.003
REFUNDED: Final = 0.008
DISPUTED_LEGIT: Final = 0.0008
FALSE_REPORTS: Final = 0.06  # per fraud
REVERSED_FIRST_PARTY: Final = 0.25
REVERSED_OTHER: Final = 0.02

LABEL_KINDS: Final = (
    "fraud_report",
    "chargeback",
    "confirmed_fraud",
    "chargeback_reversed",
    "confirmed_legit",
    "dispute_other",
)
REPORT, CHARGEBACK, CONFIRMED_FRAUD, REVERSED, CONFIRMED_LEGIT, DISPUTE = range(6)

REASONS: Final = (
    None,
    "10.1",
    "10.2",
    "10.3",
    "10.4",
    "4837",
    "4863",
    "4870",
    "4871",
    "12.5",
    "12.6.1",
    "13.1",
    "13.3",
    "13.7",
    "4853",
)
NO_REASON: Final = 0
VISA_OTHER: Final = (9, 10, 11, 12, 13)
MASTERCARD_OTHER: Final = 14

SOURCES: Final = ("issuer-feed", "acquirer-feed", "analyst", "customer-app")
ISSUER, ACQUIRER, ANALYST, CUSTOMER = range(4)

UPDATE_KINDS: Final = ("declined", "voided", "refunded")
DECLINERS: Final = (None, "issuer", "acquirer")


class Labels(msgspec.Struct, frozen=True):
    """One entry per label, in order of time. `row`: of its payment; `kind`, `reason`, `source`: codes as above."""

    row: Ints
    at_ms: Ints
    kind: Ints
    reason: Ints
    source: Ints


class Updates(msgspec.Struct, frozen=True):
    """One entry per update, in order of time. `row`: of its payment. `declined_by`: of `DECLINERS`."""

    row: Ints
    at_ms: Ints
    kind: Ints
    declined_by: Ints


def delays_ms(delay: LabelDelay, uniform_normal: Floats) -> Ints:
    """Delays for standard normal numbers, inside the limits.

    >>> (delays_ms(LabelDelay(), np.array([-99.0, 0.0, 99.0])) / DAY_MS).tolist()
    [1.0, 18.0, 120.0]
    """
    days = np.exp(np.clip(np.log(delay.median_days) + delay.sigma * uniform_normal, -50.0, 50.0))
    return np.rint(np.clip(days, delay.min_days, delay.max_days) * DAY_MS).astype(np.int64)


def _reasons(rows: Rows, scheme: Ints) -> Ints:
    """The fraud reason code of each payment, by scheme and how the card was used."""
    remote = CATEGORY_CHANNEL[rows.category] == Channel.ECOM
    copied = (rows.entry == Entry.MAGSTRIPE) | (rows.entry == Entry.FALLBACK)
    visa = np.where(remote, 4, np.where(copied, 1, 3))
    mastercard = np.where(remote, 5, np.where(copied, 7, 8))
    visa = np.where(~remote & (rows.entry == Entry.CONTACTLESS), 2, visa)
    mastercard = np.where(remote & (rows.kind == Kind.FIRST_PARTY), 6, mastercard)
    return np.where(scheme == 0, visa, mastercard).astype(np.int64)


def _never(kind: Ints) -> Floats:
    """Share never reported, by kind of fraud."""
    table = np.zeros(len(Kind))
    for each, fraud in FRAUDS.items():
        table[each] = fraud.never
    return table[kind]


def _labels(columns: list[tuple[Ints, Ints, Ints, Ints, Ints]]) -> Labels:
    row, at_ms, kind, reason, source = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.lexsort((kind, row, at_ms))
    return Labels(row[order], at_ms[order], kind[order], reason[order], source[order])


def make_updates(rows: Rows, rng: np.random.Generator) -> tuple[Updates, Bools]:
    """What became of each payment, and which of them did not go through."""
    count = len(rows)
    fraud = rows.kind != Kind.LEGITIMATE
    declined = rng.random(count) < np.where(fraud, DECLINED_FRAUD, DECLINED_LEGIT)
    voided = ~declined & (rng.random(count) < VOIDED) & ~fraud
    refunded = ~declined & ~voided & (rng.random(count) < REFUNDED) & ~fraud & (rows.cents > 0)
    by = np.where(rng.random(count) < 0.85, 1, 2)
    parts: list[tuple[Ints, Ints, Ints, Ints]] = []
    for code, (which, low_ms, mean_ms) in enumerate(
        ((declined, 1_000, 1_500.0), (voided, 60_000, 3_600_000.0), (refunded, 3_600_000, 5.0 * DAY_MS))
    ):
        row = np.flatnonzero(which)
        later = low_ms + (rng.exponential(mean_ms, len(row))).astype(np.int64)
        by_whom = by[row] if code == 0 else np.zeros(len(row), np.int64)
        parts.append((row, rows.at_ms[row] + later, np.full(len(row), code), by_whom))
    row, at_ms, kind, declined_by = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((row, at_ms))
    return Updates(row[order], at_ms[order], kind[order], declined_by[order]), declined | voided


def make_labels(rows: Rows, accounts: Accounts, stopped: Bools, delay: LabelDelay, rng: np.random.Generator) -> Labels:
    """All that is ever observed about the payments. `stopped`: did not go through, so nobody lost anything."""
    fraud = np.flatnonzero((rows.kind != Kind.LEGITIMATE) & ~stopped & (rows.cents > 0))
    known = fraud[rng.random(len(fraud)) >= _never(rows.kind[fraud]) * delay.never]
    found = rows.take(known)
    scheme = accounts.scheme[found.account]
    # One customer notices an episode at one time, and calls once.
    episodes = int(rows.episode.max(initial=-1)) + 1
    notice = rng.normal(size=max(1, episodes))[found.episode]
    calls = (rng.random(max(1, episodes)) < delay.reported)[found.episode]
    proof_ms = delays_ms(delay, 0.9 * notice + 0.436 * rng.normal(size=len(known)))
    call_ms = np.minimum(
        (rng.exponential(delay.report_days, max(1, episodes))[found.episode] * DAY_MS).astype(np.int64) + 60_000,
        proof_ms // 2,
    )
    transfer = CATEGORY_CHANNEL[found.category] == Channel.TRANSFER
    reason = np.where(transfer, NO_REASON, _reasons(found, scheme))
    proof = np.where(transfer, CONFIRMED_FRAUD, CHARGEBACK)
    columns = [
        (known, found.at_ms + proof_ms, proof, reason, np.where(transfer, ANALYST, rng.integers(0, 2, len(known))))
    ]

    def add(row: Ints, at_ms: Ints, kind: int, reason: Ints | int, source: int) -> None:
        columns.append(
            (
                row,
                at_ms,
                np.full(len(row), kind, np.int64),
                np.broadcast_to(np.asarray(reason, np.int64), len(row)),
                np.full(len(row), source, np.int64),
            )
        )

    calls &= found.kind != Kind.FIRST_PARTY
    add(known[calls], found.at_ms[calls] + call_ms[calls], REPORT, NO_REASON, CUSTOMER)

    share = np.where(found.kind == Kind.FIRST_PARTY, REVERSED_FIRST_PARTY, REVERSED_OTHER)
    back = ~transfer & (rng.random(len(known)) < share)
    back_ms = found.at_ms[back] + proof_ms[back] + delays_ms(delay, rng.normal(size=int(back.sum())))
    add(known[back], back_ms, REVERSED, reason[back], ACQUIRER)

    honest = np.flatnonzero((rows.kind == Kind.LEGITIMATE) & ~stopped & (rows.cents > 0))
    wrong = np.sort(rng.permutation(honest)[: int(np.rint(FALSE_REPORTS * len(known)))])
    first_ms = rows.at_ms[wrong] + 60_000 + (rng.exponential(delay.report_days, len(wrong)) * DAY_MS).astype(np.int64)
    add(wrong, first_ms, REPORT, NO_REASON, CUSTOMER)
    add(wrong, first_ms + delays_ms(delay, rng.normal(size=len(wrong))) // 3 + 1, CONFIRMED_LEGIT, NO_REASON, ANALYST)

    unhappy = honest[rng.random(len(honest)) < DISPUTED_LEGIT]
    unhappy = unhappy[CATEGORY_CHANNEL[rows.category[unhappy]] != Channel.TRANSFER]
    visa_reason = np.array(VISA_OTHER)[rng.integers(0, len(VISA_OTHER), len(unhappy))]
    other = np.where(accounts.scheme[rows.account[unhappy]] == 0, visa_reason, MASTERCARD_OTHER)
    at_ms = rows.at_ms[unhappy] + delays_ms(delay, rng.normal(size=len(unhappy)))
    # Some feeds name the kind of dispute, others send a chargeback, and only its code tells.
    named = rng.random(len(unhappy)) < 0.6
    add(unhappy[named], at_ms[named], DISPUTE, other[named], ACQUIRER)
    add(unhappy[~named], at_ms[~named], CHARGEBACK, other[~named], ACQUIRER)
    return _labels(columns)
