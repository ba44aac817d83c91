"""What a worker does when whoever waits gives up, a partition is taken away, or a broker has only just come back."""

import asyncio
import contextlib
import resource
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream.errors import StateError
from stream.runner.errors import StepFailed
from stream.runner.partition import no_crash
from stream.stages.stage import Journal, Record
from stream.stages.wiring import Partitions, build_stage
from stream.worker import app
from stream.worker.app import Worker
from stream.worker.fetch import TP, Fetcher, FetchError, FetchSettings
from stream.worker.host import Host, Status
from stream.worker.membership import MembershipSettings, create_app
from stream.worker.patience import Patience
from stream.worker.room import Room
from stream.worker.snapshots import SnapshotUnavailable
from stream.worker.store import RocksStore, StoreMemory, StoreStuck
from stream.worker.uninterrupted import to_its_end
from topics.journal import tick_block

AT = TP("account-journal", 0)
ONE = Partitions(payments=1, account=1, terminal=1, decisions=1)
MS = 1_750_000_000_000


def _host(directory: Path) -> Host:
    return Host(
        AT,
        Journal("account-journal", b"t" * 16, 0),
        directory,
        memory=StoreMemory(),
        build=lambda journal, state: build_stage(journal, state, ONE),
        internal=True,
        gather=False,
        crash=no_crash,
    )


def _running(directory: Path) -> Host:
    """A host over a real store, with one record applied."""
    host = _host(directory)
    host.open_store()
    host.start(0, 0, set())
    host.status = Status.RUNNING
    assert host.step([Record(0, MS, None, tick_block(MS), ())], host.epoch) == []
    return host


def _worker(**parts: object) -> Worker:
    """A worker without a group: only the parts that a test needs."""
    worker = object.__new__(Worker)
    worker._crash = no_crash
    worker._tasks = set()
    worker._timers = []
    worker.membership = SimpleNamespace(leaving=False, fetcher=SimpleNamespace(stop=lambda _: None))
    worker.snapshots_failing = {}
    worker._disk = ThreadPoolExecutor(app.DISK_THREADS)
    worker._store_calls = Patience(app.STORE_CALLS_MAX)
    worker._restores = Patience(app.RESTORES_MAX)
    worker._room = Room(Path(tempfile.gettempdir()))
    worker.hosts = {}
    worker.settings = SimpleNamespace(prefix="")
    for name, part in parts.items():
        setattr(worker, name, part)
    return worker


async def _until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_work_goes_on_to_its_end_with_its_lock_when_nobody_waits_any_more():
    async def scenario() -> None:
        lock, go_on, done = asyncio.Lock(), asyncio.Event(), []

        async def work() -> None:
            async with lock:
                await go_on.wait()
                done.append(True)

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await to_its_end(work())
        assert lock.locked()
        go_on.set()
        async with lock:
            assert done == [True]

    asyncio.run(scenario())


def test_a_write_that_a_hold_no_longer_waits_for_is_told_and_keeps_the_next_one_away(tmp_path):
    """Else a later checkpoint could be written before it, and this one over that."""

    async def scenario() -> None:
        host = _running(tmp_path / "0")
        worker = _worker()
        store, runner = host.store, host.runner
        assert store is not None
        assert runner is not None
        worker._begin(host)
        slow = threading.Lock()
        slow.acquire()
        write = store.write_changes

        def slowly(*args, **settings) -> None:
            with slow:
                write(*args, **settings)

        store.write_changes = slowly
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await worker._checkpoint([host], 1.0)
        again = asyncio.create_task(worker._write(host))
        await asyncio.sleep(0.05)
        assert store.batches == 0
        assert not again.done()
        slow.release()
        assert await again is None  # the first has done it
        assert store.batches == 1
        assert host.checkpoint is None
        assert host.written_offset == 1
        assert host.unsettled, "nobody has committed it: the next checkpoint must"
        host.close()

    asyncio.run(scenario())


