"""`assignment` in Kafka's group protocol: what a member says of itself when it joins, and what the leader answers.

A claim travels as user data: MessagePack, `[layout, term, {topic: [partition]}, {topic: {partition: offset}}]`, all
ascending, some bytes a partition. User data of another layout, or of none, count as a member without claims.

The broker lets into a group only members that have a protocol in common. Workers before this one offered Faust's
("faust"), so the two kinds refuse each other: whoever comes second ends, and says so. `NAME` changes when members with
the old rules and the new could not agree; `LAYOUT` when the bytes change.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from msgspec import Meta, Struct

from stream.worker.assignment import Claim, assign
from stream.worker.fetch import TP
from topics.undecodable import UNDECODABLE

log = logging.getLogger(__name__)

NAME = "fraudstream-state"
LAYOUT = 1
VERSION = 0  # of Kafka's own envelope
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class _Claimed(Struct, frozen=True, array_like=True):
    layout: int
    term: Count
    owned: dict[str, list[Count]]
    held: dict[str, dict[Count, Count]]


_encode = msgspec.msgpack.Encoder().encode  # maps in the order in which they were filled, which is ascending
_decode = msgspec.msgpack.Decoder(_Claimed).decode


def _by_topic(tps: Iterable[TP]) -> dict[str, list[int]]:
    """Ascending."""
    found: dict[str, list[int]] = defaultdict(list)
    for topic, partition in sorted(tps):
        found[topic].append(partition)
    return found


def encode_claim(claim: Claim) -> bytes:
    held: dict[str, dict[int, int]] = defaultdict(dict)
    for tp, offset in sorted(claim.held.items()):
        held[tp.topic][tp.partition] = offset
    return _encode(_Claimed(LAYOUT, claim.term, _by_topic(claim.owned), held))


def decode_claim(topics: Iterable[str], user_data: bytes | None) -> Claim:
    """What a member said; of what cannot be read, only which topics it takes."""
    try:
        found = _decode(user_data or b"")
    except UNDECODABLE:
        return Claim(frozenset(topics))
    if found.layout != LAYOUT:
        return Claim(frozenset(topics))
    return Claim(
        frozenset(topics),
        found.term,
        frozenset(TP(topic, partition) for topic, listed in found.owned.items() for partition in listed),
        {TP(topic, partition): at for topic, offsets in found.held.items() for partition, at in offsets.items()},
    )


class StateAssignor(AbstractPartitionAssignor):
    """One member's. aiokafka calls it in the consumer's thread.

    `held`: see `Claim`; whoever owns the state replaces it before a join.
    """

    name = NAME  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        self.held: Mapping[TP, int] = {}
        self._term = 0
        self._owned: frozenset[TP] = frozenset()

    # aiokafka's are class methods; it calls them on what it was given, which may as well be an object (Faust's is one).
    def metadata(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, topics: Iterable[str]
    ) -> ConsumerProtocolMemberMetadata:
        claim = Claim(frozenset(topics), self._term, self._owned, self.held)
        return ConsumerProtocolMemberMetadata(VERSION, sorted(topics), encode_claim(claim))

    def assign(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """As the group's leader."""
        claims = {member: decode_claim(told.subscription, told.user_data) for member, told in members.items()}
        topics = sorted({topic for claim in claims.values() for topic in claim.topics})
        partitions = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        missing = [topic for topic in topics if not partitions[topic]]
        if missing:
            log.warning("topics without partitions are given to nobody: %s", ", ".join(missing))
        term = 1 + max(claim.term for claim in claims.values())
        return {member: _answer(term, tps) for member, tps in assign(claims, partitions).items()}

    def on_assignment(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assignment: ConsumerProtocolMemberAssignment
    ) -> None:
        self._owned = frozenset(TP(tp.topic, tp.partition) for tp in assignment.partitions())
        self._term = decode_claim((), assignment.user_data).term


def _answer(term: int, tps: Iterable[TP]) -> ConsumerProtocolMemberAssignment:
    """What a member is given, and in which term."""
    wire = [ConsumerProtocolMemberAssignment.Assignment(topic, listed) for topic, listed in _by_topic(tps).items()]
    return ConsumerProtocolMemberAssignment(VERSION, wire, encode_claim(Claim(frozenset(), term)))
