"""A snapshot that does not fit on the disk, or cannot be read just when it is needed: real stores, real snapshots."""

import asyncio
import os
import resource
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from stream.runner.partition import no_crash
from stream.stages.stage import Journal, Record
from stream.stages.wiring import Partitions, build_stage
from stream.worker import app, room, snapshots
from stream.worker.app import Worker
from stream.worker.fetch import TP, FetchError
from stream.worker.host import Host, Status
from stream.worker.patience import Patience
from stream.worker.room import Room
from stream.worker.store import StoreFull, StoreMemory
from topics.journal import tick_block

AT = TP("account-journal", 0)
NEIGHBOUR = TP("account-journal", 1)
TOPIC_ID = b"t" * 16
ONE = Partitions(payments=1, account=2, terminal=1, decisions=1)
MS = 1_750_000_000_000
MB = 1 << 20
SNAPSHOT_BYTES = 24 * MB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FULL_RETRY_S", 0.05)
    monkeypatch.setattr(app, "OPEN_AGAIN_S", 0.05)
    monkeypatch.setattr(room, "RESERVE_BYTES", 4 * MB)


def _host(state_dir: Path, tp: TP = AT, *, internal: bool = True) -> Host:
    return Host(
        tp,
        Journal(tp.topic, TOPIC_ID, tp.partition),
        state_dir / tp.topic / str(tp.partition),
        memory=StoreMemory(),
        build=lambda journal, state: build_stage(journal, state, ONE, plain=True),
        internal=internal,
        gather=False,
        crash=no_crash,
    )


def _running(state_dir: Path, tp: TP = AT) -> Host:
    """A host over a real store, with one record applied."""
    host = _host(state_dir, tp)
    host.open_store()
    host.start(0, 0, set())
    host.status = Status.RUNNING
    assert host.step([Record(0, MS, None, tick_block(MS), ())], host.epoch) == []
    return host


class Fetching:
    """What the fetcher was told last, by partition: the offset that it reads from, None after a stop."""

    def __init__(self) -> None:
        self.offsets: dict[TP, int | None] = {}

    def start(self, tp: TP, offset: int, _epoch: int) -> None:
        self.offsets[tp] = offset

    def stop(self, tp: TP) -> None:
        self.offsets[tp] = None


def _worker(state_dir: Path, far: Path, *, low: int = 0) -> Worker:
    """A worker without a group; its log is [`low`, 9). A failure that would end the process is in `ended`."""
    worker = object.__new__(Worker)
    worker._crash = no_crash
    worker._tasks = set()
    worker._disk = ThreadPoolExecutor(app.DISK_THREADS)
    worker._store_calls = Patience(app.STORE_CALLS_MAX)
    worker._restores = Patience(app.RESTORES_MAX)
    worker._directories = defaultdict(asyncio.Lock)
    worker._checkpointing = asyncio.Lock()
    worker._room = Room(state_dir)
    worker._query = SimpleNamespace(get_watermark_offsets=lambda *_, **__: (low, 9))
    worker.hosts = {}
    worker.disk_full = False
    worker.snapshots_failing = {}
    worker.settings = SimpleNamespace(prefix="", snapshot_url=far.as_uri(), state_dir=state_dir)
    worker.topology = SimpleNamespace(current_ids=lambda: {AT.topic: TOPIC_ID})
    worker.control_log = SimpleNamespace(skips=lambda *_: set(), start_offset=lambda *_: 0)
    worker.ended = []

    async def committed(_tps: list[TP]) -> dict[TP, tuple[int, str]]:
        return {}

    worker.membership = SimpleNamespace(committed=committed, fail=worker.ended.append, fetcher=Fetching())
    return worker


