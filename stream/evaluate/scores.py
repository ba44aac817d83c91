"""Scores and truths of a run, collected for its figures: 21 bytes a payment and one entry an account."""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from msgspec import Struct

from stream.dataset import LABEL_FIELDS, encode_rows
from stream.evaluate.answers import Answer
from stream.evaluate.figures import UNSCORED, Bools, Decile, Figures, deciles, figures, months_of
from topics.codec import parse_label
from topics.label import Label
from topics.limits import LIMITS_DEFAULT
from topics.payment import TENANT_DEFAULT
from topics.refusals import Refusal
from topics.truth import truth_of

Key = tuple[str, str, str]
"""Tenant, account, payment."""


def frauds_of(labels: Path) -> set[Key]:
    """Payments that are fraud by all of their labels, whenever observed: for figures only, no answer sees it."""
    by_payment: dict[Key, list[Label]] = defaultdict(list)
    with pq.ParquetFile(labels) as file:
        for batch in file.iter_batches():
            for value in encode_rows(batch, LABEL_FIELDS):
                parsed = parse_label(value, LIMITS_DEFAULT)
                if not isinstance(parsed, Refusal):
                    label = parsed.label
                    by_payment[label.tenant_id, label.account_id or "", label.payment_id or ""].append(label)
    return {key for key, words in by_payment.items() if truth_of(words).fraud}


class Month(Struct, frozen=True, kw_only=True):
    """`month`: as in 2018-08."""

    month: str
    figures: Figures


class Report(Struct, frozen=True, kw_only=True):
    """Figures over all, by month, and tenths of the scores."""

    figures: Figures
    months: list[Month]
    deciles: list[Decile]


class Scores:
    """Takes answers in order; refusals have no part in the figures."""

    def __init__(self, frauds: set[Key]) -> None:
        self._frauds = frauds
        self._event_ms = array("q")
        self._account = array("i")
        self._score = array("d")
        self._fraud = bytearray()
        self._accounts: dict[tuple[str, str], int] = {}
        self.versions: set[str] = set()

    def add(self, answers: Sequence[Answer]) -> None:
        frauds, accounts = self._frauds, self._accounts
        decided = [answer for answer in answers if answer.cause is None]
        names = [(answer.tenant_id or TENANT_DEFAULT, answer.account_id or "") for answer in decided]
        self._event_ms.extend([answer.event_time or 0 for answer in decided])
        self._account.extend([accounts.setdefault(name, len(accounts)) for name in names])
        self._score.extend([UNSCORED if answer.probability is None else answer.probability for answer in decided])
        self._fraud.extend(
            [(*name, answer.payment_id or "") in frauds for name, answer in zip(names, decided, strict=True)]
        )
        self.versions.update([answer.versions.model for answer in decided if answer.versions.model is not None])

    def report(self, from_ms: int | None = None, to_ms: int | None = None) -> Report:
        """Figures of payments with from_ms <= event time < to_ms."""
        event_ms = np.array(self._event_ms, np.int64)
        inside: Bools = np.ones(len(event_ms), np.bool_)
        if from_ms is not None:
            inside &= event_ms >= from_ms
        if to_ms is not None:
            inside &= event_ms < to_ms
        event_ms = event_ms[inside]
        account = np.array(self._account, np.int64)[inside]
        score = np.array(self._score, np.float64)[inside]
        fraud = np.frombuffer(bytes(self._fraud), np.bool_)[inside]
        month = months_of(event_ms)
        return Report(
            figures=figures(event_ms, account, fraud, score),
            months=[
                Month(
                    month=str(name),
                    figures=figures(
                        event_ms[month == name], account[month == name], fraud[month == name], score[month == name]
                    ),
                )
                for name in np.unique(month)
            ],
            deciles=deciles(fraud, score),
        )
