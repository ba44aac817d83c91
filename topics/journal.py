"""The internal journals: blocks of items, one Kafka record each.

A block comes from one sender partition and carries items in the order in which that sender emitted them. Each item
has its own origin `(offset, n)` within the sender, so that a receiver can dedupe and check the chain item by item
whatever the grouping was. Layout: msgpack arrays; the first element of an item is its tag, the first element of a
block is the layout's version. New fields go to the end, with a default.

A run of payments may be written in columns (`PlacedRun`): fewer bytes to make and to read, and the same items. Whoever
does not decide reads a block by `decode_block`, which spreads them out.

>>> clock = Clock(offset=3, n=0, account_partition=1, clock_ms=9)
>>> block = Block(sender=b"t" * 16, partition=0, prev=(-1, -1), items=[clock])
>>> decode_block(encode_block(block)) == block
True
"""

import struct
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from topics.limits import INTAKE_BYTES_MAX
from topics.payment import Mode, Payment

LAYOUT = 2
LAYOUT_OLDEST = 1  # without runs in columns
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


class RawRun(Struct, frozen=True, array_like=True, tag=11):
    """`Raw` of `count` records in a row from one partition, none of them oversize, in columns.

    It stands for as many items as it has records. `offset` is the first's, `last_offset` the last's; `offsets`, `at_ms`
    i64, `lengths` i32, little-endian; `values`: each, and a NUL behind it.
    """

    offset: int
    n: int
    last_offset: int
    count: int
    source: int
    offsets: bytes
    at_ms: bytes
    lengths: bytes
    values: bytes
    traceparents: list[str | None] = []

    def check(self) -> None:
        """Raise `msgspec.DecodeError` unless its columns fit together: a kernel relies on it."""
        count = self.count
        fits = (
            count >= 1
            and len(self.offsets) == len(self.at_ms) == 8 * count == 2 * len(self.lengths)
            and len(self.traceparents) in (0, count)
            and self.offset == _long(self.offsets, 0)[0]
            and self.last_offset == _long(self.offsets, 8 * count - 8)[0]
        )
        lengths = struct.unpack(f"<{count}i", self.lengths) if fits else ()
        if not fits or min(lengths) < 0 or sum(lengths) + count != len(self.values):
            raise msgspec.DecodeError("columns of a run of records do not fit together")

    def spread(self, first: int = 0, end: int | None = None) -> Iterator[Raw]:
        """The same records, one by one; from `first` on, up to `end`."""
        end = self.count if end is None else end
        lengths = struct.unpack(f"<{self.count}i", self.lengths)
        start = sum(lengths[:first]) + first
        for i in range(first, end):
            offset, at_ms = _long(self.offsets, 8 * i)[0], _long(self.at_ms, 8 * i)[0]
            value = self.values[start : start + lengths[i]]
            yield Raw(offset, 0, self.source, at_ms, value, self.traceparents[i] if self.traceparents else None)
            start += lengths[i] + 1

    def part(self, first: int, end: int) -> "RawRun":
        """The records from `first` on, up to `end`."""
        lengths = struct.unpack(f"<{self.count}i", self.lengths)
        start = sum(lengths[:first]) + first
        stop = start + sum(lengths[first:end]) + end - first
        offsets = self.offsets[8 * first : 8 * end]
        return RawRun(
            _long(offsets, 0)[0],
            0,
            _long(offsets, len(offsets) - 8)[0],
            end - first,
            self.source,
            offsets,
            self.at_ms[8 * first : 8 * end],
            self.lengths[4 * first : 4 * end],
            self.values[start:stop],
            self.traceparents[first:end],
        )


_long = struct.Struct("<q").unpack_from


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


RUN_LATE, RUN_NAMES_TERMINAL, RUN_COUNTS = 1, 2, 4
RUN_MODES: tuple[Mode, ...] = ("live", "test", "backfill")
RUN_TEST, RUN_BACKFILL = 1, 2  # places in RUN_MODES
RUN_FLOATS_AT = 11  # words
_ROW = struct.Struct("<6qii5HBB4x16s")
assert _ROW.size == 8 * RUN_FLOATS_AT


