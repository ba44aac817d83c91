"""What operators do: they write records to `control`, and nowhere else. Each says who and why."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from msgspec import Struct

from stream.broker.offsets import watermarks
from stream.broker.topic_admin import Created, await_leaders, create_topics, describe_topics, id_bytes
from stream.errors import ConfigurationError, OperatorError
from stream.rules.policy import Policy
from stream.settings import Settings
from stream.version import ENGINE_FIRST, ENGINE_VERSION
from stream.worker.control_log import ControlLog
from topics.catalogue import catalogue
from topics.control import ControlKind, Engine, Init, Rates, Skip, encode_control
from topics.limits import LIMITS_DEFAULT, Limits, contradictions

SOURCES = ("payments", "updates", "labels")
ANSWER_S = 30.0

Start = Literal["earliest", "latest"] | int
"""From where the foreign topics are read first: one of two words, or a time in ms UTC (the broker's time)."""


def write_control(settings: Settings, kind: ControlKind, payload: Struct, *, by: str, why: str) -> int:
    """Append one record to `control`; its offset. Raises `OperatorError` if the broker does not take it."""
    value = encode_control(kind=kind, by=by, why=why, payload=payload, written_at=int(time.time() * 1000))
    offsets: list[int] = []
    failures: list[str] = []

    def delivered(error: KafkaError | None, message: Any) -> None:
        if error is not None:
            failures.append(error.str())
        else:
            offsets.append(message.offset())

    client = {
        **settings.client(),
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": int(ANSWER_S * 1000),
    }
    producer = Producer(client)
    producer.produce(settings.prefix + "control", value=value, key=kind.encode(), partition=0, on_delivery=delivered)
    producer.flush(ANSWER_S)
    if failures or not offsets:
        raise OperatorError(f"control record not written: {failures[0] if failures else 'the broker does not answer'}")
    return offsets[0]


class Initialised(Struct, frozen=True, kw_only=True):
    """What `initialise` did. `offsets`: topic → where each partition begins; `existed`: it had been done before."""

    created: list[str]
    offsets: dict[str, list[int]]
    existed: bool


def initialise(
    settings: Settings,
    start: Start,
    *,
    by: str,
    why: str,
    partitions: int | None = None,
    replication: int = -1,
    limits: Limits = LIMITS_DEFAULT,
    base_currency: str | None = None,
    policy: Policy | None = None,
) -> Initialised:
    """Make the topics, and say from where they are read first, under which settings. A second time changes nothing.

    Raises `ConfigurationError` if the limits contradict each other, `OperatorError` if the broker does not answer.
    """
    found = contradictions(limits)
    if found:
        raise ConfigurationError("; ".join(found))
    wanted = list(catalogue(settings.prefix, partitions).values())
    made: Created = create_topics(settings.client(), wanted, replication=replication)
    await_leaders(settings.client(), [topic.name for topic in wanted])
    control = ControlLog(settings.client(), settings.prefix + "control", on_skip=_nothing_yet)
    try:
        control.read_to_end()
        existed = control.initialised
    finally:
        control.close()
    offsets = _start_offsets(settings, start)
    if not existed:
        if ENGINE_VERSION != ENGINE_FIRST:
            write_control(settings, "engine", Engine(engine=ENGINE_VERSION), by=by, why=why)
        if limits != LIMITS_DEFAULT:
            write_control(settings, "settings", limits, by=by, why=why)
        if base_currency is not None:
            write_control(settings, "rates", Rates(base=base_currency, nano_base_per_minor={}), by=by, why=why)
        if policy is not None:
            write_control(settings, "policy", policy, by=by, why=why)
        write_control(settings, "init", Init(offsets=offsets), by=by, why=why)
    return Initialised(created=list(made.created), offsets=offsets, existed=existed)


def _nothing_yet(_topic_id: bytes, _partition: int, _offset: int) -> None:
    """Skips are the workers' business."""


def _start_offsets(settings: Settings, start: Start) -> dict[str, list[int]]:
    names = [settings.prefix + topic for topic in SOURCES]
    described = describe_topics(settings.client(), names)
    consumer = Consumer({**settings.client(), "group.id": "fraudstream-init", "enable.auto.commit": False})
    try:
        return {
            topic: [
                _start_offset(consumer, settings.prefix + topic, partition, start)
                for partition in range(len(described[settings.prefix + topic].partitions))
            ]
            for topic in SOURCES
        }
    except KafkaException as error:
        raise OperatorError(f"the broker does not say where its topics begin: {error}") from error
    finally:
        consumer.close()


def _start_offset(consumer: Consumer, topic: str, partition: int, start: Start) -> int:
    low, high = watermarks(consumer, topic, partition, timeout_s=ANSWER_S)
    if start == "earliest":
        return low
    if start == "latest":
        return high
    (found,) = consumer.offsets_for_times([TopicPartition(topic, partition, start)], timeout=ANSWER_S)
    return high if found.offset < 0 else found.offset


def topic_id_of(settings: Settings, topic: str) -> bytes:
    """The broker's id of one of our topics (16 bytes). Raises `OperatorError` if there is none."""
    described: Mapping[str, Any] = describe_topics(settings.client(), [settings.prefix + topic])
    if settings.prefix + topic not in described:
        raise OperatorError(f"no topic {settings.prefix + topic}")
    return id_bytes(described[settings.prefix + topic].topic_id)


def skip(settings: Settings, topic: str, partition: int, offset: int, *, by: str, why: str) -> int:
    """Let a stopped partition go on without one record; the offset of the control record.

    Raises `OperatorError` if no worker has said that it stopped there.
    """
    topic_id = topic_id_of(settings, topic)
    control = ControlLog(settings.client(), settings.prefix + "control", on_skip=_nothing_yet)
    try:
        control.read_to_end()
        stopped = control.has_stopped(topic_id, partition, offset)
    finally:
        control.close()
    if not stopped:
        raise OperatorError(
            f"no worker has stopped at {topic}[{partition}]@{offset}: to skip a record that can be applied would "
            f"change what was answered. Operator: the log line that says STOPPED names the record"
        )
    payload = Skip(topic_id=topic_id.hex(), partition=partition, offset=offset)
    return write_control(settings, "skip", payload, by=by, why=why)


__all__: Sequence[str] = ("Initialised", "Start", "initialise", "skip", "topic_id_of", "write_control")
