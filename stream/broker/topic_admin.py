"""Topics as a broker has them, against topics as they should be: create, compare, identify.

All functions take a confluent-kafka client configuration (`bootstrap.servers` and, with security, the rest of it), and
raise `TopicsFailed` if the broker refuses or does not answer.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import msgspec
from confluent_kafka import KafkaError, KafkaException, Node, TopicCollection, Uuid
from confluent_kafka.admin import (  # these are its public names; its type information does not say so
    AdminClient,
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
    TopicDescription,  # pyright: ignore[reportPrivateImportUsage]
)

from stream.broker.errors import TopicsFailed

REQUEST_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.05

ClientConfig = Mapping[str, str | int | float | bool]
T = TypeVar("T")


class WantedTopic(Protocol):
    """What `topics/catalogue.py` says of a topic. `config`: Kafka's names and values, as text."""

    @property
    def name(self) -> str: ...

    @property
    def partitions(self) -> int: ...

    @property
    def config(self) -> Mapping[str, str]: ...


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic that is wanted on a broker."""

    name: str
    partitions: int
    config: Mapping[str, str] = {}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One difference. `what`: "missing", "partitions", or the name of a topic configuration."""

    topic: str
    what: str
    wanted: str
    found: str
    advice: str


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """Names of topics that were made, and of those that were there already (untouched)."""

    created: list[str]
    existed: list[str]


def create_topics(client: ClientConfig, wanted: Sequence[WantedTopic], *, replication: int = -1) -> Created:
    """Makes the topics that do not exist, and returns when every partition has a leader.

    `replication`: -1 leaves it to the broker's default. What exists is left as it is, right or wrong: `check_topics`
    tells.
    """
    admin = _admin(client)
    made = admin.create_topics(
        [NewTopic(t.name, t.partitions, replication_factor=replication, config=dict(t.config)) for t in wanted],
        operation_timeout=REQUEST_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
    )
    created: list[str] = []
    existed: list[str] = []
    for name, done in made.items():
        try:
            done.result()
            created.append(name)
        except KafkaException as error:
            if _code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _failed(f"topic {name} can't be created", error) from error
            existed.append(name)
    await_leaders(client, [t.name for t in wanted])
    return Created(created=sorted(created), existed=sorted(existed))


def delete_topics(client: ClientConfig, names: Iterable[str]) -> None:
    """Deletes topics for good; those that do not exist are passed over."""
    listed = list(names)
    if not listed:
        return
    admin = _admin(client)
    deleted = admin.delete_topics(listed, operation_timeout=REQUEST_TIMEOUT_S, request_timeout=REQUEST_TIMEOUT_S)
    for name, done in deleted.items():
        try:
            done.result()
        except KafkaException as error:
            if _code(error) != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _failed(f"topic {name} can't be deleted", error) from error


def check_topics(client: ClientConfig, wanted: Sequence[WantedTopic]) -> list[Finding]:
    """Every difference between `wanted` and the broker; none is an empty list. In the order of `wanted`."""
    described = describe_topics(client, [t.name for t in wanted])
    configs = topic_configs(client, described)
    findings: list[Finding] = []
    for topic in wanted:
        found = described.get(topic.name)
        if found is None:
            findings.append(
                Finding(
                    topic=topic.name,
                    what="missing",
                    wanted=f"{topic.partitions} partitions",
                    found="no such topic",
                    advice=(
                        "before the first start: fraud topics create. A deployment that has worked needs the topic "
                        "that it had: one made again under its name is another one"
                    ),
                )
            )
            continue
        findings += compare(topic, len(found.partitions), configs[topic.name])
    return findings


def compare(topic: WantedTopic, partitions: int, configs: Mapping[str, str]) -> list[Finding]:
    """Differences of one topic that exists.

    >>> wanted = Topic(name="a", partitions=2, config={"retention.ms": "1"})
    >>> [finding.what for finding in compare(wanted, 3, {"retention.ms": "1"})]
    ['partitions']
    """
    findings: list[Finding] = []
    if partitions != topic.partitions:
        findings.append(
            Finding(
                topic=topic.name,
                what="partitions",
                wanted=str(topic.partitions),
                found=str(partitions),
                advice=(
                    "never change it in place: accounts would move between partitions, away from their state. All of "
                    "a deployment's topics have one count: if it is another than this, give it as --partitions; else "
                    "begin a new deployment (fraud init with another --prefix)"
                ),
            )
        )
    for name, value in sorted(topic.config.items()):
        found = configs.get(name, "(unknown to this broker)")
        if _canonical(name, found) != _canonical(name, value):
            findings.append(
                Finding(
                    topic=topic.name,
                    what=name,
                    wanted=value,
                    found=found,
                    advice=f"kafka-configs --alter --entity-type topics --entity-name {topic.name} "
                    f"--add-config {name}={_bracketed(value)}",
                )
            )
    return findings


