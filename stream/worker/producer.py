"""The worker's producer: idempotent, acks=all, no time-out. A delivery error ends the process without a checkpoint."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from stream.errors import FraudstreamError
from stream.runner.partition import PartitionRunner, Send
from stream.stages.answers import DETAILS
from stream.stages.terminal import EXAMPLES
from stream.worker.quiet import librdkafka_logger

log = logging.getLogger(__name__)

QUEUE_MESSAGES_MAX = 200_000
QUEUE_KBYTES_MAX = 131_072
FULL_WAIT_S = 0.01
POLL_EVERY_S = 0.02  # acknowledgements are for checkpoints; to ask at each small step is dear
PATIENT_LINGER_MS = 250.0
PATIENT = frozenset({DETAILS, EXAMPLES})
"""Topics that nobody waits for. Small records for them gather, so that a broker is asked a tenth as often: at 1,000
payments/s on two cores that is what the latency of decisions hangs on."""
Delivered = Callable[[KafkaError | None, Message], None]


class DeliveryFailed(FraudstreamError):
    """The broker refused a record for good. Operator: see the cause; the process ends without a checkpoint."""


def producer_options(client: Mapping[str, Any], linger_ms: float) -> dict[str, Any]:
    """librdkafka's options. `linger_ms`: how long a record may wait for company."""
    return {
        **client,
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": 0,
        "linger.ms": linger_ms,
        "compression.type": "lz4",
        "batch.size": 262_144,
        "message.max.bytes": 2_000_000,
        "queue.buffering.max.messages": QUEUE_MESSAGES_MAX,
        "queue.buffering.max.kbytes": QUEUE_KBYTES_MAX,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1_000,  # the default lets ten seconds pass after a broker is back
        "socket.nagle.disable": True,  # else a small record waits 40 ms for the acknowledgement of the one before
    }


class WorkerProducer:
    """Sends for all partitions of a worker, and tells each runner what the brokers have. On the event loop only.

    Two clients: one that hardly waits for company, and one for `PATIENT` topics. A topic always goes through the same
    one, which keeps its order.
    """

    def __init__(
        self, client: Mapping[str, Any], *, prefix: str, linger_ms: float, failed: Callable[[BaseException], None]
    ) -> None:
        self._prompt = Producer(producer_options(client, linger_ms), logger=librdkafka_logger)
        patient_ms = max(linger_ms, PATIENT_LINGER_MS)
        self._patient = Producer(producer_options(client, patient_ms), logger=librdkafka_logger)
        self._prefix = prefix
        self._failed = failed
        self._ways: dict[str, tuple[str, Any]] = {}
        self._taken: list[Callable[[], None]] = []
        self._polled_s = 0.0
        self.waits = 0

    async def send(self, runner: PartitionRunner, sends: Sequence[Send]) -> None:
        """Hand all that a step sends to librdkafka, each topic's in order; a full queue is waited for."""
        if not sends:
            return
        delivered = self._delivered(runner, sends[0].generation)
        details = [send for send in sends if send.topic == DETAILS]
        one_by_one = [send for send in sends if send.topic != DETAILS]
        one_by_one += self._not_taken(details, delivered)
        ways = self._ways
        for name, partition, key, value, headers, _ in one_by_one:
            topic, produce = ways.get(name) or self._way(name)
            while True:
                try:
                    # By place: by name it takes a microsecond more.
                    produce(topic, value, key, partition, delivered, None, 0, headers or None)
                    break
                except BufferError:
                    self.waits += 1
                    self.poll()
                    await asyncio.sleep(FULL_WAIT_S)
        if time.monotonic() - self._polled_s > POLL_EVERY_S:
            self.poll()

    def _not_taken(self, details: Sequence[Send], delivered: Delivered) -> list[Send]:
        """Sends details in one call for each partition, at half of the CPU; those for which the queue had no room are
        left. Of details nobody needs the order."""
        by_partition: defaultdict[int, list[Send]] = defaultdict(list)
        for send in details:
            by_partition[send.partition].append(send)
        left: list[Send] = []
        for partition, sends in by_partition.items():
            # It takes no headers, and of a message's own partition no notice (confluent-kafka 2.16.1).
            messages = [{"value": send.value, "key": send.key} for send in sends]
            taken = self._patient.produce_batch(self._prefix + DETAILS, messages, partition, on_delivery=delivered)
            if taken < len(sends):
                left += [send for send, message in zip(sends, messages, strict=True) if "_error" in message]
        return left

    def _way(self, name: str) -> tuple[str, Any]:
        """The topic as the brokers know it, and what sends to it: typed `Any`, for its stub does not know that headers
        may be a list of any pairs."""
        producer = self._patient if name in PATIENT else self._prompt
        way = self._ways[name] = (self._prefix + name, producer.produce)
        return way

    def _delivered(self, runner: PartitionRunner, generation: int) -> Delivered:
        """One callback for all records of a runner's generation: it only counts, and `poll` tells the runner."""
        taken = self._taken
        count = 0

        def tell() -> None:
            nonlocal count
            told, count = count, 0
            runner.acknowledged(generation, told)

        def delivered(error: KafkaError | None, message: Message) -> None:
            nonlocal count
            if error is not None:
                self._failed(DeliveryFailed(f"{message.topic()}[{message.partition()}]: {error.name()}: {error.str()}"))
                return
            if not count:
                taken.append(tell)
            count += 1

        return delivered

    def poll(self) -> None:
        """Take what the brokers have acknowledged."""
        self._polled_s = time.monotonic()
        self._prompt.poll(0)
        self._patient.poll(0)
        for tell in self._taken:
            tell()
        self._taken.clear()

    def send_untracked(self, topic: str, partition: int, value: bytes) -> None:
        """A timer's record, or another that belongs to nobody's checkpoint; if it gets lost, the next one comes."""
        try:
            self._prompt.produce(self._prefix + topic, value=value, partition=partition)
        except BufferError:
            log.warning("no room for a record to %s[%d]", topic, partition)

    @property
    def queued(self) -> int:
        return len(self._prompt) + len(self._patient)

    def close(self, timeout_s: float = 2.0) -> None:
        """What is not delivered by then is sent again by whoever goes on from the checkpoint."""
        end_s = time.monotonic() + timeout_s
        for producer in (self._prompt, self._patient):
            producer.flush(max(0.0, end_s - time.monotonic()))
            producer.purge()
