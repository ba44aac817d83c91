"""The dataset format: what is read is what was written, in order of time, and wrong files are refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.dataset import HOUR_MS, PAYMENT_FIELDS, Dataset, DatasetError, encode_rows, write_dataset, write_table
from topics.codec import ParsedLabel, ParsedUpdate, parse_label, parse_update
from topics.limits import LIMITS_DEFAULT

START_MS = 1_735_689_600_000


def payments_at(times: list[int], **more: Any) -> pa.Table:
    count = len(times)
    return pa.table(
        {
            "payment_id": pa.array([f"p{number}" for number in range(count)], pa.string()),
            "event_time": pa.array(times, pa.int64()),
            "account_id": pa.array([f"a{number % 3}" for number in range(count)], pa.string()),
            "amount": pa.array(range(count), pa.int64()),
            "currency": pa.array(["EUR"] * count, pa.string()),
            **more,
        }
    )


def labels_at(times: list[int], **more: Any) -> pa.Table:
    return pa.table(
        {
            "payment_id": pa.array([f"p{number}" for number in range(len(times))], pa.string()),
            "account_id": pa.array(["a0"] * len(times), pa.string()),
            "observed_at": pa.array(times, pa.int64()),
            "kind": pa.array(["chargeback"] * len(times), pa.string()),
            **more,
        }
    )


def updates_at(times: list[int]) -> pa.Table:
    return labels_at(times).set_column(3, "kind", pa.array(["declined"] * len(times), pa.string()))


def dataset(directory: Path, payments: pa.Table, labels: Any = None, updates: Any = None) -> Dataset:
    tables = {"payments": payments, "labels": labels, "updates": updates}
    paths = write_dataset(directory, {name: table for name, table in tables.items() if table is not None})
    return Dataset(paths["payments"], paths.get("labels"), paths.get("updates"))


times_ms = st.lists(st.integers(0, 12).map(lambda quarter: START_MS + quarter * HOUR_MS // 4), max_size=12).map(sorted)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payments=times_ms, labels=times_ms, updates=times_ms, batch_rows=st.sampled_from([1, 2, 5, 1000]))
def test_merge_is_in_order_and_loses_nothing(
    tmp_path: Path, payments: list[int], labels: list[int], updates: list[int], batch_rows: int
):
    read = dataset(tmp_path, payments_at(payments), labels_at(labels), updates_at(updates))
    events = list(read.events(batch_rows=batch_rows))
    times = [event.at_ms for event in events]
    assert times == sorted(times)
    for kind, wanted in (("payment", payments), ("label", labels), ("update", updates)):
        mine = [event for event in events if event.kind == kind]
        assert [event.at_ms for event in mine] == wanted
        numbers = [json.loads(event.value)["payment_id"] for event in mine]
        assert numbers == [f"p{number}" for number in range(len(wanted))]
    # At one instant: the clock, then what a payment may count already, then payments.
    rank = {"clock": 0, "update": 1, "label": 2, "payment": 3}
    keys = [(event.at_ms, rank[event.kind]) for event in events]
    assert keys == sorted(keys)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payments=times_ms, labels=times_ms, batch_rows=st.sampled_from([1, 3, 1000]))
def test_a_clock_record_says_the_truth_and_is_never_behind_by_an_hour(
    tmp_path: Path, payments: list[int], labels: list[int], batch_rows: int
):
    events = list(dataset(tmp_path, payments_at(payments), labels_at(labels)).events(batch_rows=batch_rows))
    if not payments and not labels:
        assert events == []
        return
    clock_ms = None
    for event in events:
        if event.kind == "clock":
            assert json.loads(event.value) == {"kind": "clock", "observed_at": event.at_ms}
            assert clock_ms is None or event.at_ms > clock_ms
            clock_ms = event.at_ms
            continue
        assert clock_ms is None or event.at_ms >= clock_ms
        since = events[0].at_ms if clock_ms is None else clock_ms
        assert event.at_ms // HOUR_MS == since // HOUR_MS, "an hour began without its clock record"
    assert events[-1].kind == "clock"
    assert events[-1].at_ms == max(payments + labels) + 1


def test_without_labels_nobody_says_that_labels_are_complete(tmp_path: Path):
    events = list(dataset(tmp_path, payments_at([START_MS, START_MS + 5 * HOUR_MS])).events())
    assert [event.kind for event in events] == ["payment", "payment"]


def test_absent_fields_are_left_out_and_columns_of_no_contract_are_not_sent(tmp_path: Path):
    table = payments_at(
        [START_MS] * 3,
        is_fraud=[1, 0, 1],
        tenant_id=["t", None, "u"],
        latitude=[48.5, None, float("nan")],
        liability_shift=[True, None, False],
        utc_offset_min=[60.0, None, -300.0],
        mcc=pa.array([742, None, 5411], pa.int32()),
        ip=pa.array(["10.0.0.1", None, "10.0.0.2"]).dictionary_encode(),
        attributes=[{"shop": 'the "best"', "n": 1}, None, {"shop": None, "n": 2}],
        references=['{"rrn": "r1"}', None, ""],
    )
    read = dataset(tmp_path, table)
    assert list(read.ignored.values()) == [("is_fraud",)]
    first, second, third = (json.loads(event.value) for event in read.events())
    plain = {"event_time": START_MS, "currency": "EUR"}
    assert first == plain | {
        "payment_id": "p0",
        "account_id": "a0",
        "amount": 0,
        "tenant_id": "t",
        "latitude": 48.5,
        "liability_shift": True,
        "utc_offset_min": 60,
        "mcc": "0742",
        "ip": "10.0.0.1",
        "attributes": {"shop": 'the "best"', "n": 1},
        "references": {"rrn": "r1"},
    }
    assert second == plain | {"payment_id": "p1", "account_id": "a1", "amount": 1}
    assert third["attributes"] == {"n": 2}
    assert "latitude" not in third
    assert "references" not in third
    assert [event.tenant_id for event in read.events()] == ["t", "default", "u"]


row = st.fixed_dictionaries(
    {},
    optional={
        "payment_id": st.text(),
        "amount": st.integers(-(2**63), 2**63 - 1),
        "latitude": st.floats(allow_infinity=False, allow_nan=False),
        "liability_shift": st.booleans(),
        "ip": st.text(alphabet='"\\/\x00\x1f\x7f é\u2028😀a', max_size=9),
    },
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=6))
def test_rows_come_back_from_json_as_they_were(rows: list[dict[str, Any]]):
    kinds = [("payment_id", pa.string()), ("amount", pa.int64()), ("latitude", pa.float64())]
    kinds += [("liability_shift", pa.bool_()), ("ip", pa.large_string())]
    batch = pa.RecordBatch.from_pylist(rows, pa.schema(kinds))
    assert [json.loads(value) for value in encode_rows(batch, PAYMENT_FIELDS)] == rows


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=6))
def test_the_bytes_of_a_row_do_not_depend_on_other_rows(rows: list[dict[str, Any]]):
    rows = [{"payment_id": "p", "amount": 1} | fields for fields in rows]
    kinds = [("latitude", pa.float64()), ("amount", pa.int64()), ("payment_id", pa.string()), ("ip", pa.string())]
    batch = pa.RecordBatch.from_pylist(rows, pa.schema(kinds))
    required = ("payment_id", "amount")
    together = encode_rows(batch, PAYMENT_FIELDS, required)
    assert together == [encode_rows(batch.slice(at, 1), PAYMENT_FIELDS, required)[0] for at in range(len(rows))]


def test_a_slice_of_a_batch_is_checked_for_what_needs_escaping_in_its_own_rows_only():
    batch = pa.RecordBatch.from_pydict({"ip": ['"', "a", "b", '"']})
    assert encode_rows(batch.slice(1, 2), PAYMENT_FIELDS) == [b'{"ip":"a"}', b'{"ip":"b"}']
    assert encode_rows(batch.slice(3, 1), PAYMENT_FIELDS) == [b'{"ip":"\\""}']


def test_labels_and_updates_are_what_the_contracts_parse(tmp_path: Path):
    labels = labels_at([START_MS], scenario=pa.array([3], pa.int8()), reason_code=["10.4"])
    read = dataset(tmp_path, payments_at([]), labels, updates_at([START_MS]))
    update, label, clock = read.events()
    parsed = parse_label(label.value, LIMITS_DEFAULT)
    assert isinstance(parsed, ParsedLabel)
    assert parsed.unknown_fields == 0
    assert parsed.label.reason_code == "10.4"
    assert isinstance(parse_label(clock.value, LIMITS_DEFAULT), ParsedLabel)
    assert isinstance(parse_update(update.value, LIMITS_DEFAULT), ParsedUpdate)


def column(name: str, values: Any) -> Any:
    table = payments_at([START_MS, START_MS + 1])
    return table.set_column(table.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (payments_at([START_MS]).drop_columns(["amount"]), "no column amount"),
        (payments_at([START_MS + 1, START_MS]), "row 1 goes back in time"),
        (column("account_id", pa.array(["a", None])), "'account_id' is null in row 1"),
        (column("amount", pa.array([1.5, 2.0])), "'amount'"),
        (column("amount", pa.array(["1", "2"])), "'amount': expected integers, got string"),
        (column("event_time", pa.array([START_MS, START_MS + 1], pa.timestamp("ms"))), "not int64 UTC epoch ms"),
        (payments_at([START_MS], ip=["a"]).rename_columns(["amount", *"bcde", "ip"]), "no column payment_id"),
        (payments_at([START_MS], latitude=[float("inf")]), "'latitude': an infinite number"),
        (payments_at([START_MS], attributes=["{"]), "'attributes': row 0 of this batch is not JSON"),
        (payments_at([START_MS], channel=[1.5]), "'channel': expected text, got double"),
        (payments_at([START_MS], liability_shift=["yes"]), "'liability_shift': expected booleans"),
    ],
)
def test_a_file_that_is_no_dataset_is_refused_by_name(tmp_path: Path, table: pa.Table, message: str):
    write_table(table, tmp_path / "payments.parquet")
    with pytest.raises(DatasetError, match=message):
        list(Dataset(tmp_path / "payments.parquet").events())


def test_a_step_back_between_two_batches_is_seen(tmp_path: Path):
    write_table(payments_at([START_MS, START_MS + 2, START_MS + 1]), tmp_path / "payments.parquet")
    with pytest.raises(DatasetError, match="row 2 goes back in time"):
        list(Dataset(tmp_path / "payments.parquet").events(batch_rows=2))


def test_missing_and_foreign_files_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="no such file"):
        Dataset(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("payment_id,amount")
    with pytest.raises(DatasetError, match="not a Parquet file"):
        Dataset(tmp_path / "text.parquet")