def topic_ids(client: ClientConfig, names: Sequence[str]) -> dict[str, bytes]:
    """The 16-byte id that the broker gave each topic: another one after it was deleted and made again.

    Raises `TopicsFailed` if a topic does not exist.
    """
    return {name: id_bytes(found.topic_id) for name, found in _existing(client, names).items()}


def partition_counts(client: ClientConfig, names: Sequence[str]) -> dict[str, int]:
    """How many partitions each topic has. Raises `TopicsFailed` if a topic does not exist."""
    return {name: len(found.partitions) for name, found in _existing(client, names).items()}


def deployment_partitions(client: ClientConfig, names: Sequence[str]) -> int | None:
    """How many partitions the first of `names` that exists has; None if there is none of them."""
    found = describe_topics(client, names)
    return next((len(found[name].partitions) for name in names if name in found), None)


def describe_topics(client: ClientConfig, names: Sequence[str]) -> dict[str, TopicDescription]:
    """Those of the topics that exist, by name."""
    if not names:
        return {}
    admin = _admin(client)
    asked = admin.describe_topics(TopicCollection(list(names)), request_timeout=REQUEST_TIMEOUT_S)
    found: dict[str, TopicDescription] = {}
    for name, done in asked.items():
        try:
            found[name] = _result(done, TopicDescription)
        except KafkaException as error:
            if _code(error) != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _failed(f"topic {name} can't be described", error) from error
    return found


def topic_configs(client: ClientConfig, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Every configuration of each topic as it is in force, defaults included. The topics must exist."""
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    admin = _admin(client)
    found: dict[str, dict[str, str]] = {}
    for resource, done in admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S).items():
        try:
            entries: dict[str, ConfigEntry] = done.result()
        except KafkaException as error:
            raise _failed(f"the configuration of topic {resource.name} can't be read", error) from error
        found[str(resource.name)] = {name: str(entry.value) for name, entry in entries.items()}
    return found


def await_leaders(client: ClientConfig, names: Sequence[str], *, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Returns when every partition of the topics has a leader. Raises `TopicsFailed` after `timeout_s`."""
    give_up_at_s = time.monotonic() + timeout_s
    while True:
        found = describe_topics(client, names)
        waiting = [
            name
            for name in names
            if name not in found or any(_leaderless(partition.leader) for partition in found[name].partitions)
        ]
        if not waiting:
            return
        if time.monotonic() > give_up_at_s:
            raise TopicsFailed(f"no leader after {timeout_s:.0f} s for {', '.join(waiting)}: are all brokers up?")
        time.sleep(LOOK_EVERY_S)


def id_bytes(topic_id: Uuid) -> bytes:
    """A topic id as 16 bytes, most significant first: the order in which Kafka prints and sends it."""
    mask = (1 << 64) - 1
    most: int = topic_id.get_most_significant_bits()  # pyright: ignore[reportAttributeAccessIssue]
    least: int = topic_id.get_least_significant_bits()  # pyright: ignore[reportAttributeAccessIssue]
    return (most & mask).to_bytes(8, "big") + (least & mask).to_bytes(8, "big")


def _existing(client: ClientConfig, names: Sequence[str]) -> dict[str, TopicDescription]:
    found = describe_topics(client, names)
    if missing := sorted(set(names) - found.keys()):
        raise TopicsFailed(f"no such topic: {', '.join(missing)}. Run `fraud topics create`")
    return found


def _admin(client: ClientConfig) -> AdminClient:
    """To be held in a variable until its answers are in: a client that is collected fails them."""
    return AdminClient({"socket.timeout.ms": 10_000, "reconnect.backoff.ms": 200, "log_level": 0, **client})


def _leaderless(leader: Node | None) -> bool:
    return leader is None or leader.id < 0


def _result(done: "Future[T]", _kind: type[T]) -> T:
    return done.result()


def _code(error: KafkaException) -> int:
    return error.args[0].code()


def _failed(what: str, error: KafkaException) -> TopicsFailed:
    inner = error.args[0]
    text = f"{what}: {inner.str()} ({inner.name()})"
    if inner.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
        text += ". Is a broker running at the address given? `fraud broker start` starts one here"
    return TopicsFailed(text)


def _canonical(name: str, value: str) -> str:
    # Only the policy is a list, and Kafka does not promise its order.
    return ",".join(sorted(value.split(","))) if name == "cleanup.policy" else value


def _bracketed(value: str) -> str:
    return f"[{value}]" if "," in value else value
