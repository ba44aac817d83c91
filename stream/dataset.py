"""The dataset format: payments, labels and updates as Parquet files, read as one stream in order of time.

Columns (`payments` in order of `event_time`, `labels` and `updates` in order of their time):

    payments   payment_id, event_time, account_id, amount, currency; terminal_id and any other optional field
               of the payment contract
    labels     payment_id, account_id, observed_at, kind; any other optional field of the label contract
    updates    payment_id, account_id, observed_at, kind; any other optional field of the update contract

Times are int64 UTC epoch ms, amounts int64 minor units. A null is an absent field, and so is a NaN. A column that no
contract knows (`scenario`, a fraud flag) is *not* sent, so that no reader can ever learn from it; `Dataset.ignored`
names it. `attributes` and `references` may be struct, map or JSON text columns.

Memory is bounded by a row group's decoded pages and one batch of rows per file, not by the file.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec
import msgspec.inspect
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from stream.errors import OperatorError
from topics.label import Label
from topics.payment import TENANT_DEFAULT, Payment
from topics.update import Update

# pyarrow ships no types, and registers its compute functions at run time.
Array: TypeAlias = Any
Batch: TypeAlias = Any
Table: TypeAlias = Any
pc: Any = pyarrow.compute

HOUR_MS: Final = 3_600_000
BATCH_ROWS: Final = 8_192

FieldType = Literal["text", "integer", "real", "boolean", "object"]


def _field_type(kind: msgspec.inspect.Type) -> FieldType:
    """How a column for a field of this type is read."""
    match kind:
        case msgspec.inspect.UnionType():
            return _field_type(next(part for part in kind.types if not isinstance(part, msgspec.inspect.NoneType)))
        case msgspec.inspect.Metadata():
            return _field_type(kind.type)
        case msgspec.inspect.IntType():
            return "integer"
        case msgspec.inspect.FloatType():
            return "real"
        case msgspec.inspect.BoolType():
            return "boolean"
        case msgspec.inspect.StructType() | msgspec.inspect.DictType():
            return "object"
        case _:
            return "text"


def contract_fields(contract: type[msgspec.Struct]) -> dict[str, FieldType]:
    """The columns that a file of this contract may have.

    >>> contract_fields(Label)["observed_at"]
    'integer'
    """
    info = msgspec.inspect.type_info(contract)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: _field_type(field.type) for field in info.fields}


PAYMENT_FIELDS: Final = contract_fields(Payment)
LABEL_FIELDS: Final = contract_fields(Label)
UPDATE_FIELDS: Final = contract_fields(Update)

PAYMENT_TIME: Final = "event_time"
LABEL_TIME: Final = "observed_at"
UPDATE_TIME: Final = "observed_at"

EventKind = Literal["payment", "update", "label", "clock"]

TOPIC_OF: Final[dict[EventKind, str]] = {
    "payment": "payments",
    "update": "updates",
    "label": "labels",
    "clock": "labels",
}


class DatasetError(OperatorError):
    """The file is not a dataset: the one who made the file acts. The message names file, column and row."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One record of the merged stream.

    `at_ms`: event time of a payment, time of an update, `observed_at` of a label or clock record; UTC epoch ms.
    `value`: the record's JSON as it goes to the topic `TOPIC_OF[kind]`.
    `account_id`, `tenant_id`: "" and the default tenant for a clock record.
    """

    kind: EventKind
    at_ms: int
    value: bytes
    account_id: str
    tenant_id: str


class _Shape(msgspec.Struct, frozen=True):
    """What one kind of file must look like."""

    kind: EventKind
    time: str
    required: tuple[str, ...]
    fields: dict[str, FieldType]


_PAYMENTS: Final = _Shape(
    "payment", PAYMENT_TIME, ("payment_id", "event_time", "account_id", "amount", "currency"), PAYMENT_FIELDS
)
_LABELS: Final = _Shape("label", LABEL_TIME, ("payment_id", "account_id", "observed_at", "kind"), LABEL_FIELDS)
_UPDATES: Final = _Shape("update", UPDATE_TIME, ("payment_id", "account_id", "observed_at", "kind"), UPDATE_FIELDS)


def clock_record(observed_at_ms: int) -> Event:
    """Says that all labels observed before `observed_at_ms` have been sent.

    >>> clock_record(3_600_000).value
    b'{"kind":"clock","observed_at":3600000}'
    """
    value = b'{"kind":"clock","observed_at":%d}' % observed_at_ms
    return Event("clock", observed_at_ms, value, "", TENANT_DEFAULT)


# ---------------------------------------------------------------------------------------------------- columns to JSON


def _storage(column: Array, name: str) -> Array:
    """The column without dictionary encoding or an extension type."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    return column


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _to_text(column: Array, name: str) -> Array:
    if _is_text(column.type):
        return column.cast(pa.string())
    if pa.types.is_integer(column.type):
        digits = column.cast(pa.string())
        # ISO 18245 codes are four digits; a file of integers has lost the leading zeros.
        return pc.utf8_lpad(digits, 4, "0") if name == "mcc" else digits
    raise DatasetError(f"expected text, got {column.type}")


