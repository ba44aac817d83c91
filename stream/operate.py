"""What operators do: they write records to `control`, and nowhere else. Each says who and why."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from msgspec import Struct

from stream.broker.offsets import watermarks
from stream.broker.topic_admin import Created, await_leaders, create_topics, describe_topics, id_bytes
from stream.control_files import check_limits, check_rates
from stream.errors import ConfigurationError, OperatorError
from stream.in_force import read_in_force, version_in
from stream.rules.policy import Policy
from stream.settings import Settings
from stream.stages.control import CONTROL
from stream.version import ENGINE_FIRST, ENGINE_VERSION
from topics.catalogue import catalogue
from topics.control import ControlKind, Engine, Init, Rates, Skip, encode_control, parse_control
from topics.limits import LIMITS_DEFAULT, Limits
from topics.refusals import Refusal

SOURCES = ("payments", "updates", "labels")
ANSWER_S = 30.0

Start = Literal["earliest", "latest"] | int
"""From where the foreign topics are read first: one of two words, or a time in ms UTC (the broker's time)."""


def write_control(settings: Settings, kind: ControlKind, payload: Struct, *, by: str, why: str) -> int:
    """Append one record to `control`; its offset.

    Raises `ConfigurationError` if no worker could read it, `OperatorError` if the broker does not take it.
    """
    written_at = int(time.time() * 1000)
    value = encode_control(
        kind=kind, by=by, why=why, version=version_in(payload), payload=payload, written_at=written_at
    )
    record = parse_control(value)
    if isinstance(record, Refusal):
        raise ConfigurationError(f"control record not written: {record.message}")
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
    producer.produce(settings.prefix + CONTROL, value=value, key=kind.encode(), partition=0, on_delivery=delivered)
    producer.flush(ANSWER_S)
    if failures or not offsets:
        raise OperatorError(f"control record not written: {failures[0] if failures else 'the broker does not answer'}")
    return offsets[0]


class Initialised(Struct, frozen=True, kw_only=True):
    """What `initialise` did. `offsets`: topic → where each partition begins; `existed`: it had been done before, and
    nothing was changed; `missing`: topics that were there then, and are gone."""

    created: list[str]
    offsets: dict[str, list[int]]
    existed: bool
    missing: list[str]


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

    Raises `ConfigurationError` if the limits contradict each other or the base is no currency, `OperatorError` if the
    broker does not answer.
    """
    check_limits(limits)
    rates = None if base_currency is None else Rates(base=base_currency, nano_base_per_minor={})
    if rates is not None:
        check_rates(rates)
    wanted = list(catalogue(settings.prefix, partitions).values())
    before = _initialised(settings, [topic.name for topic in wanted])
    if before is not None:
        return before
    made: Created = create_topics(settings.client(), wanted, replication=replication)
    await_leaders(settings.client(), [topic.name for topic in wanted])
    offsets = _start_offsets(settings, start)
    if ENGINE_VERSION != ENGINE_FIRST:
        write_control(settings, "engine", Engine(engine=ENGINE_VERSION), by=by, why=why)
    if limits != LIMITS_DEFAULT:
        write_control(settings, "settings", limits, by=by, why=why)
    if rates is not None:
        write_control(settings, "rates", rates, by=by, why=why)
    if policy is not None:
        write_control(settings, "policy", policy, by=by, why=why)
    write_control(settings, "init", Init(offsets=offsets), by=by, why=why)
    return Initialised(created=list(made.created), offsets=offsets, existed=False, missing=[])


def _initialised(settings: Settings, names: Sequence[str]) -> Initialised | None:
    """What `control` says, looked at before any topic is made: one that was deleted would be made again, empty."""
    found = describe_topics(settings.client(), names)
    if settings.prefix + CONTROL not in found:
        return None
    init = read_in_force(settings).init
    if init is None:
        return None
    missing = [name for name in names if name not in found]
    return Initialised(created=[], offsets=init.offsets, existed=True, missing=missing)


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
    if not read_in_force(settings).has_stopped(topic_id, partition, offset):
        raise OperatorError(
            f"no worker has stopped at {topic}[{partition}]@{offset}: to skip a record that can be applied would "
            f"change what was answered. Operator: the log line that says STOPPED names the record"
        )
    payload = Skip(topic_id=topic_id.hex(), partition=partition, offset=offset)
    return write_control(settings, "skip", payload, by=by, why=why)


__all__: Sequence[str] = ("Initialised", "Start", "initialise", "skip", "topic_id_of", "write_control")
