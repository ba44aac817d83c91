"""Every record of `payments` against what is on `decisions` and `dead-letters`: missing, conflicting, repeated.

It knows nothing of state or journals: it reads three public topics, as anyone could.
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
from confluent_kafka import Message
from msgspec import Struct

from stream.broker.topic_admin import describe_topics, id_bytes
from stream.broker.whole_topic import TopicReader
from stream.errors import OperatorError

NAMED_MAX = 20


class Reconciled(Struct, frozen=True, kw_only=True):
    """`payments`: records that need an answer; `answered`: those with one; `answers`: all that were read.

    `missing`: records without an answer. `conflicting`: records whose answers differ in value, and payment ids whose
    answers do. `repeated`: answers delivered more than once for one record. `refused`: records so answered.
    `unasked`: answers to records that are not in the range. `backfill`: records that get none, on purpose.
    `dead_letters`: refused payments kept; `dead_letters_missing`: refused records without a letter.
    """

    payments: int
    answered: int
    answers: int
    missing: int
    conflicting: int
    repeated: int
    refused: int
    unasked: int
    backfill: int
    dead_letters: int
    dead_letters_missing: int
    missing_origins: list[str]
    conflicting_origins: list[str]

    @property
    def good(self) -> bool:
        return not (self.missing or self.conflicting or self.unasked or self.dead_letters_missing)


class _Mode(Struct):
    mode: object = None


class _Answer(Struct):
    outcome: str
    tenant_id: str | None = None
    account_id: str | None = None
    payment_id: str | None = None


class _Letter(Struct):
    origin: "_Origin"


class _Origin(Struct):
    topic: str
    partition: int
    offset: int


_OFFSET_BITS = 48

_mode = msgspec.json.Decoder(_Mode)
_answer = msgspec.json.Decoder(_Answer)
_letter = msgspec.json.Decoder(_Letter)


def reconcile(
    client: Mapping[str, Any], prefix: str = "", progress: Callable[[int], None] = lambda _: None
) -> Reconciled:
    """Reads the topics from their first record to where they end now. Raises `OperatorError`."""
    names = [prefix + "payments", prefix + "decisions", prefix + "dead-letters"]
    described = describe_topics(client, names)
    absent = [name for name in names if name not in described]
    if absent:
        raise OperatorError(f"no topic {', '.join(absent)}")
    topic_id = id_bytes(described[names[0]].topic_id).hex().encode()
    asked: set[int] = set()
    backfill: set[int] = set()
    for message in _read(client, names[0], progress):
        place = _place(message.partition() or 0, message.offset() or 0)
        (backfill if _is_backfill(message.value()) else asked).add(place)
    counts = _Counts()
    for message in _read(client, names[1], progress):
        counts.take(message, topic_id)
    letters: set[int] = set()
    for message in _read(client, names[2], progress):
        letter = _letter.decode(message.value() or b"{}")
        if letter.origin.topic == "payments":
            letters.add(_place(letter.origin.partition, letter.origin.offset))
    first = counts.value_of
    # A refused backfill is answered nowhere; one whose mode could not be read is.
    missing = sorted(asked - first.keys())
    unasked = sorted(first.keys() - asked - backfill)
    conflicting = sorted(counts.conflicting)
    return Reconciled(
        payments=len(asked),
        answered=len(asked & first.keys()),
        answers=counts.answers,
        missing=len(missing),
        conflicting=len(conflicting) + counts.contradicting_payments(),
        repeated=counts.answers - len(first),
        refused=len(counts.refused),
        unasked=len(unasked),
        backfill=len(backfill),
        dead_letters=len(letters),
        dead_letters_missing=len((counts.refused - counts.expired) - letters),
        missing_origins=list(map(_named, missing[:NAMED_MAX])),
        conflicting_origins=list(map(_named, conflicting[:NAMED_MAX])),
    )


def _place(partition: int, offset: int) -> int:
    """A record on `payments` as one number, in order of partition and offset: millions of them are held."""
    return partition << _OFFSET_BITS | offset


def _named(place: int) -> str:
    return f"payments[{place >> _OFFSET_BITS}]@{place & (1 << _OFFSET_BITS) - 1}"


class _Counts:
    """What `decisions` holds, by the record that each delivery answers."""

    def __init__(self) -> None:
        self.answers = 0
        self.value_of: dict[int, bytes] = {}
        self.conflicting: set[int] = set()
        self.refused: set[int] = set()
        self.expired: set[int] = set()
        self._of_payment: dict[bytes, bytes] = {}
        self._contradicting: set[bytes] = set()

    def take(self, message: Message, topic_id: bytes) -> None:
        self.answers += 1
        origin = _origin(message).split(b":")
        value = message.value() or b""
        if origin[0] != topic_id:
            return
        place = _place(int(origin[1]), int(origin[2]))
        digest = blake2b(value, digest_size=12).digest()
        if self.value_of.setdefault(place, digest) != digest:
            self.conflicting.add(place)
        answer = _answer.decode(value)
        if answer.outcome == "refused":
            self.refused.add(place)
            if b'"cause":"answer_expired"' in value or b'"cause":"skipped"' in value:
                self.expired.add(place)
            return
        payment = f"{answer.tenant_id}\0{answer.account_id}\0{answer.payment_id}".encode()
        pid = blake2b(payment + (b"t" if b'"mode":"test"' in value else b""), digest_size=12).digest()
        if self._of_payment.setdefault(pid, digest) != digest:
            self._contradicting.add(pid)

    def contradicting_payments(self) -> int:
        return len(self._contradicting)


def _origin(message: Message) -> bytes:
    """The header that says which record this delivery answers: topic id, partition, offset."""
    for name, value in message.headers() or ():
        if name == "origin" and isinstance(value, bytes):
            return value
    return b"::"


def _is_backfill(value: bytes | None) -> bool:
    if not value or b"backfill" not in value:
        return False
    try:
        return _mode.decode(value).mode == "backfill"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _read(client: Mapping[str, Any], topic: str, progress: Callable[[int], None]) -> Iterator[Message]:
    """All records of a topic up to where it ends now, a partition after the other."""
    with TopicReader(client, "reconcile") as reader:
        for partition, (low, high) in reader.ends(topic).items():
            for messages in reader.messages(topic, partition, low, high):
                progress(len(messages))
                yield from messages
