"""The exported training set is what decided, to the bit, with truth as it was known at the cut-off."""

import base64
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from msgspec import structs
from typer.testing import CliRunner

from stream.cli.examples import app
from stream.dataset import Dataset, write_dataset
from stream.errors import InternalError
from stream.evaluate.prequential import Prequential
from stream.evaluate.settings import Evaluation
from stream.features import MODEL_NAMES
from stream.replay.journal_files import Head, JournalWriter
from stream.replay.training_set import FEATURE_PREFIX, ForeignFeatures, examples_of, known_by, write_training_set
from stream.simulate import SHORT_DELAY, SimulationSettings, simulate
from stream.stages.answers import DETAILS
from stream.stages.control import CONTROL
from stream.stages.keys import payment_hash
from stream.stages.stage import Record
from stream.stages.terminal import EXAMPLES
from topics.journal import (
    EXAMPLE_CORRECTED,
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    Block,
    Example,
    encode_block,
)
from topics.limits import DAY_MS

DAYS = 10
START_MS = 1_735_689_600_000
WIDTH = 4 * len(MODEL_NAMES)


class Run(NamedTuple):
    """`features`: by payment, as its decision's details carry them."""

    features: dict[bytes, bytes]
    examples: list[Record]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = SimulationSettings(
        seed=3, accounts=80, terminals=30, days=DAYS, payments_per_day=250.0, fraud_rate=0.05,
        label_delay=SHORT_DELAY, start_ms=START_MS,
    )  # fmt: skip
    paths = write_dataset(tmp_path_factory.mktemp("run"), simulate(settings).tables())
    got = Run({}, [])

    def read(topic: str, records: Any) -> None:
        if topic == EXAMPLES:
            got.examples.extend(records)
            return
        for record in records:
            details = msgspec.json.decode(record.value)
            d = details["decision"]
            pid = payment_hash(d["tenant_id"], d["account_id"], d["payment_id"])
            got.features[pid] = base64.b64decode(details["features"])

    way = Prequential(Evaluation(maturity_ms=3 * DAY_MS, base_currency="EUR"), read=read, topics=(DETAILS, EXAMPLES))
    for events in Dataset(paths["payments"], paths["labels"], paths["updates"]).event_batches(clock_every_ms=3_600_000):
        way.feed(events)
    way.finish()
    return got


def _journal(directory: Path, records: list[Record]) -> Path:
    for topic, kept in ((EXAMPLES, records), (CONTROL, [])):
        head = Head(topic=topic, topic_id=topic[:1].encode() * 16, partition=0, partitions=1, engine=1)
        with JournalWriter(directory, head) as writer:
            writer.add(kept)
    return directory


def test_features_are_those_of_the_details_to_the_bit(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    ran = CliRunner().invoke(app, [str(out), "--journals", str(_journal(tmp_path, run.examples)), "--json"])
    assert ran.exit_code == 0, ran.output
    table = pq.read_table(out)
    assert msgspec.json.decode(ran.stdout.splitlines()[-1])["rows"] == table.num_rows > 300
    columns = [table.column(FEATURE_PREFIX + name).to_numpy() for name in MODEL_NAMES]
    features = np.stack(columns, axis=1).astype(np.float32, copy=False)
    for i, pid in enumerate(table.column("payment").to_pylist()):
        assert features[i].tobytes() == run.features[pid]
    kinds = table.column("kind").to_pylist()
    assert set(kinds) >= {"labelled", "matured", "unlabelled"}
    assert len(set(table.column("payment").to_pylist())) == table.num_rows
    assert [f is None for f in table.column("fraud").to_pylist()] == [kind == "unlabelled" for kind in kinds]


def test_a_cut_off_knows_nothing_of_later_truth(run: Run, tmp_path: Path) -> None:
    until_ms = START_MS + 7 * DAY_MS
    directory = str(_journal(tmp_path, run.examples))
    for name, more in (("all", []), ("early", ["--until", "2025-01-08"])):
        assert CliRunner().invoke(app, [str(tmp_path / name), "--journals", directory, *more]).exit_code == 0
    early, whole = pq.read_table(tmp_path / "early").to_pylist(), pq.read_table(tmp_path / "all").to_pylist()
    assert 0 < len(early) < len(whole)
    assert all((row["observed_at"] or row["event_time"]) <= until_ms for row in early)


def _example(n: int, kind: int, pid: bytes, observed_ms: int, fraud: bool, features: bytes = bytes(WIDTH)) -> Example:
    return Example(n, 0, kind, pid * 16, 5, observed_ms, fraud, 1.0, features)


def _record(offset: int, prev: tuple[int, int], *items: Example) -> Record:
    return Record(offset, 0, None, encode_block(Block(sender=b"s" * 16, partition=0, prev=prev, items=list(items))))


def test_resent_items_come_once_and_none_goes_before_a_gap_is_filled() -> None:
    a, b, c = (_example(n, EXAMPLE_LABELLED, bytes([n]), 10 + n, True) for n in (1, 2, 3))
    records = [
        _record(0, (-1, -1), a),
        _record(1, (2, 0), c),  # b is missing
        _record(2, (-1, -1), a, b),
        _record(3, (1, 0), b, c),
    ]
    assert list(examples_of(records)) == [a, b, c]


def test_what_an_operator_skipped_was_not_taught() -> None:
    a, b, c = (_example(n, EXAMPLE_LABELLED, bytes([n]), 10 + n, True) for n in (1, 2, 3))
    junk = Record(1, 0, None, b"junk")
    records = [_record(0, (-1, -1), a), junk, _record(2, (1, 0), b), _record(3, (2, 0), c)]
    assert list(examples_of(records, {1, 2})) == [a, c]
    with pytest.raises(InternalError, match="@1"):
        list(examples_of(records))


def test_the_latest_truth_up_to_the_cut_off_counts() -> None:
    seen = _example(1, EXAMPLE_UNLABELLED, b"p", 0, False)
    silent = _example(2, EXAMPLE_MATURED, b"p", 20, False)
    late = _example(3, EXAMPLE_CORRECTED, b"p", 30, True)
    history = [seen, silent, late]
    assert known_by(history) == ([late], 2)
    assert known_by(history, 29) == ([silent], 1)
    assert known_by(history, 19) == ([seen], 0)
    assert known_by(history, 4) == ([], 0)


def test_silence_that_taught_in_two_parts_is_one_example_of_both_weights() -> None:
    parts = [
        structs.replace(_example(n, EXAMPLE_MATURED, b"p", 10 * n, False), weight=w) for n, w in ((1, 0.25), (2, 0.75))
    ]
    (whole,), superseded = known_by(parts)
    assert (whole.weight, whole.observed_ms, superseded) == (1.0, 20, 0)
    assert known_by(parts, 19) == ([parts[0]], 0)


def test_features_of_another_release_are_refused(tmp_path: Path) -> None:
    foreign = _record(0, (-1, -1), _example(1, EXAMPLE_LABELLED, b"p", 20, True, bytes(WIDTH - 4)))
    with pytest.raises(ForeignFeatures, match="export with the release"):
        write_training_set([foreign], tmp_path / "t.parquet")
