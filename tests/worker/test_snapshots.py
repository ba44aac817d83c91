import hashlib
import os
import shutil
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.stages.state import HIGHEST
from stream.worker import room as room_module
from stream.worker import snapshots
from stream.worker.room import Room
from stream.worker.snapshots import (
    DAY_MS,
    GRACE_MS,
    HOUR_MS,
    Manifest,
    SnapshotTorn,
    SnapshotUnavailable,
    decode_manifest,
    latest,
    restore,
    thin,
    upload,
    whole,
)
from stream.worker.store import RocksStore, StoreCorrupt, StoreFull, StoreMemory

NOW_MS = 1_800_000_000_000
TOPIC = "0b" * 16


def opened(directory: Path) -> RocksStore:
    return RocksStore.open(directory, memory=StoreMemory(16 << 20, 8 << 20))


def take(
    store: RocksStore, url: str, offset: int, *, now_ms: int = NOW_MS, topic_id: str = TOPIC, partition: int = 3
) -> Manifest:
    return upload(
        store, url, stage="account", partition=partition, offset=offset, topic_id=topic_id, engine="e1",
        now_ms=now_ms, meta={"epoch": "7"},
    )  # fmt: skip


def put(store: RocksStore, number: int) -> None:
    """A batch whose state names it, in two files at least."""
    store.write([(b"at", b"%d" % number), (b"key%d" % number, os.urandom(100))], sync=False)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/snapshots"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "snapshots" / "account" / "3"


def state_of(url: str, manifest: Manifest, directory: Path) -> dict[bytes, bytes]:
    restore(url, manifest, directory)
    with opened(directory) as store:
        return dict(store.scan(b"", HIGHEST, 1000))


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_restored_store_is_the_one_that_was_uploaded(tmp_path: Path, where: str):
    url = f"file://{tmp_path}/snapshots" if where == "file" else f"memory://{tmp_path.name}"
    with opened(tmp_path / "s") as store:
        assert latest(url, "account", 3) is None
        put(store, 1)
        assert take(store, url, 10).offset == 10
        put(store, 2)
        then = dict(store.scan(b"", HIGHEST, 1000))
        made = take(store, url, 20)
        put(store, 3)
    found = latest(url, "account", 3)
    assert found == made
    assert (found.topic_id, found.engine, found.created_ms, found.meta) == (TOPIC, "e1", NOW_MS, {"epoch": "7"})
    assert latest(url, "account", 4) is None
    assert latest(url, "terminal", 3) is None
    assert state_of(url, found, tmp_path / "restored") == then
    assert not list(tmp_path.glob("*.checkpoint-*"))
    assert not list(tmp_path.glob("*.restoring-*"))
    with opened(tmp_path / "restored") as store:
        assert store.batches == 2
        put(store, 3)
        assert take(store, url, 30).offset == 30