class PlacedRun(Struct, frozen=True, array_like=True, tag=10):
    """`Placed` of `count` payments in a row, of one step's block and one partition of `payments`.

    It stands for as many items as it has payments, in order of their `n`; `n` is the first's, `last_n` the last's.
    `rows`: a row of numbers each, whose layout is in `stream/columns/runs.py`: what `Placed` has, and what the terminal
    stage would have to compute again; so many of them are `codes`, and `features` of the account.
    `texts`: of each payment, one after the other, its canonical bytes (`topics.codec.Parsed`), `E` tenant NUL account
    NUL payment id, with NUL `test` after it in mode test, and `E` tenant NUL terminal if it names one.
    """

    offset: int
    n: int
    last_n: int
    count: int
    topic: bytes
    partition: int
    codes: int
    features: int
    rows: bytes
    texts: bytes
    traceparents: list[str | None] = []

    def check(self) -> None:
        """Raise `msgspec.DecodeError` unless its columns fit together; whether its texts do, shows when it is read."""
        count, width = self.count, _ROW.size + 4 * (2 + max(self.codes, 0) + max(self.features, 0))
        if count < 1 or len(self.rows) != count * (width + width % 8) or len(self.traceparents) not in (0, count):
            raise msgspec.DecodeError("rows of a run of payments do not fit together")

    def spread(self) -> Iterator[Placed]:
        """The same payments, one by one. Raises `msgspec.DecodeError` where a text is none."""
        width, start = len(self.rows) // self.count, 0
        features_at = 8 * RUN_FLOATS_AT + 4 * (2 + self.codes)
        for i in range(self.count):
            row = self.rows[width * i : width * (i + 1)]
            (
                at_ms, position, _, _, base_amount, _, n, _, canonical, tenant, account, payment, terminal, flags, mode,
                pid,
            ) = _ROW.unpack_from(row)  # fmt: skip
            yield Placed(
                self.offset,
                n,
                at_ms,
                self.topic,
                self.partition,
                position,
                pid,
                bool(flags & RUN_LATE),
                base_amount,
                _payment(self.texts[start : start + canonical]),
                [row[features_at : features_at + 4 * self.features]],
                self.traceparents[i] if self.traceparents else None,
            )
            identity = 3 + tenant + account + payment + (5 if mode == RUN_TEST else 0)
            start += canonical + identity + (2 + tenant + terminal if terminal else 0)


_payment = msgspec.msgpack.Decoder(Payment).decode


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

Item = Raw | RawRun | Placed | PlacedRun | Repeat | Judged | Became | Clock | Marker | Tick | Example

RUNS = (RawRun, PlacedRun)


def width_of(item: Item) -> int:
    """For how many items it stands."""
    return item.count if isinstance(item, RUNS) else 1


def last_of(item: Item) -> tuple[int, int]:
    """Origin of the last item that it stands for."""
    if type(item) is PlacedRun:
        return item.offset, item.last_n
    return (item.last_offset if type(item) is RawRun else item.offset), item.n


class Block(Struct, frozen=True, array_like=True, kw_only=True):
    """`sender`: topic id of the journal whose step made it (16 bytes; empty for a timer's), `prev`: origin of the
    item that this sender partition sent to this destination before the first one here."""

    layout: int = LAYOUT_OLDEST
    sender: bytes
    partition: int
    prev: tuple[int, int]
    items: list[Item]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Block)

decode_dense = _decoder.decode
"""The block as it was written: a run of payments in columns is one item."""


def encode_block(block: Block) -> bytes:
    return _encoder.encode(block)


def check_block(block: Block) -> None:
    """Raise `msgspec.DecodeError` at another release's layout, and at a run that cannot be what a stage has sent."""
    if not LAYOUT_OLDEST <= block.layout <= LAYOUT:
        raise msgspec.DecodeError(f"layout {block.layout}, this release reads {LAYOUT_OLDEST} to {LAYOUT}")
    for item in block.items:
        if isinstance(item, RUNS):
            if block.layout == LAYOUT_OLDEST or not block.sender:
                raise msgspec.DecodeError(f"a run in a block of layout {block.layout}, or of a timer")
            item.check()


def decode_block(value: bytes) -> Block:
    """The block item by item. Raises as msgspec does."""
    block = decode_dense(value)
    check_block(block)
    if block.layout == LAYOUT_OLDEST:
        return block
    items: list[Item] = []
    for item in block.items:
        if isinstance(item, RUNS):
            items += item.spread()
        else:
            items.append(item)
    return msgspec.structs.replace(block, items=items)


def tick_block(at_ms: int) -> bytes:
    """The record that a timer appends to a journal; `at_ms` is for people, no decision reads it."""
    return encode_block(Block(sender=b"", partition=-1, prev=FIRST_PREV, items=[Tick(offset=-1, n=0, at_ms=at_ms)]))
