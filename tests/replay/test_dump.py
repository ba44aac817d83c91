"""A dump holds all that a deployment said, details included, and is never written over."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stream.replay.dump import ORDER, DirectoryTaken, Place, dump, places
from stream.replay.journal_files import JournalReader, JournalWriter, file_name
from stream.replay.local import Local
from stream.replay.log import LocalLog, local_topic_id
from stream.replay.rerun import rerun
from stream.stages.stage import Record
from stream.stages.wiring import Partitions

PAYMENTS = 40
BAD = (b"{", b"")
MS = 1_750_000_000_000


@pytest.fixture(scope="module")
def log() -> LocalLog:
    """What a small deployment without compiled kernels has written."""
    log = LocalLog()
    local = Local(log, Partitions(payments=1, account=1, terminal=1, decisions=1), plain=True)
    local.now_ms = MS
    values = [
        msgspec.json.encode(
            {
                "payment_id": f"p{n}",
                "event_time": MS + n,
                "account_id": f"a{n % 5}",
                "amount": 100 + n,
                "currency": "EUR",
                "terminal_id": f"t{n % 3}",
            }
        )
        for n in range(PAYMENTS)
    ]
    for value in (*values, *BAD):
        log.append("payments", 0, value, at_ms=MS)
    local.pump()
    local.tick()
    local.pump()
    return log


def _places(log: LocalLog) -> list[Place]:
    ids = {topic: local_topic_id(topic) for topic in ORDER}
    return places(ids, "", lambda topic: {0: (0, log.end(topic, 0))})


def _dump(log: LocalLog, directory: Path) -> int:
    def read(topic: str, partition: int, low: int, high: int) -> Iterator[list[Record]]:
        yield log.read(topic, partition, low, high - low)

    return dump(read, _places(log), directory)


def test_details_are_dumped_and_held_against_the_rerun(log: LocalLog, tmp_path: Path) -> None:
    _dump(log, tmp_path)
    found = rerun(tmp_path, plain=True)
    assert found.equal, found
    assert found.topics["decisions"].reproduced == PAYMENTS + len(BAD)
    assert found.topics["decision-details"].reproduced == PAYMENTS


def test_a_changed_detail_is_found(log: LocalLog, tmp_path: Path) -> None:
    _dump(log, tmp_path)
    reader = JournalReader(tmp_path / file_name("decision-details", 0))
    records = list(reader.records())
    records[3] = records[3]._replace(value=(records[3].value or b"").replace(b'"features":"', b'"features":"A'))
    with JournalWriter(tmp_path, reader.head) as writer:
        writer.add(records)
    found = rerun(tmp_path, plain=True)
    assert not found.equal
    assert (found.topics["decision-details"].missing, found.topics["decision-details"].unexpected) == (1, 1)
    assert found.topics["decisions"].equal


def test_a_dump_of_before_has_no_details_and_is_verified_as_it_is(log: LocalLog, tmp_path: Path) -> None:
    _dump(log, tmp_path)
    (tmp_path / file_name("decision-details", 0)).unlink()
    found = rerun(tmp_path, plain=True)
    assert found.equal
    assert "decision-details" not in found.topics


def test_a_directory_with_journals_is_left_as_it_is(log: LocalLog, tmp_path: Path) -> None:
    _dump(log, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DirectoryTaken, match="Operator: give each dump a directory of its own"):
        _dump(log, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
