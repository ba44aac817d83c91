"""Everything that a report on quality shows, from one prequential run."""

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from msgspec import Struct

from stream.evaluate.ablation import EXAMPLES_MAX, Ablation, ablation
from stream.evaluate.answers import Answer
from stream.evaluate.cost import Cost, cost_of
from stream.evaluate.figures import UNSCORED, Bools, Floats, Ints, average_precision
from stream.evaluate.run import Evaluated, Files, Watch, evaluate
from stream.evaluate.scores import Key, frauds_of
from stream.evaluate.settings import Evaluation
from stream.replay.training_set import examples_of
from topics.payment import TENANT_DEFAULT

WEEK_MS: Final = 7 * 86_400_000
CURVE_POINTS: Final = 200


class Point(Struct, frozen=True, kw_only=True):
    """One threshold: payments with at least this probability are alerts."""

    probability: float
    recall: float
    precision: float


class Week(Struct, frozen=True, kw_only=True):
    """Seven days of payments by event time. `begin_ms`: UTC; `versions`: models that scored in it."""

    begin_ms: int
    payments: int
    frauds: int
    average_precision: float | None
    expected_over_observed: float | None
    versions: int


class ReasonFigures(Struct, frozen=True, kw_only=True):
    """Answers that carry a reason, and how many of these payments were frauds."""

    reason: str
    answers: int
    frauds: int

    @property
    def precision(self) -> float:
        return self.frauds / self.answers


class Quality(Struct, frozen=True, kw_only=True):
    """`ablation`: the whole model first; empty if it was not asked for. `cost`: None while there is no model."""

    evaluated: Evaluated
    curve: list[Point]
    weeks: list[Week]
    reasons: list[ReasonFigures]
    ablation: list[Ablation]
    cost: Cost | None


class Seen:
    """Takes answers in order: 24 bytes a payment and one entry a version. Refusals have no part."""

    def __init__(self, frauds: set[Key], from_ms: int | None, to_ms: int | None) -> None:
        self._frauds = frauds
        self._from_ms = -math.inf if from_ms is None else from_ms
        self._to_ms = math.inf if to_ms is None else to_ms
        self._event_ms = array("q")
        self._score = array("d")
        self._version = array("i")
        self._fraud = bytearray()
        self._versions: dict[str, int] = {}
        self._by_reason: dict[str, list[int]] = {}

    def add(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            event_ms = answer.event_time or 0
            if answer.cause is not None or not self._from_ms <= event_ms < self._to_ms:
                continue
            key = (answer.tenant_id or TENANT_DEFAULT, answer.account_id or "", answer.payment_id or "")
            fraud = key in self._frauds
            self._event_ms.append(event_ms)
            self._score.append(UNSCORED if answer.probability is None else answer.probability)
            self._fraud.append(fraud)
            version = answer.versions.model
            self._version.append(-1 if version is None else self._versions.setdefault(version, len(self._versions)))
            for reason in answer.reasons:
                counted = self._by_reason.setdefault(reason, [0, 0])
                counted[0] += 1
                counted[1] += fraud

    @property
    def arrays(self) -> tuple[Ints, Bools, Floats, Ints]:
        """Event times, truths, scores, numbers of versions (-1: none)."""
        return (
            np.array(self._event_ms, np.int64),
            np.frombuffer(bytes(self._fraud), np.bool_),
            np.array(self._score, np.float64),
            np.array(self._version, np.int64),
        )

    @property
    def reasons(self) -> list[ReasonFigures]:
        """The most frequent first."""
        rows = [ReasonFigures(reason=name, answers=n, frauds=f) for name, (n, f) in self._by_reason.items()]
        return sorted(rows, key=lambda row: (-row.answers, row.reason))


def curve_of(fraud: Bools, score: Floats, points: int = CURVE_POINTS) -> list[Point]:
    """Recall and precision at thresholds whose recalls are evenly spread, from the highest threshold down.

    >>> [(p.recall, p.precision) for p in curve_of(np.array([True, False, True]), np.array([0.9, 0.5, 0.4]))]
    [(0.5, 1.0), (1.0, 0.6666666666666666)]
    """
    scored = score >= 0.0
    total = int(fraud.sum())
    if not total or not scored.any():
        return []
    fraud, score = fraud[scored], score[scored]
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(fraud[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found = hits[last]
    wanted = np.unique(np.searchsorted(found, np.linspace(1, found[-1], min(points, max(1, int(found[-1]))))))
    return [
        Point(
            probability=float(score[order[last[i]]]),
            recall=float(found[i] / total),
            precision=float(found[i] / (last[i] + 1)),
        )
        for i in wanted
        if i < len(last)
    ]


def weeks_of(event_ms: Ints, fraud: Bools, score: Floats, version: Ints) -> list[Week]:
    """The weeks in order; each begins at a multiple of seven days since 1970."""
    week = event_ms // WEEK_MS
    found: list[Week] = []
    for number in np.unique(week):
        inside = week == number
        scored = inside & (score >= 0.0)
        observed = int(fraud[scored].sum())
        found.append(
            Week(
                begin_ms=int(number) * WEEK_MS,
                payments=int(inside.sum()),
                frauds=int(fraud[inside].sum()),
                average_precision=average_precision(fraud[inside], score[inside]) if scored.any() else None,
                expected_over_observed=float(score[scored].sum() / observed) if observed else None,
                versions=len(np.unique(version[scored])),
            )
        )
    return found


def quality(
    files: Files,
    settings: Evaluation,
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    ablation_examples: int = EXAMPLES_MAX,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Evaluate, and look at it from all sides. `ablation_examples` 0: no ablation. Raises `DatasetError`."""
    seen = Seen(frauds_of(files.labels), from_ms, to_ms)
    watch = Watch([seen])
    evaluated = evaluate(files, settings, from_ms=from_ms, to_ms=to_ms, watch=watch, progress=progress)
    arrays: Any = seen.arrays
    event_ms, fraud, score, version = arrays
    return Quality(
        evaluated=evaluated,
        curve=curve_of(fraud, score),
        weeks=weeks_of(event_ms, fraud, score, version),
        reasons=seen.reasons,
        ablation=ablation(list(examples_of(watch.examples)), examples_max=ablation_examples)
        if ablation_examples
        else [],
        cost=None if watch.learner is None else cost_of(watch.learner),
    )
