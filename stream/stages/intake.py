"""Intake: from a foreign topic onto the account journal, under our own partitioner. It refuses nothing.

Its step is one foreign record. All that could ever be decided differently is decided later, in a journaled stage.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import cast

import msgspec
import numpy as np
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from stream.columns.runs import FEW, RUN_MAX
from stream.columns.scan import Scanned, scan_payments
from stream.stages.keys import partition_of_origin, partition_of_unchecked
from stream.stages.stage import Outbox, Record, Step, long_pieces
from topics.journal import (
    LABELS,
    OUTPUTS_PER_ITEM_MAX,
    PAYMENTS,
    RAW_BYTES_MAX,
    RAW_EXCERPT_BYTES,
    Oversize,
    Raw,
    RawRun,
)
from topics.limits import LIMITS_DEFAULT

ACCOUNT_JOURNAL = "account-journal"
TRACEPARENT_CHARS_MAX = 64


class _Whose(Struct, gc=False):
    """As much of a record as intake reads."""

    account_id: str | None = None
    tenant_id: str = "default"
    kind: object = None


_whose = msgspec.json.Decoder(_Whose)


def whose(value: bytes) -> _Whose | None:
    """Account, tenant and kind that a record names, or None."""
    try:
        return _whose.decode(value)
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
        if self.source == PAYMENTS and len(steps) >= FEW:
            self._columns(steps, out)
        else:
            self._one_by_one(steps, out)

    def _columns(self, steps: Sequence[Step], out: Outbox) -> None:
        """Plain payments in runs, the others one by one. Limits do not matter here: they decide on the road only."""
        if len(steps) > RUN_MAX:
            for start in range(0, len(steps), RUN_MAX):
                self.apply(steps[start : start + RUN_MAX], out)
            return
        records = cast("list[Record]", [step.item for step in steps])
        values = [record.value or b"" for record in records]
        if max(map(len, values)) > RAW_BYTES_MAX:
            values = [value if len(value) <= RAW_BYTES_MAX else b"" for value in values]
        scanned = scan_payments(values, LIMITS_DEFAULT, whole=False)
        for plain, start, end in long_pieces(scanned.plain.tolist(), FEW):
            if plain:
                self._run(steps[start:end], records[start:end], values[start:end], scanned, start, out)
            else:
                self._one_by_one(steps[start:end], out)

    def _run(
        self,
        steps: Sequence[Step],
        records: Sequence[Record],
        values: Sequence[bytes],
        scanned: Scanned,
        start: int,
        out: Outbox,
    ) -> None:
        blob, partitions = scanned.blob, self.partitions
        names = scanned.account_at[start : start + len(steps)].tolist()
        targets = [xxh3_64_intdigest(blob[a + 1 : b]) % partitions for a, b, _ in names]  # as `partition_of` does
        traces = [_traceparent(record) if record.headers else None for record in records]
        traced = traces.count(None) < len(traces)
        for target in sorted(set(targets)):
            at = [i for i, other in enumerate(targets) if other == target]
            offsets = [steps[i].offset for i in at]
            run = RawRun(
                offsets[0],
                0,
                offsets[-1],
                len(at),
                PAYMENTS,
                np.array(offsets, np.int64).tobytes(),
                np.array([records[i].at_ms for i in at], np.int64).tobytes(),
                np.array([len(values[i]) for i in at], np.int32).tobytes(),
                b"\0".join((*[values[i] for i in at], b"")),
                [traces[i] for i in at] if traced else [],
            )
            out.journal(steps[at[0]], ACCOUNT_JOURNAL, target, run)

    def _one_by_one(self, steps: Sequence[Step], out: Outbox) -> None:
        source, partitions = self.source, self.partitions
        for step in steps:
            record = step.item
            assert type(record) is Record
            value = record.value or b""
            oversize = None
            if len(value) > RAW_BYTES_MAX:
                oversize = Oversize(len(value), sha256(value).digest())
                value = value[:RAW_EXCERPT_BYTES]
            seen = None if oversize else whose(value)
            traceparent = _traceparent(record) if record.headers else None
            raw = Raw(step.offset, 0, source, record.at_ms, value, traceparent, oversize)
            if source == PAYMENTS and seen is not None and seen.account_id is not None:
                partition = partition_of_unchecked(seen.tenant_id, seen.account_id, partitions)
                out.journal(step, ACCOUNT_JOURNAL, partition, raw)
                continue
            for partition in self._destinations(seen, step.offset):
                out.journal(step, ACCOUNT_JOURNAL, partition, raw)

    def _destinations(self, seen: _Whose | None, offset: int) -> Sequence[int]:
        if seen is not None:
            if self.source == LABELS and seen.kind == "clock":
                return range(self.partitions)
            if seen.account_id is not None:
                return (partition_of_unchecked(seen.tenant_id, seen.account_id, self.partitions),)
        return (partition_of_origin(self.topic_id, self.partition, offset, self.partitions),)

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        """Intake never fails on a record; a skipped one is simply not passed on."""

    def settle(self) -> None:
        """Nothing is kept but the chain, which the runner keeps."""


def _traceparent(record: Record) -> str | None:
    for name, value in record.headers:
        if name == "traceparent" and value is not None and len(value) <= TRACEPARENT_CHARS_MAX:
            return value.decode("ascii", "replace")
    return None
