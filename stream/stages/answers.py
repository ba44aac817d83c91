"""How answers look on the wire: decisions, dead letters and their headers.

The value of an answer depends on the log alone. What belongs to one delivery (is it the first, whose record does it
answer) stands in the headers.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat

import msgspec
from msgspec import Struct

from stream.features import FEATURES_VERSION
from stream.stages.control import Meaning
from stream.stages.keys import Entity, entity_of, partition_of_origin
from stream.stages.stage import Header, Outbox, Step, origin_n
from topics.cards import any_card_number
from topics.dead_letter import dead_letter_headers, dead_letter_of
from topics.decision import Decision, Origin, Position, Versions
from topics.journal import Placed, PlacedRun, Raw, Repeat
from topics.payment import Mode, Payment
from topics.refusals import Cause, Refusal

DECISIONS = "decisions"
DETAILS = "decision-details"
DEAD_LETTERS = "dead-letters"

SKIPPED = Refusal(Cause.SKIPPED, "$", "an operator has skipped this record")
EXPIRED = Refusal(Cause.ANSWER_EXPIRED, "$.payment_id", "answered before; that answer is no longer kept")

_encode = msgspec.json.Encoder().encode
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def clean_traceparent(text: str | None) -> str | None:
    """A W3C trace context as it may be passed on: well-formed, and no card number in it."""
    if text is None or _TRACEPARENT.fullmatch(text) is None:
        return None
    return None if any_card_number(text) else text


class Answerer:
    """Writes answers to decisions, details and dead letters. `partition`: of the journal in which they are decided."""

    def __init__(self, meaning: Meaning, *, partition: int, decision_partitions: int) -> None:
        self._meaning = meaning
        self._partition = partition
        self._decision_partitions = decision_partitions

    def refuse(
        self, step: Step, raw: Raw, sender: tuple[bytes, int], payment: Payment | None, refusal: Refusal, out: Outbox
    ) -> None:
        """Answer a payment record `refused`, and keep it in the dead letters. A backfill gets no answer."""
        if payment is None or payment.mode != "backfill":
            delivery = Delivery(*sender, raw.offset, clean_traceparent(raw.traceparent))
            self._refused(step, delivery, _NOBODY if payment is None else _about(payment), refusal, out)
        self.bury(step, raw, sender, "payments", refusal, out)

    def refuse_skipped(self, step: Step, item: Placed | Repeat, out: Outbox) -> None:
        """An operator has skipped the block with this payment: it is answered, and nothing else happens."""
        if isinstance(item, Repeat):
            about = _about_repeat(item)
        else:
            if item.payment.mode == "backfill":
                return
            about = _about(item.payment)
        self._refused(step, delivery_of(item), about, SKIPPED, out)

    def refuse_expired(self, step: Step, item: Repeat, out: Outbox) -> None:
        """A repeat whose first answer is no longer kept."""
        self._refused(step, delivery_of(item), _about_repeat(item), EXPIRED, out)

    def _refused(self, step: Step, delivery: "Delivery", about: "_About", refusal: Refusal, out: Outbox) -> None:
        value = _encode(
            Decision(
                outcome="refused",
                verdict="refused",
                origin=Origin("payments", delivery.partition, delivery.offset),
                position=Position(self._partition, step.offset, origin_n(step, 0)),
                versions=Versions(engine=self._meaning.engine, features=FEATURES_VERSION),
                tenant_id=about.tenant_id,
                payment_id=about.payment_id,
                account_id=about.account_id,
                mode=about.mode,
                cause=refusal.cause,
                path=refusal.path,
                message=refusal.message,
                event_time=about.event_time,
                respond_by=about.respond_by,
            )
        )
        self.send(step, delivery, about.tenant_id, about.account_id, value, repeat=False, out=out)

    def send(
        self,
        step: Step,
        delivery: "Delivery",
        tenant_id: str | None,
        account_id: str | None,
        value: bytes,
        *,
        repeat: bool,
        out: Outbox,
    ) -> None:
        """One answer, on the account's partition of decisions."""
        n = self._decision_partitions
        if tenant_id is None or account_id is None:
            key = None
            partition = partition_of_origin(delivery.topic_id, delivery.partition, delivery.offset, n)
        else:
            account = entity_of(tenant_id, account_id, n)
            key, partition = account.text, account.partition
        out.records([step], DECISIONS, [(partition, key, value, answer_headers(delivery, repeat=repeat))])

    def send_decided(
        self,
        steps: Sequence[Step],
        placed: Sequence[Placed],
        accounts: Sequence[Entity],
        values: Sequence[bytes],
        details: Sequence[bytes] | None,
        out: Outbox,
    ) -> None:
        """The first answers to payments that were decided; and their details, on the same partitions."""
        self.send_firsts(
            steps,
            [account.partition for account in accounts],
            [account.text for account in accounts],
            values,
            [_first_headers(item) for item in placed],
            details,
            out,
        )

    def send_firsts(
        self,
        steps: Sequence[Step],
        partitions: Sequence[int],
        accounts: Sequence[bytes],
        values: Sequence[bytes],
        headers: Sequence[list[Header]],
        details: Sequence[bytes] | None,
        out: Outbox,
    ) -> None:
        """`partitions`, `accounts`: to which partition each goes, and under which key."""
        if not steps:
            return
        out.records(steps, DECISIONS, zip(partitions, accounts, values, headers, strict=True))
        if details is not None:
            out.records(
                steps, DETAILS, zip(partitions, accounts, details, repeat(_NO_HEADERS, len(steps)), strict=True)
            )

    def bury(self, step: Step, raw: Raw, sender: tuple[bytes, int], topic: str, refusal: Refusal, out: Outbox) -> None:
        """Keep a record that was refused: where it stood, why, and a masked excerpt."""
        oversize = raw.oversize
        letter = dead_letter_of(
            refusal,
            Origin(topic, sender[1], raw.offset),
            raw.value,
            length=None if oversize is None else oversize.length,
            sha256=None if oversize is None else oversize.sha256.hex(),
        )
        partition = partition_of_origin(*sender, raw.offset, self._decision_partitions)
        out.records([step], DEAD_LETTERS, [(partition, None, _encode(letter), dead_letter_headers(letter))])


