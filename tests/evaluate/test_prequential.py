"""No answer knows of what comes later, of how a file is cut, or of a column that no contract has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from stream.dataset import DatasetError
from stream.evaluate.run import Files
from topics.limits import DAY_MS, HOUR_MS

pc: Any = pyarrow.compute
Answer = Callable[..., Any]


def _cut(path: Path | None, time: str, last_ms: int, out: Path) -> Path:
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.less_equal(table.column(time), last_ms)), out)
    return out


def _until(rows: list[dict[str, Any]], last_ms: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["event_time"] <= last_ms]


def test_there_are_versions_and_answers_to_compare(whole: Any) -> None:
    """Or the other tests of this file would hold for nothing."""
    versions = {row["model_version"] for row in whole.rows}
    assert len(versions) > 5
    assert whole.done.decided == whole.done.payments == len(whole.rows)
    assert sum(row["probability"] is not None for row in whole.rows) > 3_000
    assert whole.done.examples_fraud > 50
    assert {row["verdict"] for row in whole.rows} >= {"approve", "review"}


@pytest.mark.parametrize("after_ms", [11 * DAY_MS + 1, 12 * DAY_MS, 13 * DAY_MS + 5 * HOUR_MS + 12_345])
def test_labels_of_later_change_no_earlier_answer(
    small: Files, whole: Any, answered: Answer, tmp_path: Path, after_ms: int
) -> None:
    last_ms = whole.rows[0]["event_time"] // DAY_MS * DAY_MS + after_ms
    labels = _cut(small.labels, "observed_at", last_ms, tmp_path / "labels.parquet")
    got = answered(Files(payments=small.payments, labels=labels, updates=small.updates))
    assert _until(got.rows, last_ms) == _until(whole.rows, last_ms)
    assert got.rows != whole.rows, "what was deleted must matter later, or nothing was shown"


@pytest.mark.parametrize("after_ms", [10 * DAY_MS + 7, 12 * DAY_MS, 14 * DAY_MS + 3 * HOUR_MS + 54_321])
def test_payments_of_later_change_no_earlier_answer(
    small: Files, whole: Any, answered: Answer, tmp_path: Path, after_ms: int
) -> None:
    last_ms = whole.rows[0]["event_time"] // DAY_MS * DAY_MS + after_ms
    payments = _cut(small.payments, "event_time", last_ms, tmp_path / "payments.parquet")
    got = answered(Files(payments=payments, labels=small.labels, updates=small.updates))
    assert got.rows == _until(whole.rows, last_ms)


def test_the_first_payments_alone_are_answered_the_same(small: Files, whole: Any, answered: Answer) -> None:
    files = Files(payments=small.payments, labels=small.labels, updates=small.updates, limit=12_345)
    assert answered(files).rows == whole.rows[:12_345]


@pytest.mark.parametrize("batch", [1, 7])
def test_how_much_is_applied_at_once_changes_nothing(small: Files, whole: Any, answered: Answer, batch: int) -> None:
    assert answered(small, batch=batch).rows == whole.rows


def test_how_the_file_is_cut_changes_nothing(small: Files, whole: Any, answered: Answer, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(small.payments), tmp_path / "payments.parquet", row_group_size=777)
    pq.write_table(pq.read_table(small.labels), tmp_path / "labels.parquet", row_group_size=10)
    files = Files(payments=tmp_path / "payments.parquet", labels=tmp_path / "labels.parquet", updates=small.updates)
    assert answered(files).rows == whole.rows


def test_columns_that_no_contract_knows_are_not_read(
    small: Files, whole: Any, answered: Answer, tmp_path: Path
) -> None:
    payments, labels = pq.read_table(small.payments), pq.read_table(small.labels)
    payments = payments.append_column("is_fraud", pa.array([i % 2 for i in range(payments.num_rows)]))
    labels = labels.append_column("scenario", pa.array([i % 3 for i in range(labels.num_rows)]))
    pq.write_table(payments, tmp_path / "payments.parquet")
    pq.write_table(labels, tmp_path / "labels.parquet")
    files = Files(payments=tmp_path / "payments.parquet", labels=tmp_path / "labels.parquet", updates=small.updates)
    assert answered(files).rows == whole.rows


def test_without_a_source_is_a_file_without_its_labels(
    small: Files, whole: Any, answered: Answer, tmp_path: Path
) -> None:
    labels = pq.read_table(small.labels)
    pq.write_table(labels.filter(pc.not_equal(labels.column("source"), "issuer-feed")), tmp_path / "labels.parquet")
    filtered = Files(payments=small.payments, labels=tmp_path / "labels.parquet", updates=small.updates)
    left_out = Files(payments=small.payments, labels=small.labels, updates=small.updates, without_source="issuer-feed")
    got = answered(left_out)
    assert got.rows == answered(filtered).rows
    assert got.rows != whole.rows


def test_a_source_that_is_not_there_is_told(small: Files, answered: Answer) -> None:
    files = Files(payments=small.payments, labels=small.labels, without_source="nobody")
    with pytest.raises(DatasetError, match=r"no label of source 'nobody'; there are acquirer-feed, analyst"):
        answered(files)