def _to_integer(column: Array) -> Array:
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        # pandas turns an integer column with nulls into floats. A fraction is still refused.
        whole = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return whole.cast(pa.int64())
    raise DatasetError(f"expected integers, got {column.type}")


def _to_real(column: Array) -> Array:
    if pa.types.is_integer(column.type):
        return column.cast(pa.float64())
    if not pa.types.is_floating(column.type):
        raise DatasetError(f"expected numbers, got {column.type}")
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if pc.any(pc.is_inf(column)).as_py():
        raise DatasetError("an infinite number has no JSON form")
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _to_boolean(column: Array) -> Array:
    if pa.types.is_boolean(column.type):
        return column
    raise DatasetError(f"expected booleans, got {column.type}")


def _plain(text: Array) -> bool:
    """No character needs a backslash in JSON. Looks at all bytes at once: a regex doubles the cost of a row."""
    _, offsets, values = text.buffers()
    if values is None or len(text) == 0:
        return True
    bounds = np.frombuffer(offsets, np.int32, len(text) + 1, text.offset * 4)
    octets = np.frombuffer(values, np.uint8)[bounds[0] : bounds[-1]]
    return not bool(((octets < 0x20) | (octets == ord('"')) | (octets == ord("\\"))).any())


def _escaped(text: Array) -> Array:
    """The strings as JSON, without their quotes. Escaping is rare, so it may be slow."""
    if _plain(text):
        return text
    encoded = [None if value is None else msgspec.json.encode(value)[1:-1].decode() for value in text.to_pylist()]
    return pa.array(encoded, pa.string())


def _without_nulls(value: object) -> object:
    """Absent fields of a struct column are absent in the object, too."""
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _object_json(column: Array) -> Array:
    """JSON objects from a struct or map column, or from text that is JSON already."""
    rows: list[str | None] = []
    if _is_text(column.type):
        for text in column.to_pylist():
            if text is None or text == "":
                rows.append(None)
                continue
            try:
                decoded = msgspec.json.decode(text)
            except msgspec.DecodeError as error:
                raise DatasetError(f"row {len(rows)} of this batch is not JSON: {error}") from error
            rows.append(msgspec.json.encode(decoded).decode())
        return pa.array(rows, pa.string())
    if pa.types.is_struct(column.type) or pa.types.is_map(column.type):
        is_map = pa.types.is_map(column.type)
        for value in column.to_pylist():
            cleaned = None if value is None else _without_nulls(dict(value) if is_map else value)
            rows.append(msgspec.json.encode(cleaned).decode() if cleaned else None)
        return pa.array(rows, pa.string())
    raise DatasetError(f"expected a struct, a map or JSON text, got {column.type}")