async def _snapshot(worker: Worker, state_dir: Path, *, ballast_bytes: int = 0) -> None:
    """Of a store at offset 1, in the snapshot store."""
    host = _running(state_dir)
    worker._begin(host)
    assert await worker._write(host) is not None
    assert host.store is not None
    for number in range(ballast_bytes // MB):
        host.store.write([(b"\xf0%04d" % number, os.urandom(MB))], sync=False)
    await worker._snapshot(host, worker.settings.snapshot_url)
    host.close()


def _assign(worker: Worker, host: Host) -> None:
    worker.hosts[AT] = host
    worker._spawn(worker._open(AT, host))


async def _until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


# --- no room ----------------------------------------------------------------------------------------------------


def test_a_snapshot_that_does_not_fit_is_waited_for_with_nothing_written(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It was downloaded until the disk was full, again and again: no partition there had room for its checkpoint."""
    fetched: list[str] = []
    fetch = snapshots._fetch

    def counted(place, file, *rest) -> None:
        fetched.append(file.name)
        fetch(place, file, *rest)

    monkeypatch.setattr(snapshots, "_fetch", counted)

    async def scenario() -> None:
        worker = _worker(disk, tmp_path / "far")
        await _snapshot(worker, tmp_path / "source", ballast_bytes=SNAPSHOT_BYTES)
        neighbour = _running(disk, NEIGHBOUR)
        (disk / "others").write_bytes(bytes(44 * MB))  # leaves more than a checkpoint needs
        host = _host(disk)
        _assign(worker, host)
        await _until(lambda: host.failure or fetched)
        await asyncio.sleep(0.5)
        assert fetched == []
        assert host.status is Status.OPENING
        assert worker.disk_full
        assert "bytes are missing" in host.failure
        assert caplog.text.count("bytes are missing") == 1
        assert worker._room.missing_bytes(SNAPSHOT_BYTES) > 4 * MB
        worker._begin(neighbour)
        assert await worker._write(neighbour) is not None
        (disk / "others").unlink()
        await _until(lambda: host.status is Status.RUNNING)
        assert worker.membership.fetcher.offsets[AT] == 1
        assert fetched
        assert (host.failure, host.full, host.restore_bytes, host.pause_s) == ("", False, 0, 0.0)
        assert not worker.ended
        host.close()
        neighbour.close()

    asyncio.run(scenario())


def test_a_restore_for_which_there_only_seems_to_be_room_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A quota, or as here a limit of a file's size, does not show in the bytes that are free."""
    monkeypatch.setattr(app, "OPEN_AGAIN_S", 0.25)
    began_s: list[float] = []
    restore = app.restore

    def counted(*arguments, **settings) -> None:
        began_s.append(time.monotonic())
        restore(*arguments, **settings)

    monkeypatch.setattr(app, "restore", counted)

    async def scenario() -> None:
        (tmp_path / "state").mkdir()
        worker = _worker(tmp_path / "state", tmp_path / "far")
        await _snapshot(worker, tmp_path / "source", ballast_bytes=8 * MB)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        host = _host(tmp_path / "state")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MB, hard))
        try:
            _assign(worker, host)
            await _until(lambda: len(began_s) == 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert began_s[1] - began_s[0] > 0.25
        assert began_s[2] - began_s[1] > 0.5
        await _until(lambda: host.status is Status.RUNNING)
        assert host.pause_s == 0.0
        host.close()

    asyncio.run(scenario())


def test_no_room_for_a_directory_is_waited_for_at_the_assignment(tmp_path: Path, disk: Path):
    """Nothing is below the state directory yet, so that only itself can be asked for its room."""

    async def scenario() -> None:
        subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(disk)], check=True)
        (disk / "other").write_bytes(b"")
        worker = _worker(disk, tmp_path / "far")
        host = _host(disk)
        _assign(worker, host)
        await _until(lambda: host.failure or worker.ended)
        assert not worker.ended
        assert "waits for room" in host.failure
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(disk)], check=True)
        await _until(lambda: host.status is Status.RUNNING)
        host.close()

    asyncio.run(scenario())


