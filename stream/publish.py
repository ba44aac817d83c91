"""Puts records on Kafka as a processor would: keyed by account, in the order given, at a steady rate if asked.

Records carry no timestamp of ours: the broker's is the measure of what is from the future.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from stream.dataset import TOPIC_OF, Event
from stream.errors import OperatorError

FLUSH_SLICE_S: Final = 0.2
METADATA_TIMEOUT_S: Final = 20.0
SERVE_EVERY: Final = 1_000  # records between two looks at delivery reports
DELIVERY_TIMEOUT_MS: Final = 120_000

_FIRST_PARTITION: Final = {"partition": 0}

# librdkafka waits in whole milliseconds; below one it would spin.
WAIT_SHORTEST_S: Final = 0.001

Clock = Callable[[], float]


class PublishFailed(OperatorError):
    """The broker did not take a record, or topics are missing. Sending all of it again is harmless."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent and acknowledged. `late_s`: how far the last record was behind its time, with a rate."""

    payments: int
    labels: int
    clocks: int
    updates: int
    records: int
    value_bytes: int
    seconds: float
    payments_per_second: float
    late_s: float


def connect(client: Mapping[str, Any]) -> Producer:
    """An idempotent producer. `client`: where the broker is, and how to log in (`Settings.client`)."""
    return Producer(
        {
            **client,
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "linger.ms": 5,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
            # A call in Python for each record would double its cost. What fails is all that we must hear of.
            "delivery.report.only.error": True,
        }
    )


class Publisher:
    """Sends events to their topics, in the order of the calls to `send`. Not for several threads.

    A label never overtakes a clock record: both go to the one partition of `labels` through one idempotent producer,
    which keeps their order also when it sends again.
    """

    def __init__(self, producer: Producer, *, prefix: str = "") -> None:
        self._producer = producer
        self._topics = {kind: prefix + topic for kind, topic in TOPIC_OF.items()}
        self._failed: KafkaError | None = None
        self._counts: Counter[str] = Counter()
        self._value_bytes = 0
        self._since_serve = 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Records sent so far, by kind of event."""
        return self._counts

    @property
    def value_bytes(self) -> int:
        """Bytes of the values sent so far."""
        return self._value_bytes

    def require_topics(self, kinds: Iterable[str]) -> None:
        """Raises `PublishFailed` if a topic is missing: a broker might make it by itself, with wrong settings."""
        try:
            found = self._producer.list_topics(timeout=METADATA_TIMEOUT_S).topics
        except KafkaException as error:
            raise PublishFailed(f"the broker does not answer: {error.args[0].str()}") from error
        missing = sorted({self._topics[kind] for kind in kinds} - set(found))
        if missing:
            raise PublishFailed(f"no topic {', '.join(missing)}: create it first (fraud topics create)")

    def send(self, event: Event) -> None:
        """Hand over one record; waits while the queue is full. Raises `PublishFailed` once a delivery failed."""
        key = event.account_id.encode() or None
        topic = self._topics[event.kind]
        # `labels` has one partition; by its number, so that one more, made by mistake, cannot part labels and clock.
        where: dict[str, Any] = {} if event.kind in ("payment", "update") else _FIRST_PARTITION
        while True:
            try:
                self._producer.produce(topic, event.value, key, on_delivery=self._report, **where)
                break
            except BufferError:
                self.wait(FLUSH_SLICE_S)
            except KafkaException as error:
                raise PublishFailed(f"the producer refused a record: {error.args[0].str()}") from error
        self._counts[event.kind] += 1
        self._value_bytes += len(event.value)
        self._since_serve += 1
        if self._since_serve >= SERVE_EVERY:
            self._since_serve = 0
            self.wait(0.0)

    def wait(self, seconds: float) -> None:
        """Let time pass, hearing delivery reports."""
        self._producer.poll(seconds)
        self._check()

    def finish(self) -> None:
        """Wait until all is acknowledged. Raises `PublishFailed` otherwise."""
        while self._producer.flush(FLUSH_SLICE_S):
            self._check()
        self._check()

    def abandon(self) -> None:
        """Drop what waits to be sent, so that the process can end at once."""
        self._producer.purge()

    def _report(self, error: KafkaError | None, _message: object) -> None:
        if error is not None and self._failed is None:
            self._failed = error

    def _check(self) -> None:
        if self._failed is not None:
            raise PublishFailed(f"a record was not delivered: {self._failed.str()}")


def publish(
    events: Iterable[Event],
    publisher: Publisher,
    *,
    rate: float | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Published:
    """Send all events and wait for the broker's word. Raises `PublishFailed`.

    `rate`: payments a second, open loop: payment i is due at i / rate seconds after the start, however long sending
    takes; other records go along in order. None: as fast as the broker takes them.
    `progress`: called with the number of records since its last call, some times a second.
    """
    if rate is not None and not rate > 0:
        raise ValueError("rate must be positive")
    start = clock()
    late_s = 0.0
    payments = told = sent = 0
    tell_every = max(1, min(SERVE_EVERY, int(rate / 10) if rate else SERVE_EVERY))
    for event in events:
        if rate is not None and event.kind == "payment":
            due = start + payments / rate
            while (ahead_s := due - clock()) >= WAIT_SHORTEST_S:
                publisher.wait(ahead_s)
            late_s = max(0.0, -ahead_s)
            payments += 1
        publisher.send(event)
        sent += 1
        if progress is not None and sent - told >= tell_every:
            progress(sent - told)
            told = sent
    publisher.finish()
    if progress is not None and sent > told:
        progress(sent - told)
    seconds = clock() - start
    counts = publisher.counts
    return Published(
        payments=counts.get("payment", 0),
        labels=counts.get("label", 0),
        clocks=counts.get("clock", 0),
        updates=counts.get("update", 0),
        records=sent,
        value_bytes=publisher.value_bytes,
        seconds=round(seconds, 3),
        payments_per_second=round(counts.get("payment", 0) / seconds, 1) if seconds > 0 else 0.0,
        late_s=round(late_s, 3),
    )


class _Keyed(msgspec.Struct):
    """What the key of a line needs."""

    account_id: str = ""


_keyed = msgspec.json.Decoder(_Keyed)


def line_events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Payments from JSON lines, as they are: a line that is no payment is sent, too, and answered `refused`.

    Empty lines are left out. `at_ms` is 0: nothing here reads the time.

    >>> [event.account_id for event in line_events([b'{"account_id":"a"}\\n', b"\\n", b"oops"])]
    ['a', '']
    """
    for line in lines:
        value = line.rstrip(b"\r\n")
        if not value:
            continue
        try:
            account_id = _keyed.decode(value).account_id
        except (msgspec.MsgspecError, UnicodeDecodeError):
            account_id = ""
        yield Event("payment", 0, value, account_id, "")