def _json_values(column: Array, name: str, field: FieldType) -> Array:
    """The column's values in JSON, as strings; texts without their quotes; null where the field is absent."""
    column = _storage(column, name)
    match field:
        case "text":
            return _escaped(_to_text(column, name))
        case "integer":
            return _to_integer(column).cast(pa.string())
        case "real":
            return _to_real(column).cast(pa.string())
        case "boolean":
            return _to_boolean(column).cast(pa.string())
        case "object":
            return _object_json(column)


def encode_rows(batch: Batch, fields: Mapping[str, FieldType], required: Sequence[str] = ()) -> list[bytes]:
    """One JSON object a row, with the batch's columns that are in `fields` and not null.

    `required`: columns that hold no null; they come first. All others follow in the batch's order, so that the bytes
    of a row do not depend on the other rows. Raises `DatasetError` naming the column.

    >>> rows = pa.RecordBatch.from_pydict({"payment_id": ["a", "b"], "amount": [1, None], "is_fraud": [0, 1]})
    >>> encode_rows(rows, PAYMENT_FIELDS)
    [b'{"payment_id":"a","amount":1}', b'{"payment_id":"b"}']
    """
    names: list[str] = batch.schema.names
    ordered = [name for name in names if name in required] + [name for name in names if name not in required]
    # One join of literals and columns over the whole batch. Every member brings the comma before it.
    pieces: list[Any] = []
    literal = ""
    for name in ordered:
        field = fields.get(name)
        if field is None:
            continue
        try:
            values = _json_values(batch.column(name), name, field)
        except (DatasetError, pa.ArrowInvalid) as error:
            raise DatasetError(f"column {name!r}: {error}") from error
        quote = '"' if field == "text" else ""
        if values.null_count == 0:
            pieces += [f'{literal},"{name}":{quote}', values]
            literal = quote
        elif values.null_count < len(values):
            # An absent field is an empty text. (Arrow's own way to leave nulls out drops rows that have nothing else.)
            pieces += [literal, pc.binary_join_element_wise(f',"{name}":{quote}', values, quote, "")]
            literal = ""
    if not pieces:
        return [b"{}"] * batch.num_rows
    starts_full = isinstance(pieces[0], str) and pieces[0].startswith(",")
    if starts_full:
        pieces[0] = "{" + pieces[0][1:]
    joined = pc.binary_join_element_wise(*pieces, literal + "}", "", null_handling="replace", null_replacement="")
    if not starts_full:
        joined = pc.binary_join_element_wise("{", pc.utf8_ltrim(joined, ","), "")
    return joined.cast(pa.binary()).to_pylist()


# -------------------------------------------------------------------------------------------------------------- reading


class _Rows(msgspec.Struct):
    """A batch of one file, ready to be merged: sorted times (int64 ms) and the events at them."""

    times_ms: np.ndarray[Any, np.dtype[np.int64]]
    events: list[Event]


