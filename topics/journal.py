"""The internal journals: blocks of items, one Kafka record each.

A block comes from one sender partition and carries items in the order in which that sender emitted them. Each item
has its own origin `(offset, n)` within the sender, so that a receiver can dedupe and check the chain item by item
whatever the grouping was. Layout: msgpack arrays; the first element of an item is its tag, the first element of a
block is the layout's version. New fields go to the end, with a default.

>>> clock = Clock(offset=3, n=0, account_partition=1, clock_ms=9)
>>> block = Block(sender=b"t" * 16, partition=0, prev=(-1, -1), items=[clock])
>>> decode_block(encode_block(block)) == block
True
"""

import msgspec
from msgspec import Struct

from topics.limits import INTAKE_BYTES_MAX
from topics.payment import Payment

LAYOUT = 1
BLOCK_ITEMS_MAX = 500
BLOCK_BYTES_MAX = 262_144
RAW_BYTES_MAX = INTAKE_BYTES_MAX
RAW_EXCERPT_BYTES = 1_024
OUTPUTS_PER_ITEM_MAX = 256
assert BLOCK_BYTES_MAX + RAW_BYTES_MAX < 1_000_000, "a block must fit the journals' max.message.bytes with room to grow"

PAYMENTS, UPDATES, LABELS = 0, 1, 2

FIRST_PREV = (-1, -1)


class Oversize(Struct, frozen=True, array_like=True, gc=False):
    """What is kept of a value over `RAW_BYTES_MAX`: its length and its SHA-256; the item's value is the head."""

    length: int
    sha256: bytes


class Raw(Struct, frozen=True, array_like=True, tag=1):
    """A foreign record as the broker took it. `source`: PAYMENTS, UPDATES or LABELS; `at_ms`: the broker's time."""

    offset: int
    n: int
    source: int
    at_ms: int
    value: bytes
    traceparent: str | None = None
    oversize: Oversize | None = None


class Placed(Struct, frozen=True, array_like=True, tag=2):
    """A FIRST payment with what the stages before have added. `entities`: one block of float32 features per stage.

    `topic`, `partition`, `position`: where the record stands on `payments`; `pid`: 128-bit hash of tenant, account
    and payment id; `late`: behind the watermark of its own partition by more than the lateness; `base_amount`: minor
    units of the base currency, -1: no rate.
    """

    offset: int
    n: int
    at_ms: int
    topic: bytes
    partition: int
    position: int
    pid: bytes
    late: bool
    base_amount: int
    payment: Payment
    entities: list[bytes]
    traceparent: str | None = None


class Repeat(Struct, frozen=True, array_like=True, tag=3):
    """A payment that came again with the same business content: the first's answer goes out once more."""

    offset: int
    n: int
    at_ms: int
    topic: bytes
    partition: int
    position: int
    pid: bytes
    first_at_ms: int
    tenant_id: str
    account_id: str
    payment_id: str
    test: bool = False
    traceparent: str | None = None


class Judged(Struct, frozen=True, array_like=True, tag=4):
    """What all labels of one payment say by now. `fraud` None: its labels say nothing of fraud any more."""

    offset: int
    n: int
    pid: bytes
    event_ms: int
    observed_ms: int
    fraud: bool | None
    provisional: bool
    source: str | None = None


class Became(Struct, frozen=True, array_like=True, tag=5):
    """What became of a payment. `through`: money moved or may move; False after declined, voided, expired."""

    offset: int
    n: int
    pid: bytes
    event_ms: int
    through: bool


class Clock(Struct, frozen=True, array_like=True, tag=6):
    """The labels' clock of one account partition: labels observed before `clock_ms` (ms UTC) have come through it."""

    offset: int
    n: int
    account_partition: int
    clock_ms: int


class Marker(Struct, frozen=True, array_like=True, tag=7):
    """A control record, from here on in force. `body`: its JSON."""

    offset: int
    n: int
    kind: str
    body: bytes


class Tick(Struct, frozen=True, array_like=True, tag=8):
    """A timer's record: no origin, no chain. It drains what is due and lets the learner publish."""

    offset: int
    n: int
    at_ms: int


class Example(Struct, frozen=True, array_like=True, tag=9):
    """One row for the learner. `features`: float32 of the model's features as they were at the decision.

    `kind`: EXAMPLE_* below. `event_ms`: of the payment; `observed_ms`: when its truth was known (0: unlabelled).
    `weight`: how many payments it stands for. `was_*`: what an earlier example of this payment taught (weight 0: none).
    """

    offset: int
    n: int
    kind: int
    pid: bytes
    event_ms: int
    observed_ms: int
    fraud: bool
    weight: float
    features: bytes
    provisional: bool = False
    source: str | None = None
    was_fraud: bool = False
    was_weight: float = 0.0
    was_provisional: bool = False


EXAMPLE_LABELLED = 0
EXAMPLE_MATURED = 1
EXAMPLE_CORRECTED = 2
EXAMPLE_UNLABELLED = 3

Item = Raw | Placed | Repeat | Judged | Became | Clock | Marker | Tick | Example


class Block(Struct, frozen=True, array_like=True, kw_only=True):
    """`sender`: topic id of the journal whose step made it (16 bytes; empty for a timer's), `prev`: origin of the
    item that this sender partition sent to this destination before the first one here."""

    layout: int = LAYOUT
    sender: bytes
    partition: int
    prev: tuple[int, int]
    items: list[Item]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Block)

encode_block = _encoder.encode
decode_block = _decoder.decode


def tick_block(at_ms: int) -> bytes:
    """The record that a timer appends to a journal; `at_ms` is for people, no decision reads it."""
    return encode_block(Block(sender=b"", partition=-1, prev=FIRST_PREV, items=[Tick(offset=-1, n=0, at_ms=at_ms)]))
