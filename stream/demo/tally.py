"""Counts what stands on the topics while it is written: it reads them as anyone could, and asks no worker."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from stream.errors import OperatorError
from stream.settings import Settings
from stream.stages.control import ModelPayload
from topics.control import Control, payload_as
from topics.journal import EXAMPLE_CORRECTED, EXAMPLE_LABELLED, EXAMPLE_MATURED, Example, decode_block
from topics.refusals import Cause

TOPICS: Final = ("payments", "decisions", "dead-letters", "examples", "control")
BATCH: Final = 1_000
WAIT_S: Final = 0.2
METADATA_S: Final = 20.0
RECENT: Final = 5_000

Place: TypeAlias = tuple[int, int]
"""Partition and offset of a record on `payments`."""


class _Versions(msgspec.Struct):
    model: str | None = None


class _Answer(msgspec.Struct):
    outcome: str
    versions: _Versions
    payment_id: str | None = None
    probability: float | None = None
    cause: str | None = None


class _Letter(msgspec.Struct):
    cause: str


class ModelVersion(msgspec.Struct, frozen=True):
    """A version that the learner published. `at_ms`: when the broker took it."""

    name: str
    at_ms: int
    compiled: bytes


class Tally:
    """What has been seen so far. One thread writes, others read numbers that may be a moment old.

    `frauds`: ids of fraudulent payments. `bad`: values that must be refused, with the cause.
    """

    def __init__(self, frauds: frozenset[str], bad: Mapping[bytes, Cause]) -> None:
        self._frauds = frauds
        self._bad = bad
        self.payment_at_ms: dict[Place, int] = {}
        self.answer_at_ms: dict[Place, int] = {}
        self.expected: dict[Place, Cause] = {}
        self.refused: dict[Place, str] = {}
        self.deliveries = 0
        self.repeats = 0
        self.outcomes: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()
        self.examples: Counter[int] = Counter()
        self.versions: list[ModelVersion] = []
        self.held_versions = 0
        self.decided_by: Counter[str] = Counter()
        self.probability: list[float] = []
        self.fraud: list[bool] = []
        self.stopped: list[bool] = []
        self.latencies_ms: list[int] = []
        self.recent_ms: deque[int] = deque(maxlen=RECENT)
        self._examples_seen: set[tuple[int, int, int, bytes]] = set()
        self._answer = msgspec.json.Decoder(_Answer)
        self._letter = msgspec.json.Decoder(_Letter)
        self._control = msgspec.json.Decoder(Control)
        self._readers: dict[str, Callable[[Message], None]] = {
            "payments": self._take_payment,
            "decisions": self._take_decision,
            "dead-letters": self._take_letter,
            "examples": self._take_examples,
            "control": self._take_control,
        }

    def take(self, topic: str, message: Message) -> None:
        """One record; `topic` without prefix."""
        self._readers[topic](message)

    @property
    def answered(self) -> int:
        """Records of `payments` with an answer."""
        return len(self.answer_at_ms)

    @property
    def labels_joined(self) -> int:
        """Labels that met the features of their payment, and taught something."""
        return self.examples[EXAMPLE_LABELLED] + self.examples[EXAMPLE_CORRECTED]

    @property
    def examples_in_all(self) -> int:
        """Rows with a truth: from labels, from corrections, and from silence."""
        return self.labels_joined + self.examples[EXAMPLE_MATURED]

    @property
    def bad_refused(self) -> int:
        """Records that were spoilt on purpose, and are refused for the very cause that was meant."""
        return sum(self.refused.get(place) == cause for place, cause in self.expected.items())

    @property
    def wrongly_refused(self) -> int:
        """Refused records that nobody spoilt."""
        return len(self.refused.keys() - self.expected.keys())

    def begin_measuring(self) -> None:
        """Forget the latencies of the opening, while workers still started."""
        self.latencies_ms = []
        self.recent_ms.clear()

    def _take_payment(self, message: Message) -> None:
        place = (message.partition() or 0, message.offset() or 0)
        at_ms = message.timestamp()[1]
        self.payment_at_ms[place] = at_ms
        cause = self._bad.get(message.value() or b"")
        if cause is not None:
            self.expected[place] = cause
        answered_ms = self.answer_at_ms.get(place)
        if answered_ms is not None:
            self._measure(answered_ms - at_ms)

    def _take_decision(self, message: Message) -> None:
        self.deliveries += 1
        headers: dict[str, Any] = dict(message.headers() or [])
        _, partition, offset = headers["origin"].split(b":")
        place = (int(partition), int(offset))
        if place in self.answer_at_ms:
            return
        at_ms = message.timestamp()[1]
        self.answer_at_ms[place] = at_ms
        asked_ms = self.payment_at_ms.get(place)
        if asked_ms is not None:
            self._measure(at_ms - asked_ms)
        answer = self._answer.decode(message.value() or b"")
        if answer.outcome == "refused":
            self.refused[place] = answer.cause or ""
        if headers.get("answer") == b"repeat":
            self.repeats += 1
            return
        self.outcomes[answer.outcome] += 1
        if answer.outcome == "refused":
            return
        self.decided_by[answer.versions.model or ""] += 1
        self.probability.append(-1.0 if answer.probability is None else answer.probability)
        self.fraud.append(answer.payment_id in self._frauds)
        self.stopped.append(answer.outcome != "approve")

    def _measure(self, latency_ms: int) -> None:
        self.latencies_ms.append(latency_ms)
        self.recent_ms.append(latency_ms)

    def _take_letter(self, message: Message) -> None:
        self.letters[self._letter.decode(message.value() or b"").cause] += 1

    def _take_examples(self, message: Message) -> None:
        block = decode_block(message.value() or b"")
        for item in block.items:
            if isinstance(item, Example):
                seen = (block.partition, item.offset, item.n, item.pid)
                if seen not in self._examples_seen:
                    self._examples_seen.add(seen)
                    self.examples[item.kind] += 1

    def _take_control(self, message: Message) -> None:
        record = self._control.decode(message.value() or b"")
        if record.kind != "model":
            return
        payload = payload_as(record, ModelPayload)
        if payload.held is not None:
            self.held_versions += 1
        elif all(version.name != payload.version for version in self.versions):
            self.versions.append(ModelVersion(payload.version, message.timestamp()[1], payload.compiled))


class Watch:
    """Feeds a tally from the broker, in a thread, from the topics' beginnings until the block ends."""

    def __init__(self, settings: Settings, tally: Tally) -> None:
        self._prefix = settings.prefix
        self._tally = tally
        self._consumer = Consumer(
            {
                **settings.client(),
                "group.id": f"{settings.group}-watch",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "fetch.min.bytes": 65_536,  # it watches, and must not cost the broker what answers need
            }
        )
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="demo-watch", daemon=True)

    def __enter__(self) -> Self:
        self._consumer.assign(list(self._partitions(TOPICS)))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def check(self) -> None:
        """Raises what the thread ended with."""
        if self._failure is not None:
            raise self._failure

    def _partitions(self, topics: Iterable[str]) -> Iterable[TopicPartition]:
        for topic in topics:
            name = self._prefix + topic
            metadata: Any = self._consumer.list_topics(name, timeout=METADATA_S).topics[name]
            for partition in metadata.partitions:
                yield TopicPartition(name, partition, 0)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for message in self._consumer.consume(BATCH, WAIT_S):
                    error: KafkaError | None = message.error()
                    if error is not None:
                        raise OperatorError(f"{message.topic()}: {error.str()}")
                    self._tally.take((message.topic() or "")[len(self._prefix) :], message)
        except Exception as failure:
            self._failure = failure
