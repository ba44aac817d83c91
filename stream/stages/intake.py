"""Intake: from a foreign topic onto the account journal, under our own partitioner. It refuses nothing.

Its step is one foreign record. All that could ever be decided differently is decided later, in a journaled stage.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import cast

import msgspec
from msgspec import Struct

from stream.stages.keys import entities_of, partition_of_origin
from stream.stages.stage import Outbox, Record, Step
from topics.journal import LABELS, OUTPUTS_PER_ITEM_MAX, RAW_BYTES_MAX, RAW_EXCERPT_BYTES, Oversize, Raw

ACCOUNT_JOURNAL = "account-journal"
TRACEPARENT_CHARS_MAX = 64


class _Whose(Struct, gc=False):
    """As much of a record as intake reads."""

    account_id: str | None = None
    tenant_id: str = "default"
    kind: object = None


_whose = msgspec.json.Decoder(_Whose).decode
_NOBODY = _Whose()


def whose(value: bytes | None) -> _Whose | None:
    """Account, tenant and kind that a record names, or None; of one over `RAW_BYTES_MAX`, None."""
    try:
        return _whose(value) if value and len(value) <= RAW_BYTES_MAX else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Intake:
    """`source`: PAYMENTS, UPDATES or LABELS; `partitions`: those of the account journal."""

    def __init__(self, *, source: int, topic_id: bytes, partition: int, partitions: int) -> None:
        assert partitions < OUTPUTS_PER_ITEM_MAX, "a clock record goes to every partition"
        self.source = source
        self.topic_id = topic_id
        self.partition = partition
        self.partitions = partitions

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        source = self.source
        records = cast("list[Record]", [step.item for step in steps])
        seen = [whose(record.value) for record in records]
        named = [_NOBODY if who is None else who for who in seen]
        homes = entities_of([who.tenant_id for who in named], [who.account_id or "" for who in named], self.partitions)
        for step, record, who, home in zip(steps, records, seen, homes, strict=True):
            value = record.value or b""
            traceparent = _traceparent(record) if record.headers else None
            if len(value) > RAW_BYTES_MAX:
                oversize = Oversize(len(value), sha256(value).digest())
                raw = Raw(step.offset, 0, source, record.at_ms, value[:RAW_EXCERPT_BYTES], traceparent, oversize)
            else:
                raw = Raw(step.offset, 0, source, record.at_ms, value, traceparent)
            if who is not None and source == LABELS and who.kind == "clock":
                for partition in range(self.partitions):
                    out.journal(step, ACCOUNT_JOURNAL, partition, raw)
            elif who is None or who.account_id is None:
                partition = partition_of_origin(self.topic_id, self.partition, step.offset, self.partitions)
                out.journal(step, ACCOUNT_JOURNAL, partition, raw)
            else:
                out.journal(step, ACCOUNT_JOURNAL, home.partition, raw)

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        """Intake never fails on a record; a skipped one is simply not passed on."""

    def settle(self) -> None:
        """Nothing is kept but the chain, which the runner keeps."""


def _traceparent(record: Record) -> str | None:
    for name, value in record.headers:
        if name == "traceparent" and value is not None and len(value) <= TRACEPARENT_CHARS_MAX:
            return value.decode("ascii", "replace")
    return None