class _File:
    """One Parquet file of a shape. Raises `DatasetError` at once when its columns cannot be right."""

    def __init__(self, path: str | Path, shape: _Shape) -> None:
        self.path = Path(path)
        self.shape = shape
        if not self.path.is_file():
            raise DatasetError(f"{self.path}: no such file")
        try:
            with pq.ParquetFile(self.path) as file:
                self.rows: int = file.metadata.num_rows
                schema = file.schema_arrow
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{self.path}: not a Parquet file ({error})") from error
        missing = [name for name in shape.required if name not in schema.names]
        if missing:
            raise DatasetError(
                f"{self.path}: no column {', '.join(missing)}; a file of {shape.kind}s has {', '.join(shape.required)}"
            )
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DatasetError(f"{self.path}: column {', '.join(twice)} occurs more than once")
        if not pa.types.is_integer(schema.field(shape.time).type):
            raise DatasetError(
                f"{self.path}: column {shape.time!r} is {schema.field(shape.time).type}, not int64 UTC epoch ms"
            )
        self.ignored = tuple(name for name in schema.names if name not in shape.fields)
        self.columns = [name for name in schema.names if name in shape.fields]
        self._check(schema.empty_table().select(self.columns).combine_chunks())

    def _check(self, empty: Table) -> None:
        """Types are judged on an empty batch, so that a wrong file fails before its first record is sent."""
        batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in empty.columns], names=self.columns)
        try:
            encode_rows(batch, self.shape.fields, self.shape.required)
        except DatasetError as error:
            raise DatasetError(f"{self.path}: {error}") from error

    def batches(self, batch_rows: int) -> Iterator[_Rows]:
        """The rows, at most `batch_rows` at a time. Raises `DatasetError` on a null or a step back in time."""
        seen = 0
        last_ms: int | None = None
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=batch_rows, columns=self.columns):
                if batch.num_rows == 0:
                    continue
                self._no_nulls(batch, seen)
                times = np.asarray(_to_integer(batch.column(self.shape.time)).to_numpy(zero_copy_only=False), np.int64)
                self._in_order(times, seen, last_ms)
                yield _Rows(times, self._events(batch, times, seen))
                last_ms = int(times[-1])
                seen += batch.num_rows

    def _no_nulls(self, batch: Batch, seen: int) -> None:
        for name in self.shape.required:
            column = batch.column(name)
            if column.null_count:
                row = seen + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise DatasetError(f"{self.path}: column {name!r} is null in row {row}")

    def _in_order(self, times: np.ndarray[Any, np.dtype[np.int64]], seen: int, last_ms: int | None) -> None:
        previous = int(times[0]) if last_ms is None else last_ms
        steps = np.diff(times, prepend=previous)
        if steps.min() < 0:
            row = int(np.argmax(steps < 0))
            raise DatasetError(
                f"{self.path}: row {seen + row} goes back in time ({self.shape.time} {times[row]} after "
                f"{times[row] - steps[row]}); sort the file by {self.shape.time}"
            )

    def _events(self, batch: Batch, times: np.ndarray[Any, np.dtype[np.int64]], seen: int) -> list[Event]:
        try:
            values = encode_rows(batch, self.shape.fields, self.shape.required)
        except DatasetError as error:
            raise DatasetError(f"{self.path}: rows {seen}-{seen + batch.num_rows - 1}: {error}") from error
        accounts = _to_text(_storage(batch.column("account_id"), "account_id"), "account_id").to_pylist()
        if "tenant_id" in self.columns:
            tenants: Iterable[str] = (
                tenant or TENANT_DEFAULT
                for tenant in _to_text(_storage(batch.column("tenant_id"), "tenant_id"), "tenant_id").to_pylist()
            )
        else:
            tenants = itertools.repeat(TENANT_DEFAULT)
        kinds: Iterator[Any] = itertools.repeat(self.shape.kind)
        return list(map(Event, kinds, times.tolist(), values, accounts, tenants))

    def events(self, batch_rows: int) -> Iterator[Event]:
        """The rows as single events."""
        return itertools.chain.from_iterable(rows.events for rows in self.batches(batch_rows))


def _at_ms(event: Event) -> int:
    return event.at_ms


