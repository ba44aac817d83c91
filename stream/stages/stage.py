"""What a stage is: a deterministic machine over the items of its journal's partition.

A stage knows nothing of Kafka, of offsets' bookkeeping or of the store's kind. It gets the items that the runner let
through, in order, and hands what they cause to an `Outbox`, in order. However a run of items is cut into calls of
`apply`, the outputs and the state after it are the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from topics.journal import RUNS, Item

Header = tuple[str, bytes]
Row = tuple[int, bytes | None, bytes, list[Header]]
"""Partition, key, value and headers of a record that is sent."""


class Record(NamedTuple):
    """One Kafka record as fetched; `at_ms` is the broker's timestamp (LogAppendTime)."""

    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Journal(NamedTuple):
    """The identity of what a partition reads: its topic's name, its topic's id (16 bytes), its partition."""

    topic: str
    topic_id: bytes
    partition: int


class Step(Struct, frozen=True, gc=False):
    """One item of the journal: `offset` of its block, `place` in it, `at_ms` of the broker when the block arrived.

    `sender`: topic id and partition of the item's origin. On a foreign topic a step is one record as it came, and the
    sender is that topic itself.
    """

    offset: int
    place: int
    at_ms: int
    sender: tuple[bytes, int]
    item: Item | Record


def runs_of(kinds: Sequence[bool]) -> Iterator[tuple[bool, int, int]]:
    """Cut into runs of one kind each: (kind, start, end).

    >>> list(runs_of([True, True, False]))
    [(True, 0, 2), (False, 2, 3)]
    """
    start = 0
    while start < len(kinds):
        kind = kinds[start]
        try:
            end = kinds.index(not kind, start)
        except ValueError:
            end = len(kinds)
        yield kind, start, end
        start = end


def long_pieces(
    kinds: Sequence[bool], few: int, widths: Sequence[int] | None = None
) -> Sequence[tuple[bool, int, int]]:
    """`runs_of`; or one piece, of the other kind, where those of the kind are too short: in columns each would take
    more than the whole one by one. `widths`: for how many payments each stands.

    >>> long_pieces([True] * 9 + [False], few=2), long_pieces([True, False, True, False], few=2)
    ([(True, 0, 9), (False, 9, 10)], [(False, 0, 4)])
    """
    pieces = list(runs_of(kinds))
    long = [end - start if widths is None else sum(widths[start:end]) for kind, start, end in pieces if kind]
    if len(pieces) > 1 and sum(long) < 2 * few * (len(long) + 1):
        return [(False, 0, len(kinds))]
    return pieces


def spread(steps: Sequence[Step]) -> Iterator[Step]:
    """Steps of single items: one for each that a run stands for."""
    for step in steps:
        item = step.item
        if isinstance(item, RUNS):
            for i, part in enumerate(item.spread()):
                yield Step(step.offset, step.place + i, step.at_ms, step.sender, part)
        else:
            yield step


class Outbox(Protocol):
    """Where a stage's outputs go. `step` names the cause; outputs of one step come in order of emission."""

    def journal(self, step: Step, topic: str, partition: int, item: Item) -> None:
        """To a journal. The item's `(offset, n)` must be `origin(step, j)`, j ascending within the step."""
        ...

    def records(self, steps: Sequence[Step], topic: str, rows: Iterable[Row]) -> None:
        """To a topic that is not a journal: decisions, details, dead letters, control. A row for each step, at least
        one, in their order."""
        ...


def origin_n(step: Step, j: int) -> int:
    """`n` of the j-th output of a step: unique and ascending within the block that caused it."""
    return step.place << 8 | j


class Stage(Protocol):
    """`apply` may raise only on a programmer's error; the runner then stops the partition."""

    def apply(self, steps: Sequence[Step], out: Outbox) -> None: ...

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        """An operator has skipped the block of these steps: only clocks advance; a payment is answered `refused`."""
        ...

    def settle(self) -> None:
        """Write what is cached into the state, before a checkpoint freezes it."""
        ...