def test_what_is_checkpointed_and_not_committed_is_committed_by_the_next(tmp_path):
    async def scenario() -> None:
        host = _running(tmp_path / "0")
        committed: list[dict] = []
        refuse = [True]

        async def commit(offsets) -> None:
            if refuse.pop() if refuse else False:
                raise app.CommitFenced("the group is changing")
            committed.append(offsets)

        worker = _worker(
            membership=SimpleNamespace(commit=commit),
            _disk_offsets=SimpleNamespace(note=lambda *_: None, encoded=lambda: b"", write=lambda _: None),
            disk_full=False,
            checkpoints=0,
            checkpoint_seconds=[],
        )
        with pytest.raises(app.CommitFenced):
            await worker._checkpoint([host], 1.0)
        assert host.unsettled
        await worker._checkpoint([host], 1.0)
        assert [offsets[AT][0] for offsets in committed] == [1]
        assert not host.unsettled
        host.close()

    asyncio.run(scenario())


def test_a_store_that_is_stuck_ends_the_process_and_stops_no_partition_for_good(tmp_path):
    """Where the partition was STOPPED, only an operator could have started it, on a machine that was merely slow."""

    async def scenario() -> None:
        host = _running(tmp_path / "0")
        ended: list[BaseException] = []
        worker = _worker(membership=SimpleNamespace(fail=ended.append, fetcher=SimpleNamespace(stop=lambda _: None)))
        store = host.store
        assert store is not None

        def stuck(*_, **__) -> None:
            raise StoreStuck("no write accepted for 60 s")

        store.write_changes = stuck
        worker._begin(host)
        assert await worker._write(host) is None
        assert [type(error) for error in ended] == [StoreStuck]
        assert host.status is Status.RUNNING
        host.close()

    asyncio.run(scenario())


def test_a_skip_that_came_while_the_partition_was_opened_again_counts_when_it_stops(tmp_path):
    """The skips are read when a partition opens; one that comes between that and the record was never acted on."""

    async def scenario() -> None:
        host = _running(tmp_path / "0")
        skipped: set[int] = set()
        told: list[Host] = []
        worker = _worker(control_log=SimpleNamespace(skips=lambda *_: skipped))
        worker._reopen = lambda *_, **__: asyncio.sleep(0)
        worker._tell_stopped = told.append
        worker.hosts[AT] = host
        failure = StepFailed(host.journal, 7, 7, ArithmeticError("a bug"))
        skipped.add(7)
        worker._go_on(host.journal.topic_id, 0, 7)  # the operator's word: it does not stand there yet
        assert host.status is Status.RUNNING
        worker._failed(AT, host, failure)
        assert host.status is Status.OPENING
        assert told == []

        host.status = Status.RUNNING
        assert host.runner is not None
        host.runner.skips.add(7)  # it was opened with that skip, and stands there all the same
        worker._failed(AT, host, failure)
        assert host.status is Status.STOPPED
        assert told == [host]
        host.close()

    asyncio.run(scenario())


def test_who_leaves_ends_its_timers(tmp_path):
    """What is still on the loop is waited for, for a second of the nine that leaving may take."""

    async def scenario() -> None:
        worker = _worker(_directories={AT: asyncio.Lock()})
        worker.membership = SimpleNamespace(leaving=True)
        worker.hosts[AT] = _running(tmp_path / "0")
        worker._timers.append(worker._spawn(asyncio.sleep(3600)))
        await worker._revoked({AT})
        await _until(lambda: not worker._tasks)

    asyncio.run(scenario())


