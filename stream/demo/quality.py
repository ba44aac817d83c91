"""How well it detected: on the payments of the tail, by the model that decided them and by what could have instead.

The learner had seen no label of any payment of the tail, nor any label after its first payment, when it made the
version that decided it. Fraud is what the simulation knows, reported or not.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from confluent_kafka import Consumer, TopicPartition
from msgspec import Struct
from numpy.typing import NDArray

from stream.demo.tally import METADATA_S, ModelVersion, Tally
from stream.errors import OperatorError
from stream.evaluate.figures import average_precision
from stream.features import MODEL_NAMES
from stream.model.compiled import Compiled
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import VERDICTS
from stream.settings import Settings

DECIDED_SHARE_MIN: Final = 0.01
BATCH: Final = 2_000
WAIT_S: Final = 10.0
AMOUNT_AT: Final = MODEL_NAMES.index("amount")
SEVERITY: Final = {rule.code: VERDICTS.index(rule.action) for rule in DEFAULT_RULES.rules}


class VersionUse(Struct, frozen=True, kw_only=True):
    """`decided`: payments by this version. `share`: of all payments from its first decision on."""

    version: str
    decided: int
    share: float


class Quality(Struct, frozen=True, kw_only=True):
    """Average precision on the same `payments`, of which `frauds` are fraud.

    `as_decided`: by the probabilities that were answered. `last`, `first`: by those two versions, applied now to the
    features that were recorded then. `rescored_equal`: `last` gives the very probabilities that it answered.
    """

    payments: int
    frauds: int
    as_decided: float | None
    last: float | None
    first: float | None
    amount_only: float | None
    rules_only: float | None
    rescored_equal: bool


class _Versions(Struct):
    model: str | None = None


class _Hit(Struct):
    rule: str


class _Decision(Struct):
    versions: _Versions
    payment_id: str
    probability: float | None = None


class _Details(Struct):
    decision: _Decision
    features: bytes
    hits: list[_Hit] = []


def version_uses(tally: Tally) -> list[VersionUse]:
    """The versions that decided anything, in the order in which they were published."""
    uses: list[VersionUse] = []
    after = 0
    for version in reversed(tally.versions):
        decided = tally.decided_by[version.name]
        after += decided
        if decided:
            uses.append(VersionUse(version=version.name, decided=decided, share=round(decided / after, 4)))
    return uses[::-1]


def counted(uses: Sequence[VersionUse]) -> list[VersionUse]:
    """Versions that decided at least 1 % of the payments after them, each with content of its own.

    A name is an offset and the hash of the content.
    """
    contents: dict[str, VersionUse] = {}
    for use in uses:
        if use.share >= DECIDED_SHARE_MIN:
            contents.setdefault(use.version.split("-", 1)[1], use)
    return list(contents.values())


def measure(settings: Settings, tally: Tally, frauds: frozenset[str]) -> Quality | None:
    """Compare on all payments since the last counted version came; None if there is none."""
    names = [use.version for use in counted(version_uses(tally))]
    if not names:
        return None
    versions = {version.name: version for version in tally.versions}
    first, last = versions[names[0]], versions[names[-1]]
    later = {version.name for version in tally.versions[tally.versions.index(last) :]}
    details = list(_read_details(settings, last, later))
    features = np.frombuffer(b"".join(each.features for each in details), np.float32).reshape(-1, len(MODEL_NAMES))
    fraud = np.array([each.decision.payment_id in frauds for each in details], np.bool_)
    answered = np.array(
        [np.nan if each.decision.probability is None else each.decision.probability for each in details]
    )
    by_last = _scores(last, features)
    its_own = np.array([each.decision.versions.model == last.name for each in details], np.bool_)
    return Quality(
        payments=len(details),
        frauds=int(fraud.sum()),
        as_decided=_rounded(fraud, answered),
        last=_rounded(fraud, by_last),
        first=_rounded(fraud, _scores(first, features)),
        amount_only=_rounded(fraud, np.nan_to_num(features[:, AMOUNT_AT].astype(np.float64), nan=-1.0)),
        rules_only=_rounded(fraud, np.array([_by_rules(each.hits) for each in details], np.float64)),
        rescored_equal=bool((by_last[its_own] == answered[its_own]).all()),
    )


def _scores(version: ModelVersion, features: NDArray[np.float32]) -> NDArray[np.float64]:
    return Compiled.decode(version.compiled).score(features)[0]


def _rounded(fraud: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    value = average_precision(fraud, score)
    return None if value is None else round(value, 4)


def _by_rules(hits: Sequence[_Hit]) -> float:
    """The severest action that a rule asks for, and among equals how many rules spoke."""
    return max((SEVERITY.get(hit.rule, 0) for hit in hits), default=0) + len(hits) / 100.0


def _read_details(settings: Settings, since: ModelVersion, versions: set[str]) -> Iterator[_Details]:
    """Details of the payments that one of `versions` decided; earlier ones than `since` are not even read."""
    topic = settings.prefix + "decision-details"
    decoder = msgspec.json.Decoder(_Details)
    consumer = Consumer({**settings.client(), "group.id": f"{settings.group}-details", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=METADATA_S).topics[topic].partitions
        wanted = [TopicPartition(topic, partition, since.at_ms) for partition in partitions]
        starts = [start for start in consumer.offsets_for_times(wanted, timeout=METADATA_S) if start.offset >= 0]
        left = {
            start.partition: consumer.get_watermark_offsets(start, timeout=METADATA_S)[1] - start.offset
            for start in starts
        }
        consumer.assign(starts)
        while any(left.values()):
            messages = consumer.consume(BATCH, WAIT_S)
            if not messages:
                raise OperatorError(f"{topic}: no records for {WAIT_S:.0f} s before its end")
            for message in messages:
                left[message.partition() or 0] -= 1
                details = decoder.decode(message.value() or b"")
                if details.decision.versions.model in versions:
                    yield details
    finally:
        consumer.close()
