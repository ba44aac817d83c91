"""The training set that the live way has gathered: examples as they were sent to the learner, one row a payment.

A row's features are the bytes that decided the payment, never computed again. Its truth is what was known at a cut-off.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from msgspec import Struct, structs

from stream.errors import InternalError, OperatorError
from stream.features import FEATURES_VERSION, MODEL_NAMES
from stream.stages.stage import Record
from topics.journal import EXAMPLE_MATURED, EXAMPLE_UNLABELLED, FIRST_PREV, Example, decode_block
from topics.undecodable import UNDECODABLE

pq: Any = pyarrow.parquet

KINDS: Final = ("labelled", "matured", "corrected", "unlabelled")  # by EXAMPLE_*
ROW_GROUP: Final = 50_000
FEATURE_PREFIX: Final = "f_"  # `amount` is a feature; a column of that name would look like the payment's

SCHEMA: Final = pa.schema(
    [
        ("payment", pa.binary(16)),
        ("event_time", pa.int64()),
        ("observed_at", pa.int64()),
        ("fraud", pa.bool_()),
        ("weight", pa.float64()),
        ("kind", pa.string()),
        ("provisional", pa.bool_()),
        ("source", pa.string()),
        *((FEATURE_PREFIX + name, pa.float32()) for name in MODEL_NAMES),
    ],
    metadata={"features_version": FEATURES_VERSION},
)


class Exported(Struct, frozen=True, kw_only=True):
    """Rows written; `superseded`: examples of payments whose truth was told again later."""

    rows: int
    frauds: int
    legitimate: int
    unlabelled: int
    superseded: int
    features_version: str = FEATURES_VERSION


class ForeignFeatures(OperatorError):
    """An example has another number of features than this release knows."""


def examples_of(records: Iterable[Record], skipped: Collection[int] = ()) -> Iterator[Example]:
    """The examples in records of the journal `examples`, each once, as the learner admits them.

    An item is admitted if it follows the last one of its sender; resent ones, and ones ahead of a gap, are dropped, and
    so is what an operator has `skipped`, by offset. Raises `InternalError` at a record that cannot be read.
    """
    last: dict[tuple[bytes, int], tuple[int, int]] = {}
    for record in records:
        try:
            block = decode_block(record.value or b"")
        except UNDECODABLE as error:
            if record.offset in skipped:
                continue
            raise InternalError(f"unreadable block at examples[0]@{record.offset}: {error}") from error
        if not block.sender:
            continue  # a timer's tick
        sender = (block.sender, block.partition)
        prev = block.prev
        for item in block.items:
            this = (item.offset, item.n)
            if prev == last.get(sender, FIRST_PREV):
                last[sender] = this
                if isinstance(item, Example) and record.offset not in skipped:
                    yield item
            prev = this


def known_by(examples: Iterable[Example], until_ms: int | None = None) -> tuple[list[Example], int]:
    """The latest example of each payment with a truth observed up to `until_ms` (None: all), in order of that truth;
    and how many were superseded. Unlabelled ones count by their event time, and give way to any other. What silence
    taught in two parts is one example of both their weights."""
    latest: dict[bytes, Example] = {}
    superseded = 0
    for example in examples:
        unlabelled = example.kind == EXAMPLE_UNLABELLED
        known_ms = example.event_ms if unlabelled else example.observed_ms
        if until_ms is not None and known_ms > until_ms:
            continue
        if unlabelled and example.pid in latest:
            continue
        before = latest.pop(example.pid, None)
        if before is not None and before.kind == example.kind == EXAMPLE_MATURED:
            example = structs.replace(example, weight=before.weight + example.weight)
        else:
            superseded += before is not None
        latest[example.pid] = example
    return list(latest.values()), superseded


def write_training_set(
    records: Iterable[Record], path: Path, *, until_ms: int | None = None, skipped: Collection[int] = ()
) -> Exported:
    """Write `SCHEMA`, zstd. Holds one example a payment in memory, about 0.6 kB. Raises `ForeignFeatures`, and what
    `examples_of` raises."""
    rows, superseded = known_by(examples_of(records, skipped), until_ms)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(rows), ROW_GROUP):
            writer.write_table(_table(rows[start : start + ROW_GROUP]))
    unlabelled = sum(row.kind == EXAMPLE_UNLABELLED for row in rows)
    frauds = sum(row.fraud for row in rows if row.kind != EXAMPLE_UNLABELLED)
    return Exported(
        rows=len(rows),
        frauds=frauds,
        legitimate=len(rows) - unlabelled - frauds,
        unlabelled=unlabelled,
        superseded=superseded,
    )


def _table(rows: list[Example]) -> Any:
    width = 4 * len(MODEL_NAMES)
    for row in rows:
        if len(row.features) != width:
            raise ForeignFeatures(
                f"an example of {row.pid.hex()} has {len(row.features) // 4} features, this release "
                f"({FEATURES_VERSION}) has {len(MODEL_NAMES)}: export with the release that recorded it"
            )
    labelled = [row.kind != EXAMPLE_UNLABELLED for row in rows]
    features = np.frombuffer(b"".join(row.features for row in rows), np.float32).reshape(len(rows), -1)
    truth = list(zip(rows, labelled, strict=True))
    columns = [
        pa.array([row.pid for row in rows], pa.binary(16)),
        pa.array([row.event_ms for row in rows], pa.int64()),
        pa.array([row.observed_ms if known else None for row, known in truth], pa.int64()),
        pa.array([row.fraud if known else None for row, known in truth], pa.bool_()),
        pa.array([row.weight for row in rows], pa.float64()),
        pa.array([KINDS[row.kind] for row in rows], pa.string()),
        pa.array([row.provisional for row in rows], pa.bool_()),
        pa.array([row.source for row in rows], pa.string()),
        *(pa.array(np.ascontiguousarray(features[:, i])) for i in range(len(MODEL_NAMES))),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