def test_snapshots_of_one_partition_that_fail_are_told_until_they_do_not(tmp_path, monkeypatch):
    """The next partition that could store its own used to take the complaint away."""

    async def scenario() -> None:
        hosts = [_running(tmp_path / str(i)) for i in range(2)]
        hosts[1].tp = other = TP("account-journal", 1)
        for host in hosts:
            host.written_offset = 1
        worker = _worker(settings=SimpleNamespace(prefix="", snapshot_url="file:///x", snapshot_every_s=0.01))
        worker.hosts = {host.tp: host for host in hosts}
        failing = {AT}
        stored: list[TP] = []

        async def snapshot(host: Host, _url: str) -> None:
            if host.tp in failing:
                raise SnapshotUnavailable("no rights")
            stored.append(host.tp)

        worker._snapshot = snapshot
        snapshots = asyncio.create_task(worker._snapshots())
        await _until(lambda: len(stored) >= 2)
        assert worker.snapshots_failing == {AT: "no rights"}
        failing.clear()
        await _until(lambda: AT in stored and not worker.snapshots_failing)
        assert other in stored
        snapshots.cancel()
        for host in hosts:
            host.close()

    asyncio.run(scenario())


def test_a_partition_taken_away_is_closed_also_when_another_opening_has_its_directory(tmp_path):
    async def scenario() -> None:
        host = _running(tmp_path / "0")
        worker = _worker(_directories={AT: asyncio.Lock()})
        worker.hosts[AT] = host
        async with worker._directories[AT]:  # an older one, which only finds that it is no longer wanted
            await worker._revoked({AT})
        await _until(lambda: not worker._tasks)
        RocksStore.open(tmp_path / "0").close()  # nobody has it open

    asyncio.run(scenario())


def test_all_partitions_that_leave_are_out_of_work_before_the_first_is_closed(tmp_path):
    """Else snapshots of the later ones are begun meanwhile, and whoever leaves waits for their flushes, too."""

    async def scenario() -> None:
        both = [AT, TP("account-journal", 1)]
        worker = _worker(_directories={tp: asyncio.Lock() for tp in both})
        worker.hosts = hosts = {tp: _running(tmp_path / str(tp.partition)) for tp in both}
        worked: list[bool] = []

        def watched(close):
            def closing() -> None:
                worked.append(any(host.status is Status.RUNNING for host in hosts.values()))
                close()

            return closing

        for host in hosts.values():
            host.close = watched(host.close)
        hosts = dict(hosts)
        await worker._revoked(set(both))
        assert worked == [False, False]

    asyncio.run(scenario())