class Dataset:
    """A payments file with, if there are any, its labels and updates.

    Without a labels file no clock records are made: a clock record says that labels are complete, and nobody knows.
    Columns are checked here; rows while they are read. Raises `DatasetError`.
    """

    def __init__(
        self,
        payments: str | Path,
        labels: str | Path | None = None,
        updates: str | Path | None = None,
    ) -> None:
        self._payments = _File(payments, _PAYMENTS)
        self._labels = None if labels is None else _File(labels, _LABELS)
        self._updates = None if updates is None else _File(updates, _UPDATES)

    @property
    def _files(self) -> Sequence[_File]:
        return [file for file in (self._payments, self._labels, self._updates) if file is not None]

    @property
    def rows(self) -> int:
        """Rows of all files: events without clock records."""
        return sum(file.rows for file in self._files)

    @property
    def payment_rows(self) -> int:
        """Rows of the payments file."""
        return self._payments.rows

    @property
    def ignored(self) -> dict[str, tuple[str, ...]]:
        """Columns that no contract knows, which are not sent, per file."""
        return {str(file.path): file.ignored for file in self._files if file.ignored}

    def events(self, *, clock_every_ms: int = HOUR_MS, batch_rows: int = BATCH_ROWS) -> Iterator[Event]:
        """All records in order of time. See `event_batches`."""
        return itertools.chain.from_iterable(self.event_batches(clock_every_ms=clock_every_ms, batch_rows=batch_rows))

    def event_batches(
        self, *, clock_every_ms: int = HOUR_MS, batch_rows: int = BATCH_ROWS
    ) -> Iterator[Sequence[Event]]:
        """All records in order of time, in short lists.

        At one instant the order is: clock, updates, labels, payments; a label counts for payments at its `observed_at`
        or later. Before the first record at or after a multiple T of `clock_every_ms` stands the clock record of T
        (the latest T only, after a gap), and a last one stands 1 ms after the last record.

        Raises `DatasetError` on a null in a required column or a step back in time, naming the row.
        """
        if clock_every_ms <= 0 or batch_rows <= 0:
            raise ValueError("clock_every_ms and batch_rows must be positive")
        sparse = [file.events(batch_rows) for file in (self._updates, self._labels) if file is not None]
        others: Iterator[Event] = heapq.merge(*sparse, key=_at_ms) if sparse else iter(())
        clocked = self._labels is not None
        other = next(others, None)
        clock_ms: int | None = None  # the next multiple at which a clock record is due; None before the first record
        last_ms: int | None = None
        for rows in self._payments.batches(batch_rows):
            start, stop = 0, len(rows.events)
            while start < stop:
                now_ms = int(rows.times_ms[start])
                if other is not None and other.at_ms <= now_ms:
                    now_ms = other.at_ms
                if clocked and (clock_ms is None or now_ms >= clock_ms):
                    if clock_ms is not None:
                        yield (clock_record(now_ms - now_ms % clock_every_ms),)
                    clock_ms = now_ms - now_ms % clock_every_ms + clock_every_ms
                if other is not None and other.at_ms <= int(rows.times_ms[start]):
                    yield (other,)
                    other = next(others, None)
                    continue
                cut = stop
                if clock_ms is not None:
                    cut = min(cut, int(np.searchsorted(rows.times_ms, clock_ms)))
                if other is not None:
                    cut = min(cut, int(np.searchsorted(rows.times_ms, other.at_ms)))
                yield rows.events[start:cut]
                start = cut
            last_ms = int(rows.times_ms[-1])
        while other is not None:
            if clocked:
                if clock_ms is not None and other.at_ms >= clock_ms:
                    yield (clock_record(other.at_ms - other.at_ms % clock_every_ms),)
                clock_ms = other.at_ms - other.at_ms % clock_every_ms + clock_every_ms
            yield (other,)
            last_ms = other.at_ms
            other = next(others, None)
        if clocked and last_ms is not None:
            yield (clock_record(last_ms + 1),)


# -------------------------------------------------------------------------------------------------------------- writing


def write_table(table: Table, path: str | Path) -> None:
    """Write payments, labels or updates as Parquet. The same table gives the same bytes with one pyarrow version."""
    pq.write_table(table, path, compression="zstd", row_group_size=131_072)


def write_dataset(directory: str | Path, tables: Mapping[str, Table]) -> dict[str, Path]:
    """Write `{"payments": ..., "labels": ..., "updates": ...}` as `<name>.parquet`; returns the paths by name."""
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    paths = {name: root / f"{name}.parquet" for name in tables}
    for name, table in tables.items():
        write_table(table, paths[name])
    return paths
