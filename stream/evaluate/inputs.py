"""The files of an evaluation: what is looked at before the first record, and nothing that later rows could change."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from stream.dataset import DatasetError

pc: Any = pyarrow.compute

BASE_LOOK_PAYMENTS: Final = 10_000
BASE_DEFAULT: Final = "EUR"


def most_frequent_currency(payments: Path) -> str:
    """Of the first `BASE_LOOK_PAYMENTS` payments; of equals the first by name. A file without rows has EUR.

    This is what an operator knows of his own market before the first payment, and all that is known in advance.
    """
    seen: Counter[str] = Counter()
    left = BASE_LOOK_PAYMENTS
    with pq.ParquetFile(payments) as file:
        for batch in file.iter_batches(batch_size=BASE_LOOK_PAYMENTS, columns=["currency"]):
            seen.update(text for text in batch.column(0).slice(0, left).to_pylist() if text is not None)
            left -= min(left, batch.num_rows)
            if not left:
                break
    return min(seen, key=lambda name: (-seen[name], name)) if seen else BASE_DEFAULT


def without_rate(payments: Path, base: str) -> int:
    """Payments of the whole file whose amount is neither in `base` nor billed in it: for the report."""
    count = 0
    with pq.ParquetFile(payments) as file:
        billed = {"billing_amount", "billing_currency"} <= set(file.schema_arrow.names)
        columns = ["currency", *(["billing_amount", "billing_currency"] if billed else [])]
        for batch in file.iter_batches(batch_size=131_072, columns=columns):
            known = pc.equal(batch.column("currency").cast(pa.string()), base)
            if billed:
                in_base = pc.equal(batch.column("billing_currency").cast(pa.string()), base)
                known = pc.or_(known, pc.and_(pc.fill_null(in_base, False), batch.column("billing_amount").is_valid()))
            count += batch.num_rows - (pc.sum(known).as_py() or 0)
    return count


def first_rows(path: Path, count: int, out: Path) -> Path:
    """The first `count` rows as a file of their own."""
    left = count
    with pq.ParquetFile(path) as file, pq.ParquetWriter(out, file.schema_arrow) as writer:
        for batch in file.iter_batches():
            if left <= 0:
                break
            writer.write_batch(batch.slice(0, left))
            left -= batch.num_rows
    return out


def rows_until(path: Path, time: str, last_ms: int, out: Path) -> Path:
    """The rows whose column `time` is at most `last_ms`, as a file of their own."""
    table: Any = pq.read_table(path)
    pq.write_table(table.filter(pc.less_equal(table.column(time), last_ms)), out)
    return out


def last_event_ms(payments: Path) -> int:
    """The highest event time of the file; 0 if it has no rows."""
    return pc.max(pq.read_table(payments, columns=["event_time"]).column(0)).as_py() or 0


def without_source(labels: Path, source: str, out: Path) -> Path:
    """The labels that `source` did not send, as a file of their own: exactly a file that never had the others.

    Raises `DatasetError` if the file does not say who sent a label.
    """
    table: Any = pq.read_table(labels)
    if "source" not in table.schema.names:
        raise DatasetError(f"{labels}: no column source, so nothing can be left out by it")
    other = pc.fill_null(pc.not_equal(table.column("source").cast(pa.string()), source), True)
    if pc.all(other).as_py():
        known = sorted({text for text in table.column("source").to_pylist() if text is not None})
        raise DatasetError(f"{labels}: no label of source {source!r}; there are {', '.join(known[:20]) or 'none'}")
    pq.write_table(table.filter(other), out)
    return out