def test_a_commit_on_its_way_keeps_the_group_from_being_joined_also_when_the_hold_gave_up():
    """The broker would find it of an old generation, and aiokafka would throw the membership away."""

    async def scenario() -> None:
        membership = create_app(
            MembershipSettings(group_id="g", bootstrap_servers="127.0.0.1:1"),
            {"account-journal": "account"},
            fetch=FetchSettings(bootstrap_servers="127.0.0.1:1", group_id="g"),
            on_assigned=_nothing,
            on_revoked=_nothing,
        )
        answered = asyncio.Event()
        sent: list[int] = []

        async def commit_as(_ticket, offsets) -> None:
            sent.append(offsets[AT][0])
            await answered.wait()

        membership.app.consumer = SimpleNamespace(commit_as=commit_as)
        membership._committing, membership._turn, membership._idle = asyncio.Lock(), asyncio.Lock(), asyncio.Event()
        membership._owned, membership._ticket = {AT}, ("member", 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await membership.commit({AT: (7, "")})
        holding = asyncio.create_task(membership.hold())
        older = asyncio.create_task(membership.commit({AT: (6, "")}))
        await asyncio.sleep(0.02)
        assert not holding.done()
        answered.set()
        await holding
        with pytest.raises(app.CommitFenced):
            await older
        assert sent == [7]

    asyncio.run(scenario())


def test_a_snapshot_store_that_hangs_keeps_no_partition_from_its_checkpoint(tmp_path):
    async def scenario() -> None:
        host = _running(tmp_path / "0")
        worker = _worker()
        worker._begin(host)
        hanging = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        restores = [asyncio.create_task(asyncio.to_thread(hanging.wait, 30)) for _ in range(8)]
        try:
            async with asyncio.timeout(5):
                assert await worker._write(host) is not None
                worker._directories = {AT: asyncio.Lock()}
                await worker._close(AT, host)
        finally:
            hanging.set()
            await asyncio.gather(*restores)

    asyncio.run(scenario())


def test_who_looks_for_a_snapshot_does_not_wait_for_the_restores_of_others(tmp_path, monkeypatch):
    """Else a partition without state would be made from its journal, because others are large."""
    monkeypatch.setattr(app, "LOOK_EMPTY_S_MAX", 2.0)

    async def scenario() -> None:
        host = _running(tmp_path / "0")
        worker = _worker(settings=SimpleNamespace(prefix="", snapshot_url=(tmp_path / "far").as_uri()))
        worker._begin(host)
        assert await worker._write(host) is not None
        await worker._snapshot(host, worker.settings.snapshot_url)
        host.close()
        empty = _host(tmp_path / "1")
        assert empty.open_store() is None
        go_on = threading.Event()
        others = [asyncio.create_task(worker._restores.call(None, go_on.wait)) for _ in range(app.RESTORES_MAX + 1)]
        await asyncio.sleep(0)
        restoring = asyncio.create_task(worker._restore_snapshot(empty, None))
        await asyncio.sleep(2.5)
        assert not restoring.done()  # it has found one, and has its turn when others are done
        go_on.set()
        await asyncio.gather(restoring, *others)
        assert empty.snapshot_offset == 1
        empty.close()

    asyncio.run(scenario())


def test_calls_left_behind_count_until_they_return():
    async def scenario() -> None:
        patience = Patience(2)
        go_on = threading.Event()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await patience.call(0.02, go_on.wait)
        with pytest.raises(TimeoutError):  # no room
            await patience.call(0.02, int)
        go_on.set()
        assert await patience.call(5.0, int, "7") == 7
        with pytest.raises(ZeroDivisionError):
            await patience.call(None, divmod, 1, 0)

    asyncio.run(scenario())


def test_a_snapshot_store_that_never_answers_is_one_that_cannot_be_reached(tmp_path, monkeypatch, caplog):
    """It takes the connection and says nothing: fsspec would wait for five minutes, for each partition."""
    monkeypatch.setattr(app, "LOOK_S_MAX", 0.2)
    monkeypatch.setattr(app, "UPLOAD_S_MAX", 0.2)

    async def scenario(url: str) -> None:
        host = _running(tmp_path / "0")
        worker = _worker(settings=SimpleNamespace(prefix="", snapshot_url=url), snapshots_failing={})
        await worker._restore_snapshot(host, 1)
        assert "no answer within 0.2 s" in worker.snapshots_failing[AT]
        assert "local state is used" in caplog.text
        with pytest.raises(SnapshotUnavailable, match="no answer within"):
            await worker._snapshot(host, url)
        assert host.snapshot_offset == -1
        assert [path.name for path in tmp_path.iterdir()] == ["0"]  # the frozen copy is gone
        host.close()

    taken = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.1)
        try:
            asyncio.run(scenario(f"http://127.0.0.1:{silent.getsockname()[1]}/snapshots"))
        finally:
            with contextlib.suppress(TimeoutError):
                while True:
                    taken.append(silent.accept()[0])
    for connection in taken:
        connection.close()  # ends the calls that were left behind


async def _nothing(_tps: set[TP]) -> None:
    return None


def _refusing(*codes: int) -> SimpleNamespace:
    """Asked for watermarks it refuses with each of `codes` in turn, then answers."""
    left = [*codes]

    def ask(_tp, timeout: float) -> tuple[int, int]:
        if left:
            raise KafkaException(KafkaError(left.pop(0)))
        return 3, 9

    return SimpleNamespace(get_watermark_offsets=ask)


