"""Figures of detection quality from scores and truths. Plain numpy; arrays of one length throughout.

Where no model scored, the score is `UNSCORED`, below every probability.
"""

from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DAY_MS: Final = 86_400_000
UNSCORED: Final = -1.0
CARDS: Final = 100


class Decile(Struct, frozen=True, kw_only=True):
    """A tenth of the scored payments by score. `expected`: the sum of their probabilities."""

    score_from: float
    score_to: float
    payments: int
    frauds: int
    expected: float

    @property
    def expected_over_observed(self) -> float | None:
        return self.expected / self.frauds if self.frauds else None


class Figures(Struct, frozen=True, kw_only=True):
    """Quality on one set of payments. None where it cannot be said, as without frauds.

    `average_precision`, `auc`: ties count as the pessimist would, resp. half. `cp100`: per day, of the 100 accounts
    with the highest score those with a fraud that day, mean over days; `cp100_max`: the best attainable.
    `recall_*`: of frauds, among each day's highest 0.5 % and 1 % of payments. `expected_over_observed`: the sum of
    probabilities by frauds, of scored payments.
    """

    payments: int
    frauds: int
    unscored: int
    average_precision: float | None
    auc: float | None
    cp100: float | None
    cp100_max: float | None
    recall_half_percent: float | None
    recall_one_percent: float | None
    expected_over_observed: float | None


def average_precision(fraud: Bools, score: Floats) -> float | None:
    """Sum of precision times step of recall over distinct scores, from the highest down.

    >>> average_precision(np.array([False, True, True]), np.array([0.1, 0.4, 0.35]))
    1.0
    """
    total = int(fraud.sum())
    if not total:
        return None
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(fraud[order])
    last_of_tie = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found = hits[last_of_tie]
    precision = found / (last_of_tie + 1)
    return float((precision * np.diff(found, prepend=0)).sum() / total)


def auc(fraud: Bools, score: Floats) -> float | None:
    """Probability that a fraud scores above a legitimate payment; equal scores count half.

    >>> auc(np.array([False, True, True, False]), np.array([0.1, 0.4, 0.4, 0.4]))
    0.75
    """
    frauds = int(fraud.sum())
    others = len(fraud) - frauds
    if not frauds or not others:
        return None
    _, place, size = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2.0
    return float((rank[place][fraud].sum() - frauds * (frauds + 1) / 2.0) / (frauds * others))


def card_precision(day: Ints, account: Ints, fraud: Bools, score: Floats) -> tuple[float | None, float | None]:
    """(CP@100, the best attainable): see `Figures`."""
    if not len(day):
        return None, None
    order = np.lexsort((account, day))
    day, account, fraud, score = day[order], account[order], fraud[order], score[order]
    first = np.flatnonzero(np.append(True, (np.diff(day) != 0) | (np.diff(account) != 0)))
    best = np.maximum.reduceat(score, first)
    had = np.logical_or.reduceat(fraud, first)
    days = day[first]
    got: list[float] = []
    could: list[float] = []
    for part in np.split(np.arange(len(first)), np.flatnonzero(np.diff(days)) + 1):
        top = part[np.argsort(-best[part], kind="stable")[:CARDS]]
        got.append(had[top].sum() / CARDS)
        could.append(min(CARDS, int(had[part].sum())) / CARDS)
    return float(np.mean(got)), float(np.mean(could))


def alerted(day: Ints, score: Floats, rate: float) -> Bools:
    """Each day's ceil(rate * n) payments with the highest scores; of equal ones the earlier."""
    by_day = np.argsort(day, kind="stable")
    out = np.zeros(len(day), np.bool_)
    for part in np.split(by_day, np.flatnonzero(np.diff(day[by_day])) + 1):
        out[part[np.argsort(-score[part], kind="stable")[: int(np.ceil(rate * len(part)))]]] = True
    return out


def deciles(fraud: Bools, score: Floats) -> list[Decile]:
    """Tenths of the scored payments, from the lowest scores up."""
    scored = score >= 0.0
    fraud, score = fraud[scored], score[scored]
    order = np.argsort(score, kind="stable")
    out: list[Decile] = []
    for part in np.array_split(order, 10):
        if len(part):
            out.append(
                Decile(
                    score_from=float(score[part[0]]),
                    score_to=float(score[part[-1]]),
                    payments=len(part),
                    frauds=int(fraud[part].sum()),
                    expected=float(score[part].sum()),
                )
            )
    return out


def figures(event_ms: Ints, account: Ints, fraud: Bools, score: Floats) -> Figures:
    """All of it for one set of payments, in order of answers. `account`: a number for each account."""
    day = event_ms // DAY_MS
    frauds = int(fraud.sum())
    scored = score >= 0.0
    observed = int(fraud[scored].sum())
    cp, cp_max = card_precision(day, account, fraud, score)

    def recall(rate: float) -> float | None:
        return float(fraud[alerted(day, score, rate)].sum() / frauds) if frauds else None

    return Figures(
        payments=len(fraud),
        frauds=frauds,
        unscored=int(len(fraud) - scored.sum()),
        average_precision=average_precision(fraud, score),
        auc=auc(fraud, score),
        cp100=cp,
        cp100_max=cp_max,
        recall_half_percent=recall(0.005),
        recall_one_percent=recall(0.01),
        expected_over_observed=float(score[scored].sum() / observed) if observed else None,
    )


def months_of(event_ms: Ints) -> Any:
    """The month of each time, as numpy's datetime64[M]."""
    return event_ms.astype("datetime64[ms]").astype("datetime64[M]")