class Delivery(Struct, frozen=True, gc=False):
    """The record on `payments` that a delivery of an answer is for."""

    topic_id: bytes
    partition: int
    offset: int
    traceparent: str | None


def delivery_of(item: Placed | Repeat) -> Delivery:
    return Delivery(item.topic, item.partition, item.position, item.traceparent)


class _About(Struct, frozen=True, gc=False):
    """What a refusal says of the payment, as far as it is known."""

    tenant_id: str | None
    payment_id: str | None
    account_id: str | None
    mode: Mode
    event_time: int | None
    respond_by: int | None


def _about(payment: Payment) -> _About:
    return _About(
        payment.tenant_id,
        payment.payment_id,
        payment.account_id,
        payment.mode,
        payment.event_time,
        payment.respond_by,
    )


def _about_repeat(item: Repeat) -> _About:
    return _About(item.tenant_id, item.payment_id, item.account_id, "test" if item.test else "live", None, None)


_NOBODY = _About(None, None, None, "live", None, None)


_NO_HEADERS: list[Header] = []
_FIRST: Header = ("answer", b"first")
_REPEAT: Header = ("answer", b"repeat")
_SPECVERSION: Header = ("ce_specversion", b"1.0")
_TYPE: Header = ("ce_type", b"fraudstream.decision.v1")
_SOURCE: Header = ("ce_source", b"/fraudstream/decide")


@lru_cache(maxsize=1_000)
def _origin_prefix(topic_id: bytes, partition: int) -> bytes:
    return b"%b:%d:" % (topic_id.hex().encode(), partition)


def answer_headers(delivery: Delivery, *, repeat: bool) -> list[Header]:
    """Headers of a decision. `answer`: first or repeat; `origin`: the record that this delivery answers.

    `ce_*`: CloudEvents in binary mode; `ce_id` is the origin, so equal for every delivery of one answer.
    """
    headers = _headers(delivery.topic_id, delivery.partition, delivery.offset, _REPEAT if repeat else _FIRST)
    if delivery.traceparent is not None:
        headers.append(("traceparent", delivery.traceparent.encode()))
    return headers


def first_headers(run: PlacedRun, positions: Sequence[int]) -> list[list[Header]]:
    """`answer_headers` of the first deliveries of the answers to a run. `positions`: of its payments."""
    headers = [_headers(run.topic, run.partition, position, _FIRST) for position in positions]
    for added, traceparent in zip(headers, run.traceparents, strict=False):  # all of them, or none
        if traceparent is not None:
            added.append(("traceparent", traceparent.encode()))
    return headers


def _first_headers(item: Placed) -> list[Header]:
    """`answer_headers` of the first delivery of a decided payment's answer."""
    headers = _headers(item.topic, item.partition, item.position, _FIRST)
    if item.traceparent is not None:
        headers.append(("traceparent", item.traceparent.encode()))
    return headers


def _headers(topic_id: bytes, partition: int, offset: int, answer: Header) -> list[Header]:
    origin = b"%b%d" % (_origin_prefix(topic_id, partition), offset)
    return [answer, ("origin", origin), _SPECVERSION, ("ce_id", origin), _TYPE, _SOURCE]
