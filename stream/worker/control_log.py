"""The one input that is read ahead: skips, and from where a topic is read first. Both are records of `control`.

Everything else in `control` reaches a stage through its journal only.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from stream.broker.offsets import watermarks
from stream.errors import ConfigurationError, OperatorError
from stream.worker.quiet import librdkafka_logger
from topics.control import Init, parse_control, payload_as
from topics.refusals import Refusal
from topics.skips import Skips, topic_id_in

log = logging.getLogger(__name__)

READ_S_MAX = 60.0
POLL_S = 0.5
VERSIONS_MAX = 1_000  # whose time is remembered


class ControlLog:
    """Reads `control` from its first record: to the end at start, then in a thread.

    `on_skip(topic id, partition, offset)` is called in that thread for each skip that comes later.
    """

    def __init__(self, client: Mapping[str, Any], topic: str, *, on_skip: Callable[[bytes, int, int], None]) -> None:
        self._topic = topic
        self._on_skip = on_skip
        self._skips = Skips()
        self._starts: dict[tuple[str, int], int] = {}
        self._published_ms: dict[str, int] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._read = 0
        self._consumer = Consumer(
            {
                **client,
                "group.id": "fraudstream-control-log",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
            },
            logger=librdkafka_logger,
        )

    def read_to_end(self) -> None:
        """Blocks until all that stands in the topic now is known."""
        try:
            low, high = watermarks(self._consumer, self._topic, 0, timeout_s=READ_S_MAX)
        except KafkaException as error:
            raise OperatorError(f"cannot read {self._topic}: {error}") from error
        self._read = low
        self._consumer.assign([TopicPartition(self._topic, 0, low)])
        while self._read < high:
            self._take(POLL_S)

    def follow(self) -> None:
        self._thread = threading.Thread(target=self._follow, name="control-log", daemon=True)
        self._thread.start()

    def skips(self, topic_id: bytes, partition: int) -> set[int]:
        """Offsets of a journal's partition that an operator has skipped."""
        return self._skips.of(topic_id, partition)

    def has_stopped(self, topic_id: bytes, partition: int, offset: int) -> bool:
        """Whether it is on record that a worker stopped at that record: without it a skip does nothing."""
        return self._skips.has_stopped(topic_id, partition, offset)

    def start_offset(self, topic: str, partition: int) -> int:
        """Where a partition without state begins. Raises `ConfigurationError` before the first `fraud init`."""
        if topic == self._control_name:
            return 0
        offset = self._starts.get((topic, partition))
        if offset is None:
            raise ConfigurationError(
                f"nobody has said from where {topic}[{partition}] is read first. Operator: `fraud init --from "
                f"earliest|latest|TIME`"
            )
        return offset

    def published_ms(self, version: str) -> int | None:
        """When the broker took a model's version, ms UTC; None if it is not among the latest."""
        return self._published_ms.get(version)

    _control_name = "control"

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * POLL_S)
        self._consumer.close()

    def _follow(self) -> None:
        while not self._closing.is_set():
            self._take(POLL_S)

    def _take(self, wait_s: float) -> None:
        message = self._consumer.poll(wait_s)
        if message is None:
            return
        error = message.error()
        if error is not None:
            log.warning("reading %s: %s", self._topic, error)
            return
        self._read = (message.offset() or 0) + 1
        record = parse_control(message.value())
        if isinstance(record, Refusal):
            return
        try:
            if record.kind in ("skip", "stopped"):
                skip = self._skips.take(record)
                if skip is not None:
                    self._on_skip(topic_id_in(skip), skip.partition, skip.offset)
                elif record.kind == "skip":
                    log.warning("%s@%d is ignored: no partition had stopped there", self._topic, self._read - 1)
            elif record.kind == "model" and record.version is not None:
                self._published_ms[record.version] = message.timestamp()[1]
                while len(self._published_ms) > VERSIONS_MAX:
                    del self._published_ms[next(iter(self._published_ms))]
            elif record.kind == "init":
                for topic, offsets in payload_as(record, Init).offsets.items():
                    for partition, offset in enumerate(offsets):
                        self._starts.setdefault((topic, partition), offset)
        except (msgspec.MsgspecError, ValueError) as why:
            log.warning("%s@%d cannot be read: %s", self._topic, self._read - 1, why)
