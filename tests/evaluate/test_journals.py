"""What an evaluation keeps, gives the same answers again; and what is damaged is told."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from stream.cli.journals import app
from stream.replay.journal_files import Head, JournalDamaged, JournalReader, JournalWriter, file_name
from stream.replay.rerun import CannotRerun, rerun
from stream.stages.stage import Record

HEAD = Head(topic="decisions", topic_id=b"t" * 16, partition=0, partitions=1, engine=1)


def _copy(journals: Path, to: Path) -> Path:
    shutil.copytree(journals, to)
    return to


def _rewrite(path: Path, change: Any) -> None:
    reader = JournalReader(path)
    records = [change(record) for record in reader.records()]
    with JournalWriter(path.parent, reader.head) as writer:
        writer.add(records)


@pytest.mark.parametrize("batch", [1_000, 7])
def test_the_same_journals_give_the_same_bytes(whole: Any, journals: Path, batch: int) -> None:
    found = rerun(journals, batch=batch)
    assert found.equal, found
    assert found.topics["decisions"].reproduced == whole.done.payments
    assert found.topics["control"].reproduced == whole.done.model_versions + whole.done.model_versions_held > 5


def test_one_changed_byte_of_an_answer_is_found(whole: Any, journals: Path, tmp_path: Path) -> None:
    damaged = _copy(journals, tmp_path / "j")

    def change(record: Record) -> Record:
        if record.offset != 4_711:
            return record
        return record._replace(value=(record.value or b"").replace(b'"verdict":"', b'"verdict" :"'))

    _rewrite(damaged / file_name("decisions", 0), change)
    found = rerun(damaged)
    assert not found.equal
    assert (found.topics["decisions"].differing, found.topics["decisions"].missing) == (1, 0)
    run = CliRunner().invoke(app, ["verify", str(damaged), "--json"])
    assert run.exit_code == 1
    assert msgspec.json.decode(run.stdout.splitlines()[-1])["topics"]["decisions"]["differing"] == 1


def test_a_damaged_journal_is_no_journal(tmp_path: Path) -> None:
    records = [Record(i, i, None, b"%d" % i, (("h", b"1"), ("none", None))) for i in range(1_000)]
    with JournalWriter(tmp_path, HEAD) as writer:
        writer.add(records[:10])
        writer.add(records[10:])
    assert list(JournalReader(writer.path).records()) == records
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JournalDamaged):
        list(JournalReader(writer.path).records())
    writer.path.write_bytes(b"PAR1" + whole)
    with pytest.raises(JournalDamaged):
        JournalReader(writer.path)


def test_a_journal_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, HEAD)
    writer.__enter__().add([Record(0, 0, None, b"x")])
    writer.__exit__(KeyboardInterrupt, None, None)
    with pytest.raises(JournalDamaged, match="ends before its end"):
        list(JournalReader(writer.path).records())


def test_what_can_not_be_applied_again_is_told(whole: Any, journals: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotRerun, match="no such directory"):
        rerun(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "empty")]).exit_code == 2
    late = _copy(journals, tmp_path / "late")
    reader = JournalReader(late / file_name("account-journal", 0))
    records = list(reader.records())
    with JournalWriter(late, msgspec.structs.replace(reader.head, first_offset=5)) as writer:
        writer.add(records[5:])
    with pytest.raises(CannotRerun, match="begins at offset 5"):
        rerun(late)
    newer = _copy(journals, tmp_path / "newer")
    with JournalWriter(newer, msgspec.structs.replace(reader.head, engine=99)) as writer:
        writer.add(records)
    with pytest.raises(CannotRerun, match="engine 99"):
        rerun(newer)