def test_a_leader_that_does_not_know_its_offsets_yet_is_asked_again(tmp_path, monkeypatch):
    """KIP-207: just elected, it says OFFSET_NOT_AVAILABLE; an operator would have to start a stopped partition."""
    monkeypatch.setattr(app, "ASK_AGAIN_S", 0.0)
    host = _host(tmp_path / "0")
    worker = _worker(
        _query=_refusing(
            KafkaError.OFFSET_NOT_AVAILABLE,
            KafkaError.FENCED_LEADER_EPOCH,
            KafkaError.KAFKA_STORAGE_ERROR,
            KafkaError.REPLICA_NOT_AVAILABLE,
            KafkaError._TRANSPORT,
        )
    )
    worker.hosts[AT] = host
    assert asyncio.run(worker._watermarks(AT, host)) == (3, 9)


@pytest.mark.parametrize("code", [KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART])
def test_a_partition_that_is_unknown_is_asked_for_again_while_its_topic_is_there(tmp_path, monkeypatch, code):
    """Seen after a broker had been frozen: eight of eleven partitions stood still until somebody started the worker."""
    monkeypatch.setattr(app, "ASK_AGAIN_S", 0.0)
    host = _host(tmp_path / "0")
    there = {host.journal.topic: host.journal.topic_id}
    worker = _worker(_query=_refusing(code, code), topology=SimpleNamespace(current_ids=lambda: there))
    worker.hosts[AT] = host
    assert asyncio.run(worker._watermarks(AT, host)) == (3, 9)
    there.clear()
    worker._query = _refusing(code)
    with pytest.raises(StateError, match=r"is gone\. Operator"):
        asyncio.run(worker._watermarks(AT, host))


def test_a_topic_that_may_not_be_read_is_not_asked_for_again(tmp_path):
    host = _host(tmp_path / "0")
    worker = _worker(_query=_refusing(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    worker.hosts[AT] = host
    with pytest.raises(StateError, match="no answer for the offsets"):
        asyncio.run(worker._watermarks(AT, host))


@pytest.mark.parametrize(
    ("code", "lasting"), [(KafkaError.LEADER_NOT_AVAILABLE, False), (KafkaError.UNKNOWN_TOPIC_OR_PART, True)]
)
def test_a_silent_partition_is_given_up_only_if_its_topic_is_gone(code, lasting):
    loop = asyncio.new_event_loop()
    told = []
    fetcher = Fetcher(
        FetchSettings(bootstrap_servers="127.0.0.1:1", group_id="g"),
        stage_of=lambda _: "account",
        ready=lambda _: None,
        failed=told.append,
        loop=loop,
    )
    fetcher._consumer.close()
    found = SimpleNamespace(error=KafkaError(code), partitions={})
    fetcher._consumer = SimpleNamespace(list_topics=lambda *_, **__: SimpleNamespace(topics={AT.topic: found}))
    fetcher._epochs[AT] = 1
    fetcher._ask_whether_it_exists(AT)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert [error.cause for error in told] == ["unknown_topic"] * lasting
    assert fetcher.stats().transient_errors.get("LEADER_NOT_AVAILABLE", 0) == (not lasting)


def test_a_worker_may_open_as_many_files_as_the_system_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        app._allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("offset_out_of_range", "restore this partition's state directory or a snapshot"),
        ("unknown_topic", "look on the brokers"),
        ("not_authorised", "fraud topics acls"),
        ("broken", "start this worker again"),
    ],
)
def test_a_partition_that_cannot_be_read_stops_and_says_who_does_what(tmp_path, cause, advice):
    host = _running(tmp_path / "0")
    worker = _worker(hosts={AT: host})
    worker._fetch_error(FetchError(AT, host.epoch + 1, cause, "of a fetch before"))
    assert host.status is Status.RUNNING
    worker._fetch_error(FetchError(AT, host.epoch, cause, "so it is"))
    assert host.status is Status.STOPPED
    assert f"cannot read account-journal[0]: {cause}: so it is. Operator: " in host.failure
    assert advice in host.failure
