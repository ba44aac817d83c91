"""Who may do what on a broker, from the catalogue's readers and writers. Whatever is not listed is refused.

Topics   read and write as the catalogue says; the operator also creates, describes and compares all of them, and
         on-call compares those that it reads.
Groups   the detector's own, and for every other reader those that begin with the principal's name (`blocker-eu`);
         for on-call those of the commands that read whole topics, too.

Names are literal for topics, so a grant never reaches a topic that somebody adds later.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # these are its public names; its type information does not say so
    AclBinding,  # pyright: ignore[reportPrivateImportUsage]
    AclBindingFilter,  # pyright: ignore[reportPrivateImportUsage]
    AclOperation,  # pyright: ignore[reportPrivateImportUsage]
    AclPermissionType,  # pyright: ignore[reportPrivateImportUsage]
    AdminClient,
    ResourcePatternType,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from stream.broker.errors import TopicsFailed
from stream.broker.topic_admin import ClientConfig
from topics.catalogue import Principal, Topic

ANSWER_S: Final = 60.0
PRINCIPALS: Final[tuple[Principal, ...]] = ("processor", "detector", "blocker", "label_feed", "oncall", "operator")
GROUPS_OF_COMMANDS: Final = ("fraudstream-init", "fraudstream-control-log")
"""Groups in which `fraud init` and the workers read `control`. They are never joined, but a client names one."""
GROUPS_OF_ON_CALL: Final = ("fraudstream-reconcile", "fraudstream-dump", "fraudstream-export")
"""The same of `fraud reconcile`, `fraud journals dump` and `fraud examples export`."""

Operation = Literal["READ", "WRITE", "CREATE", "DESCRIBE", "DESCRIBE_CONFIGS"]


class Acl(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One permission. `prefixed`: for every name that begins with `name`; else for this one only."""

    principal: str
    resource: Literal["topic", "group"]
    name: str
    operation: Operation
    prefixed: bool = False

    @property
    def command(self) -> str:
        """The arguments of Kafka's own kafka-acls that grant the same."""
        pattern = " --resource-pattern-type prefixed" if self.prefixed else ""
        return (
            f"--add --allow-principal {self.principal} --operation {self.operation} "
            f"--{self.resource} {self.name}{pattern}"
        )


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """`granted`: what the broker has now of what is wanted; `beyond`: what it allows on our topics besides."""

    granted: int
    beyond: list[str]


def wanted_acls(topics: Iterable[Topic], *, group: str, names: Mapping[Principal, str] | None = None) -> list[Acl]:
    """All permissions of a deployment, in order. `group`: the workers' own; `names`: principal → the user's name.

    >>> from topics.catalogue import catalogue
    >>> acls = wanted_acls([catalogue()["decisions"]], group="fraudstream")
    >>> [acl.operation for acl in acls if acl.principal == "User:blocker" and acl.resource == "topic"]
    ['READ']
    """
    users = {who: f"User:{(names or {}).get(who, who)}" for who in PRINCIPALS}
    found: set[Acl] = set()
    for topic in topics:
        for who in topic.readers:
            found.add(Acl(principal=users[who], resource="topic", name=topic.name, operation="READ"))
            if who != "detector":
                found.add(Acl(principal=users[who], resource="group", name=who, operation="READ", prefixed=True))
        for who in topic.writers:
            found.add(Acl(principal=users[who], resource="topic", name=topic.name, operation="WRITE"))
        if "oncall" in topic.readers:  # for `fraud topics check`
            found.add(Acl(principal=users["oncall"], resource="topic", name=topic.name, operation="DESCRIBE_CONFIGS"))
        for operation in ("CREATE", "DESCRIBE", "DESCRIBE_CONFIGS"):
            found.add(Acl(principal=users["operator"], resource="topic", name=topic.name, operation=operation))
    # The group itself, and those of its fetching and asking consumers.
    found.add(Acl(principal=users["detector"], resource="group", name=group, operation="READ", prefixed=True))
    for who in ("detector", "operator"):
        for name in GROUPS_OF_COMMANDS:
            found.add(Acl(principal=users[who], resource="group", name=name, operation="READ"))
    for name in GROUPS_OF_ON_CALL:
        found.add(Acl(principal=users["oncall"], resource="group", name=name, operation="READ"))
    return sorted(found)


_ANY: Final = cast(Any, None)  # None is every one; confluent-kafka's types do not say so
_EVERY_TOPIC: Final = AclBindingFilter(
    ResourceType.TOPIC, _ANY, ResourcePatternType.ANY, _ANY, _ANY, AclOperation.ANY, AclPermissionType.ALLOW
)


def apply_acls(client: ClientConfig, wanted: Sequence[Acl]) -> Applied:
    """Grants what is wanted, takes nothing away. Raises `TopicsFailed` if the broker refuses or has no authorizer."""
    admin = AdminClient({"log_level": 0, **client})
    try:
        for done in admin.create_acls([_binding(acl) for acl in wanted], request_timeout=ANSWER_S).values():
            done.result()
        found: list[AclBinding] = admin.describe_acls(_EVERY_TOPIC, request_timeout=ANSWER_S).result()
    except KafkaException as error:
        inner = error.args[0]
        raise TopicsFailed(f"ACLs can't be granted: {inner.str()} ({inner.name()})") from error
    ours = {acl.name for acl in wanted if acl.resource == "topic"}
    known = {(acl.principal, acl.name, acl.operation) for acl in wanted if acl.resource == "topic"}
    beyond = [
        f"{one.principal} {AclOperation(one.operation).name} {one.name}"
        + (" (prefixed)" if one.resource_pattern_type is ResourcePatternType.PREFIXED else "")
        for one in found
        if _reaches(one, ours)
        and (
            one.resource_pattern_type is not ResourcePatternType.LITERAL
            or (one.principal, one.name, AclOperation(one.operation).name) not in known
        )
    ]
    return Applied(granted=len(wanted), beyond=sorted(beyond))


def _reaches(one: AclBinding, names: Iterable[str]) -> bool:
    if one.resource_pattern_type is ResourcePatternType.PREFIXED:
        return any(name.startswith(one.name) for name in names)
    return one.name == "*" or one.name in names


def _binding(acl: Acl) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC if acl.resource == "topic" else ResourceType.GROUP,
        acl.name,
        ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL,
        acl.principal,
        "*",
        AclOperation[acl.operation],
        AclPermissionType.ALLOW,
    )
