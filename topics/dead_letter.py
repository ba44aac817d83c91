"""A record that was refused, kept so that its sender can mend it: topic `dead-letters`, once per origin."""

import hashlib
import re
from typing import Final

from msgspec import Struct

from topics.cards import mask_card_numbers
from topics.decision import Origin
from topics.refusals import Cause, Refusal

EXCERPT_BYTES_MAX: Final = 1_024
_LOOKED_AT_BYTES: Final = 4 * EXCERPT_BYTES_MAX
_CUT = re.compile(rb"[0-9][0-9 \-]{0,30}\Z")


class DeadLetter(Struct, frozen=True, kw_only=True, gc=False):
    """What was refused, and why. The bytes themselves are at `origin` as long as that topic keeps them.

    `excerpt`: the first part of the value, at most 1 kB of UTF-8, what may be a card number hidden.
    `sha256`: of the whole value, in hex. `length`: of the whole value, in bytes.
    """

    cause: Cause
    path: str
    message: str
    origin: Origin
    excerpt: str
    sha256: str
    length: int
    schema_version: int = 1


def excerpt_of(value: bytes) -> str:
    """At most 1 kB of `value` as text, masked before it is cut, so that no part of a number is left over."""
    masked = mask_card_numbers(value[:_LOOKED_AT_BYTES])[:EXCERPT_BYTES_MAX]
    if len(value) >= EXCERPT_BYTES_MAX:  # it may be a head that was cut within a number
        masked = _CUT.sub(b"", masked)
    return masked.decode("utf-8", "ignore")


def dead_letter_of(
    refusal: Refusal, origin: Origin, value: bytes | None, *, length: int | None = None, sha256: str | None = None
) -> DeadLetter:
    """The letter for a refused value. `length` and `sha256` are given when `value` is only its head."""
    whole = value or b""
    return DeadLetter(
        cause=refusal.cause,
        path=refusal.path,
        message=refusal.message,
        origin=origin,
        excerpt=excerpt_of(whole),
        sha256=hashlib.sha256(whole).hexdigest() if sha256 is None else sha256,
        length=len(whole) if length is None else length,
    )


def dead_letter_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """Headers as Kafka Connect writes them, so that its tools can read where the record came from."""
    return [
        ("__connect.errors.topic", letter.origin.topic.encode()),
        ("__connect.errors.partition", str(letter.origin.partition).encode()),
        ("__connect.errors.offset", str(letter.origin.offset).encode()),
        ("__connect.errors.connector.name", b"fraudstream"),
        ("__connect.errors.stage", b"VALUE_CONVERTER"),
        ("__connect.errors.exception.class.name", letter.cause.value.encode()),
        ("__connect.errors.exception.message", letter.message.encode()),
    ]