def test_restores_under_way_are_counted_until_they_have_written(disk: Path):
    room = Room(disk)
    free_bytes = room.free_bytes()
    with room.promised(46 * MB) as wrote:
        assert room.missing_bytes(20 * MB) == 70 * MB - free_bytes
        with pytest.raises(StoreFull, match=f"{70 * MB - free_bytes} bytes are missing"), room.promised(20 * MB):
            pass
        (disk / "restored").write_bytes(bytes(46 * MB))
        wrote(46 * MB)
        assert room.missing_bytes(20 * MB) == 70 * MB - free_bytes  # once, not twice
        assert room.missing_bytes(10 * MB) == 0
    (disk / "restored").unlink()
    assert room.missing_bytes(40 * MB) == 0


# --- snapshots that cannot be read ------------------------------------------------------------------------------


def _hide(far: Path) -> None:
    far.rename(far.with_name("hidden"))
    far.write_text("a file where a directory should be")


def _show(far: Path) -> None:
    far.unlink()
    far.with_name("hidden").rename(far)


async def _without_snapshots(tmp_path: Path, *, low: int, internal: bool = True) -> tuple[Worker, Host, Path]:
    """A worker that has just been given a partition, while the place of its snapshots, one at offset 1, is hidden."""
    state_dir, far = tmp_path / "state", tmp_path / "far"
    state_dir.mkdir()
    worker = _worker(state_dir, far, low=low)
    await _snapshot(worker, tmp_path / "source")
    _hide(far)
    host = _host(state_dir, internal=internal)
    _assign(worker, host)
    return worker, host, far


def test_a_partition_that_needs_its_snapshots_waits_until_they_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """It stopped for good, although the store of snapshots was back a minute later."""

    async def scenario() -> None:
        worker, host, far = await _without_snapshots(tmp_path, low=1)
        await _until(lambda: caplog.text.count("waits for its snapshots") >= 2 or host.status is Status.STOPPED)
        assert host.status is Status.OPENING
        assert not worker.disk_full
        await _until(lambda: "the log begins at 1" in host.failure)
        _show(far)
        await _until(lambda: host.status is Status.RUNNING)
        assert worker.membership.fetcher.offsets[AT] == 1
        assert (host.failure, host.snapshots_unread, host.pause_s) == ("", "", 0.0)
        host.close()

    asyncio.run(scenario())


def test_a_log_of_others_that_is_out_of_range_is_waited_for_too(tmp_path: Path):
    """Where the first offsets of a log are not ours, only the fetcher can say so."""

    async def scenario() -> None:
        worker, host, far = await _without_snapshots(tmp_path, low=1, internal=False)
        await _until(lambda: host.status is Status.RUNNING)
        assert worker.membership.fetcher.offsets[AT] == 0
        out_of_range = FetchError(AT, host.epoch, "offset_out_of_range", "no such offset")
        worker._fetch_error(out_of_range)
        assert host.status is Status.OPENING
        assert worker.membership.fetcher.offsets[AT] is None
        pauses = len(worker._tasks)
        worker._fetch_error(out_of_range)  # said twice
        assert len(worker._tasks) == pauses
        _show(far)
        await _until(lambda: host.status is Status.RUNNING)
        assert worker.membership.fetcher.offsets[AT] == 1
        worker._fetch_error(FetchError(AT, host.epoch, "offset_out_of_range", "no such offset"))
        assert host.status is Status.STOPPED  # snapshots were read, and none reaches the log
        host.close()

    asyncio.run(scenario())


def test_snapshots_that_were_read_and_do_not_reach_the_log_stop_the_partition(tmp_path: Path):
    async def scenario() -> None:
        _, host, far = await _without_snapshots(tmp_path, low=2)
        await _until(lambda: host.failure)
        assert host.status is Status.OPENING
        _show(far)
        await _until(lambda: host.status is Status.STOPPED)
        assert "the log begins at 2" in host.failure
        host.close()

    asyncio.run(scenario())


def test_the_pause_grows_to_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "OPEN_AGAIN_S", 2.0)
    host = _host(tmp_path)
    assert [app._longer_s(host) for _ in range(7)] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
