"""Every record of `payments` against what is on `decisions` and `dead-letters`: missing, conflicting, repeated.

It knows nothing of state or journals: it reads three public topics, as anyone could, and in `control` where the
deployment began to answer.

`payments` lives for a week and `decisions` for five, and both grow while they are read. So only what was read of
`payments` is held against its answers; and the answers are read after it, up to where they end by then.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
from confluent_kafka import Message
from msgspec import Struct

from stream.broker.topic_admin import describe_topics, id_bytes
from stream.broker.whole_topic import TopicReader
from stream.errors import OperatorError
from topics.control import Init, parse_control, payload_as
from topics.refusals import Refusal

NAMED_MAX = 20
LOOK_EVERY_S = 0.5


class Reconciled(Struct, frozen=True, kw_only=True):
    """`payments`: records that need an answer; `answered`: those with one; `answers`: all that were read.

    `missing`: records without an answer; `waited_for`: those that had none at first, and were waited for.
    `conflicting`: records whose answers differ in value, and payment ids whose answers do. `repeated`: answers
    delivered more than once for one record. `refused`: records so answered. `unasked`: answers to places where no
    payment stands, in what was read of `payments`. `outside`: answers to records that were not read: deleted by
    retention, sent since, or on a topic that was made again. `backfill`: records that get none, on purpose.
    `dead_letters`: refused payments kept; `dead_letters_missing`: refused records without a letter.
    """

    payments: int
    answered: int
    answers: int
    missing: int
    waited_for: int
    conflicting: int
    repeated: int
    refused: int
    unasked: int
    outside: int
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
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1

_mode = msgspec.json.Decoder(_Mode)
_answer = msgspec.json.Decoder(_Answer)
_letter = msgspec.json.Decoder(_Letter)


def reconcile(
    client: Mapping[str, Any],
    prefix: str = "",
    progress: Callable[[int], None] = lambda _: None,
    *,
    wait_s: float = 0.0,
) -> Reconciled:
    """Reads `payments` up to where they end now, and the answers up to where they end then.

    `wait_s`: how long to look again for answers and letters that are still on their way. Raises `OperatorError`.
    """
    names = [prefix + name for name in ("payments", "decisions", "dead-letters", "control")]
    described = describe_topics(client, names)
    absent = [name for name in names if name not in described]
    if absent:
        raise OperatorError(f"no topic {', '.join(absent)}")
    payments, decisions, dead_letters, control = names
    counts = _Counts(id_bytes(described[payments].topic_id).hex().encode())
    with TopicReader(client, "reconcile") as reader:
        asked = _asked(reader, payments, _begins(reader, control), progress)
        answers, letters = _Growing(reader, decisions, progress), _Growing(reader, dead_letters, progress)
        missing, waited_for = asked.payments, 0
        give_up_s: float | None = None
        while True:
            for message in answers.more():
                counts.take_answer(message)
            for message in letters.more():
                counts.take_letter(message)
            missing = {place for place in missing if place not in counts.value_of}
            if give_up_s is None:  # the first time may itself take minutes
                give_up_s = time.monotonic() + wait_s
            if time.monotonic() >= give_up_s or not (missing or counts.without_letter(asked)):
                break
            waited_for = waited_for or len(missing)
            time.sleep(LOOK_EVERY_S)
    return _reconciled(asked, counts, sorted(missing), waited_for)


def _reconciled(asked: "_Asked", counts: "_Counts", missing: list[int], waited_for: int) -> Reconciled:
    first = counts.value_of
    within = sum(asked.holds(place) for place in first)
    # A refused backfill is answered nowhere; one whose mode could not be read is.
    unasked = sum(asked.holds(p) and p not in asked.payments and p not in asked.backfill for p in first)
    conflicting = sorted(counts.conflicting)
    return Reconciled(
        payments=len(asked.payments),
        answered=len(asked.payments) - len(missing),
        answers=counts.answers,
        missing=len(missing),
        waited_for=waited_for,
        conflicting=len(conflicting) + counts.contradicting_payments(),
        repeated=counts.answers - counts.foreign - len(first),
        refused=sum(asked.holds(place) for place in counts.refused),
        unasked=unasked,
        outside=counts.foreign + len(first) - within,
        backfill=len(asked.backfill),
        dead_letters=len(counts.letters),
        dead_letters_missing=len(counts.without_letter(asked)),
        missing_origins=list(map(_named, missing[:NAMED_MAX])),
        conflicting_origins=list(map(_named, conflicting[:NAMED_MAX])),
    )


class _Asked(Struct):
    """What was read of `payments`. `ranges`: by partition the offsets `[low, high)` that were read."""

    ranges: dict[int, tuple[int, int]]
    payments: set[int]
    backfill: set[int]

    def holds(self, place: int) -> bool:
        """Whether that place is in the range that was read."""
        low, high = self.ranges.get(place >> _OFFSET_BITS, (0, 0))
        return low <= place & _OFFSET_MASK < high


def _asked(reader: TopicReader, topic: str, begins: Mapping[int, int], progress: Callable[[int], None]) -> _Asked:
    """All of `payments` up to where it ends now, from where the deployment began to answer."""
    found = _Asked({}, set(), set())
    for partition, (_, high) in reader.ends(topic).items():
        # Retention goes on while the partitions before are read: where this one begins is asked when its turn has come.
        low = max(reader.ends_of(topic, partition)[0], begins.get(partition, 0))
        found.ranges[partition] = (low, high)
        for messages in reader.messages(topic, partition, low, high):
            progress(len(messages))
            for message in messages:
                place = _place(partition, message.offset() or 0)
                (found.backfill if _is_backfill(message.value()) else found.payments).add(place)
    return found


def _begins(reader: TopicReader, control: str) -> dict[int, int]:
    """From where each partition of `payments` is answered, as the first `fraud init` has said; empty without one."""
    for messages in reader.messages(control, 0, *reader.ends_of(control, 0)):
        for message in messages:
            record = parse_control(message.value())
            if isinstance(record, Refusal) or record.kind != "init":
                continue
            try:
                offsets = payload_as(record, Init).offsets
            except msgspec.MsgspecError:
                continue  # no worker can read it either
            if "payments" in offsets:
                return dict(enumerate(offsets["payments"]))
    return {}


class _Growing:
    """A topic that is read on, each time up to where it ends by then."""

    def __init__(self, reader: TopicReader, topic: str, progress: Callable[[int], None]) -> None:
        self._reader = reader
        self._topic = topic
        self._progress = progress
        self._next = dict.fromkeys(reader.ends(topic), 0)

    def more(self) -> Iterator[Message]:
        """What has come since the last time; at first all, a partition after the other."""
        for partition, begin in self._next.items():
            low, high = self._reader.ends_of(self._topic, partition)
            for messages in self._reader.messages(self._topic, partition, max(low, begin), high):
                self._progress(len(messages))
                yield from messages
            self._next[partition] = high


def _place(partition: int, offset: int) -> int:
    """A record on `payments` as one number, in order of partition and offset: millions of them are held."""
    return partition << _OFFSET_BITS | offset


def _named(place: int) -> str:
    return f"payments[{place >> _OFFSET_BITS}]@{place & _OFFSET_MASK}"


class _Counts:
    """What `decisions` and `dead-letters` hold, by the record that each delivery is for.

    `topic_id`: of `payments`, in hex; `foreign`: answers to records of another topic than that.
    """

    def __init__(self, topic_id: bytes) -> None:
        self.answers = 0
        self.foreign = 0
        self.value_of: dict[int, bytes] = {}
        self.conflicting: set[int] = set()
        self.refused: set[int] = set()
        self.letters: set[int] = set()
        self._topic_id = topic_id
        self._needs_letter: set[int] = set()
        self._of_payment: dict[bytes, bytes] = {}
        self._contradicting: set[bytes] = set()

    def take_answer(self, message: Message) -> None:
        self.answers += 1
        origin = _origin(message).split(b":")
        value = message.value() or b""
        if origin[0] != self._topic_id:
            self.foreign += 1
            return
        place = _place(int(origin[1]), int(origin[2]))
        digest = blake2b(value, digest_size=12).digest()
        if self.value_of.setdefault(place, digest) != digest:
            self.conflicting.add(place)
        answer = _answer.decode(value)
        if answer.outcome == "refused":
            self.refused.add(place)
            if b'"cause":"answer_expired"' not in value and b'"cause":"skipped"' not in value:
                self._needs_letter.add(place)
            return
        payment = f"{answer.tenant_id}\0{answer.account_id}\0{answer.payment_id}".encode()
        pid = blake2b(payment + (b"t" if b'"mode":"test"' in value else b""), digest_size=12).digest()
        if self._of_payment.setdefault(pid, digest) != digest:
            self._contradicting.add(pid)

    def take_letter(self, message: Message) -> None:
        letter = _letter.decode(message.value() or b"{}")
        if letter.origin.topic == "payments":
            self.letters.add(_place(letter.origin.partition, letter.origin.offset))

    def without_letter(self, asked: _Asked) -> list[int]:
        """Refused records of what was read that are not in the dead letters."""
        return [place for place in self._needs_letter - self.letters if asked.holds(place)]

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