def test_only_new_files_are_uploaded_and_none_is_written_twice(tmp_path: Path, url: str, place: Path):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        take(store, url, 10)
        before = {path.name: path.stat().st_mtime_ns for path in (place / "files").iterdir()}
        put(store, 2)
        take(store, url, 20)
    after = {path.name: path.stat().st_mtime_ns for path in (place / "files").iterdir()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    for path in (place / "files").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("damage", ["cut manifest", "flipped manifest", "empty manifest", "no file", "short file"])
def test_a_torn_snapshot_is_never_used(tmp_path: Path, url: str, place: Path, damage: str):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        first = take(store, url, 10)
        old = set((place / "files").iterdir())
        put(store, 2)
        take(store, url, 20)
    manifest = max((place / "manifests").iterdir())
    [file] = set((place / "files").iterdir()) - old
    body = manifest.read_bytes()
    match damage:
        case "cut manifest":
            manifest.write_bytes(body[:-5])
        case "flipped manifest":
            manifest.write_bytes(body.replace(b'"offset":20', b'"offset":21'))
        case "empty manifest":
            manifest.write_bytes(b"")
        case "no file":
            file.unlink()
        case _:
            os.truncate(file, file.stat().st_size - 1)
    assert latest(url, "account", 3) == first
    assert list(whole(url, "account", 3)) == [first]


def test_a_flipped_byte_in_a_file_is_found_by_the_restore(tmp_path: Path, url: str, place: Path):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        first = take(store, url, 10)
        old = set((place / "files").iterdir())
        put(store, 2)
        second = take(store, url, 20)
    [file] = set((place / "files").iterdir()) - old
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert latest(url, "account", 3) == second  # its size is right: only reading it tells
    with pytest.raises(SnapshotTorn):
        restore(url, second, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "snapshots"]
    assert state_of(url, first, tmp_path / "restored")[b"at"] == b"1"


def test_a_restore_that_does_not_fit_writes_nothing(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        made = take(store, url, 10)
    room = Room(tmp_path)
    (tmp_path / "r.restoring-dead").mkdir()  # of a process that died: goes before room is asked for
    monkeypatch.setattr(room_module, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StoreFull, match=f"a snapshot of {made.size_bytes} bytes"):
        restore(url, made, tmp_path / "r", room=room)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "snapshots"]
    monkeypatch.setattr(room_module, "RESERVE_BYTES", 0)
    restore(url, made, tmp_path / "r", room=room)
    assert sum(path.stat().st_size for path in (tmp_path / "r").iterdir()) == made.size_bytes


def test_a_restore_never_overwrites(tmp_path: Path, url: str):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        made = take(store, url, 10)
    with pytest.raises(FileExistsError):
        restore(url, made, tmp_path / "s")


def test_snapshots_of_a_topic_made_again_do_not_hide_the_new_ones(tmp_path: Path, url: str):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        take(store, url, 1_000_000)
        new = take(store, url, 5, topic_id="0c" * 16)
    assert latest(url, "account", 3, topic_id="0c" * 16) == new
    assert latest(url, "account", 3, topic_id="0d" * 16) is None


def test_two_uploaders_at_once_do_no_harm(tmp_path: Path, url: str):
    """A zombie uploads older offsets, and the same ones, while the owner goes on."""

    def run(name: str, offsets: range) -> None:
        with opened(tmp_path / name) as store:
            for offset in offsets:
                put(store, offset)
                take(store, url, offset)

    threads = [
        threading.Thread(target=run, args=("s1", range(1, 12))),
        threading.Thread(target=run, args=("s2", range(4, 16))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(whole(url, "account", 3))
    assert [manifest.offset for manifest in found] == sorted([*range(1, 12), *range(4, 16)], reverse=True)
    for i, manifest in enumerate(found):
        assert state_of(url, manifest, tmp_path / f"r{i}")[b"at"] == b"%d" % manifest.offset


def test_uploads_that_died_leave_nothing_that_counts(
    tmp_path: Path, url: str, place: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        first = take(store, url, 10)
        put(store, 2)

        def dies(*_: object) -> None:
            raise OSError("the store went away")

        monkeypatch.setattr(snapshots._Place, "_put", lambda *_: dies())
        with pytest.raises(SnapshotUnavailable):
            take(store, url, 20)
        monkeypatch.undo()
        assert latest(url, "account", 3) == first
        (place / "files" / ("ab" * 32 + ".1234.part")).write_bytes(b"half")
        assert take(store, url, 20) == latest(url, "account", 3)


def test_a_store_of_snapshots_that_is_away_has_a_name(tmp_path: Path):
    (tmp_path / "snapshots").write_text("a file, where a folder should be")
    url = f"file://{tmp_path}/snapshots"
    with opened(tmp_path / "s") as store:
        put(store, 1)
        with pytest.raises(SnapshotUnavailable):
            take(store, url, 10)
        put(store, 2)  # goes on
    for ask in (lambda: latest(url, "account", 3), lambda: thin(url, "account", 3, now_ms=NOW_MS)):
        with pytest.raises(SnapshotUnavailable):
            ask()
    with pytest.raises(SnapshotUnavailable):
        latest("nosuchprotocol://x", "account", 3)


def test_a_snapshot_of_a_store_damaged_before_is_found_when_read_and_the_one_before_is_good(tmp_path: Path, url: str):
    store = opened(tmp_path / "s")
    put(store, 1)
    take(store, url, 10)
    put(store, 2)
    store.flush()
    sst = max((tmp_path / "s").glob("*.sst"))
    content = bytearray(sst.read_bytes())
    content[5] ^= 1
    sst.write_bytes(content)
    take(store, url, 20)
    store.close()
    for number, manifest in enumerate(whole(url, "account", 3)):
        restore(url, manifest, tmp_path / f"r{number}")
        try:
            with opened(tmp_path / f"r{number}") as restored:
                restored.verify()
                assert manifest.offset == 10
                return
        except StoreCorrupt:
            assert manifest.offset == 20
    pytest.fail("no snapshot could be read")


# --- manifests are foreign bytes --------------------------------------------------------------------------------


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a\x00", "/etc/passwd", "x" * 200])
def test_a_manifest_cannot_write_elsewhere(name: str):
    body = msgspec.json.encode(
        {"layout": 1, "stage": "account", "partition": 3, "topic_id": TOPIC, "offset": 1, "engine": "e",
         "created_ms": 1, "files": [{"name": name, "size": 1, "sha256": "0" * 64}]}
    )  # fmt: skip
    with pytest.raises(SnapshotTorn):
        decode_manifest(body, digest(body), "account", 3)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_as_a_manifest_are_torn(body: bytes):
    with pytest.raises(SnapshotTorn):
        decode_manifest(body, digest(body), "account", 3)
    with pytest.raises(SnapshotTorn):
        decode_manifest(body, "0" * 64, "account", 3)


def test_deep_nesting_is_torn():
    body = b'{"files":' + b"[" * 1_000_000
    with pytest.raises(SnapshotTorn):
        decode_manifest(body, digest(body), "account", 3)


# --- thinning ---------------------------------------------------------------------------------------------------


def age_files(place: Path, now_ms: int) -> None:
    """Files are as old as the manifest that was written with them, not as old as this test."""
    for path in (place / "manifests").iterdir():
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        for aged in (path, *(place / "files" / file.sha256 for file in manifest.files if file.inline is None)):
            if aged.stat().st_mtime * 1000 > manifest.created_ms or aged.stat().st_mtime * 1000 < now_ms - 400 * DAY_MS:
                os.utime(aged, (manifest.created_ms / 1000, manifest.created_ms / 1000))


def test_thinned_to_hourly_after_a_day_and_daily_after_a_week(tmp_path: Path, url: str, place: Path):
    start_ms = NOW_MS - NOW_MS % DAY_MS
    steps_ms = [*range(0, 40 * DAY_MS, 6 * HOUR_MS), *range(40 * DAY_MS, 44 * DAY_MS, 20 * 60_000)]
    with opened(tmp_path / "s") as store:
        put(store, 1)
        manifest = take(store, url, 0, now_ms=start_ms)
    [path] = (place / "manifests").iterdir()
    path.unlink()
    for offset, after_ms in enumerate(steps_ms):  # by hand: hundreds of uploads are slow
        body = msgspec.json.encode(msgspec.structs.replace(manifest, offset=offset, created_ms=start_ms + after_ms))
        (place / "manifests" / f"{offset:020d}-{start_ms + after_ms:015d}-{digest(body)}.json").write_bytes(body)
    now_ms = start_ms + steps_ms[-1]
    done = thin(url, "account", 3, now_ms=now_ms)
    kept = list(whole(url, "account", 3))
    assert done.kept == len(kept) < len(steps_ms)
    assert done.files_removed == 0
    ages_ms = [now_ms - one.created_ms for one in kept]
    assert sum(age < DAY_MS for age in ages_ms) == 72
    hours = [one.created_ms // HOUR_MS for one in kept if DAY_MS <= now_ms - one.created_ms < 7 * DAY_MS]
    assert len(hours) == len(set(hours)) >= 72
    days = [one.created_ms // DAY_MS for one in kept if now_ms - one.created_ms >= 7 * DAY_MS]
    assert len(days) == len(set(days)) == 28
    assert max(ages_ms) < 35 * DAY_MS
    assert kept[0].offset == len(steps_ms) - 1
    assert thin(url, "account", 3, now_ms=now_ms).removed == 0
    # The owner is gone for a year: the newest two stay.
    assert thin(url, "account", 3, now_ms=now_ms + 365 * DAY_MS).kept == 2
    assert [one.offset for one in whole(url, "account", 3)] == [len(steps_ms) - 1, len(steps_ms) - 2]


def test_files_are_collected_a_pass_after_their_last_manifest_and_what_is_young_stays(
    tmp_path: Path, url: str, place: Path
):
    with opened(tmp_path / "s") as store:
        for day in range(4):  # of these, 40 days old, all but the newest two go
            store.write([(b"key%d" % day, os.urandom(1000))], [], [(b"", b"\xff")], sync=False)
            take(store, url, day, now_ms=NOW_MS - (40 - day) * DAY_MS)
            age_files(place, NOW_MS)
        (place / "files" / ("ab" * 32)).write_bytes(b"of an upload under way")
        os.utime(place / "files" / ("ab" * 32), (NOW_MS / 1000, NOW_MS / 1000))
        count = len(list((place / "files").iterdir()))
        first = thin(url, "account", 3, now_ms=NOW_MS)
        assert (first.kept, first.removed, first.files_removed) == (2, 2, 0)
        second = thin(url, "account", 3, now_ms=NOW_MS + HOUR_MS)
        left = {path.name for path in (place / "files").iterdir()}
        needed = {file.sha256 for one in whole(url, "account", 3) for file in one.files if file.inline is None}
        assert left == needed | {"ab" * 32}
        assert second.files_removed == count - len(left)
        assert thin(url, "account", 3, now_ms=NOW_MS + GRACE_MS).files_removed == 1
        for number, manifest in enumerate(whole(url, "account", 3)):
            assert b"key%d" % manifest.offset in state_of(url, manifest, tmp_path / f"r{number}")


def test_a_file_collected_under_an_uploader_is_sent_again(
    tmp_path: Path, url: str, place: Path, monkeypatch: pytest.MonkeyPatch
):
    """It found the file there, then a `thin` took it, then it wrote its manifest: it looks once more."""
    with opened(tmp_path / "s") as store:
        put(store, 1)
        take(store, url, 10)
        put_bytes = snapshots._Place.put_bytes

        def thinned_meanwhile(self: snapshots._Place, body: bytes, name: str) -> None:
            shutil.rmtree(place / "files")
            put_bytes(self, body, name)

        monkeypatch.setattr(snapshots._Place, "put_bytes", thinned_meanwhile)
        made = take(store, url, 20)
    assert latest(url, "account", 3) == made
    assert state_of(url, made, tmp_path / "r")[b"at"] == b"1"


def test_torn_manifests_go_after_the_grace_and_do_not_hold_files(tmp_path: Path, url: str, place: Path):
    with opened(tmp_path / "s") as store:
        put(store, 1)
        take(store, url, 10)
    [path] = (place / "manifests").iterdir()
    path.write_bytes(b"{")
    os.utime(path, (NOW_MS / 1000, NOW_MS / 1000))
    assert thin(url, "account", 3, now_ms=NOW_MS + GRACE_MS - 1).removed == 0
    assert thin(url, "account", 3, now_ms=NOW_MS + GRACE_MS).removed == 1
