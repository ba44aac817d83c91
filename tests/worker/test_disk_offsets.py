"""What the disk is known to hold before a store is opened: true, or nothing."""

from pathlib import Path

import pytest

from stream.worker.disk_offsets import FILE, DiskOffsets
from stream.worker.fetch import TP

IDS = {"a": bytes(16), "b": bytes(15) + b"\x01"}
HELD = {TP("a", 0): 100, TP("a", 11): 5, TP("b", 0): 1 << 40}


def written(directory: Path) -> DiskOffsets:
    offsets = DiskOffsets(directory, IDS)
    for tp, offset in HELD.items():
        offsets.note(tp, offset)
        store = directory / tp.topic / str(tp.partition)
        store.mkdir(parents=True, exist_ok=True)
        (store / "CURRENT").touch()
    offsets.write(offsets.encoded())
    return offsets


def read(directory: Path, ids: dict[str, bytes] = IDS) -> dict[TP, int]:
    offsets = DiskOffsets(directory, ids)
    offsets.read()
    return offsets.known()


def test_what_one_process_notes_the_next_one_knows(tmp_path: Path):
    offsets = written(tmp_path)
    assert read(tmp_path) == HELD
    offsets.note(TP("a", 0), 101)
    offsets.note(TP("b", 0), -1)  # its store was set aside
    offsets.write(offsets.encoded())
    assert read(tmp_path) == {TP("a", 0): 101, TP("a", 11): 5}


def test_a_first_start_knows_nothing(tmp_path: Path):
    assert read(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a":{"id":1}}', b'{"a":{"id":"","offsets":{"x":1}}}', b"\xff"])
def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path, content: bytes):
    written(tmp_path)
    (tmp_path / FILE).write_bytes(content)
    assert read(tmp_path) == {}


def test_of_a_topic_made_again_or_a_store_that_is_gone_nothing_is_known(tmp_path: Path):
    written(tmp_path)
    assert read(tmp_path, {"a": b"another".ljust(16), "b": IDS["b"]}) == {TP("b", 0): 1 << 40}
    (tmp_path / "a" / "0" / "CURRENT").unlink()
    assert read(tmp_path) == {TP("a", 11): 5, TP("b", 0): 1 << 40}


def test_a_disk_that_takes_nothing_leaves_what_was_there(tmp_path: Path):
    offsets = written(tmp_path)
    (tmp_path / "offsets.new").mkdir()  # stands for a full disk: the new file cannot be written
    offsets.note(TP("a", 0), 999)
    offsets.write(offsets.encoded())
    assert read(tmp_path) == HELD
