import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.stages.state import HIGHEST, Changes, MemoryStore
from stream.worker import store as store_module
from stream.worker.store import (
    BATCH_RING,
    InstanceLocked,
    RocksStore,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreMemory,
    instance_lock,
    set_aside,
)

CACHE_BYTES = 32 << 20
ROOT = Path(__file__).resolve().parents[2]


def opened(directory: Path) -> RocksStore:
    # A cache of its own: copies of one store share their blocks in a cache, which would hide a damaged file.
    return RocksStore.open(directory, memory=StoreMemory(CACHE_BYTES, 8 << 20))


def everything(store: RocksStore) -> dict[bytes, bytes]:
    return dict(store.scan(b"", HIGHEST, 1_000_000))


def test_what_was_written_is_read_after_reopening(tmp_path: Path):
    store = opened(tmp_path / "s")
    store.write([(b"a", b"1"), (b"b", b""), (b"c", b"3")], sync=True)
    store.write([(b"d", b"4")], [b"a"], [(b"c", b"d")], sync=False)
    store.close()
    store.close()
    with opened(tmp_path / "s") as again:
        assert again.get_many([b"d", b"a", b"b", b"c", b"x"]) == [b"4", None, b"", None, None]
        assert again.scan(b"", HIGHEST, 10) == [(b"b", b""), (b"d", b"4")]
        assert again.scan(b"b", b"d", 10) == [(b"b", b"")]
        assert again.scan(b"", HIGHEST, 1) == [(b"b", b"")]
        assert again.batches == 2
    with pytest.raises(StoreClosed):
        again.get_many([b"a"])
    with pytest.raises(StoreClosed):
        again.write([(b"a", b"1")], sync=False)


def test_a_reopened_store_keeps_its_filter_and_the_shared_cache(tmp_path: Path):
    """rocksdict forgets both unless told twice; lost keys would cost a block read each, memory would be unbounded."""
    for _ in range(2):
        opened(tmp_path / "s").close()
    told = (tmp_path / "s" / "LOG").read_text()
    assert "filter_policy: bloomfilter" in told
    assert f"capacity : {CACHE_BYTES}" in told


KEYS = st.binary(min_size=1, max_size=2)
CHANGES = st.builds(
    Changes,
    ranges=st.lists(st.tuples(KEYS, KEYS).map(lambda pair: (min(pair), max(pair))), max_size=2),
    writes=st.dictionaries(KEYS, st.none() | st.binary(max_size=3), max_size=20),
)


@settings(max_examples=15, deadline=None)
@given(history=st.lists(CHANGES, max_size=8), low=KEYS, high=KEYS, keys=st.lists(KEYS, max_size=20))
def test_it_behaves_like_the_store_in_memory(
    tmp_path_factory: pytest.TempPathFactory, history: list[Changes], low: bytes, high: bytes, keys: list[bytes]
):
    oracle = MemoryStore()
    with opened(tmp_path_factory.mktemp("s") / "s") as store:
        for i, changes in enumerate(history):
            oracle.write(changes)
            store.write_changes(changes, sync=False)
            if i == 3:
                store.flush()
        assert store.get_many(keys) == oracle.get_many(keys)
        assert store.scan(b"", HIGHEST, 1000) == list(oracle.pairs())
        if low <= high:
            assert store.scan(low, high, 3) == oracle.scan(low, high, 3)


WRITER = """
import sys
from stream.worker.store import RocksStore
store = RocksStore.open(sys.argv[1])
first = store.batches + 1
for number in range(first, 1_000_000):
    value = number.to_bytes(8, "big") * 20
    store.write([(b"key%05d" % i, value) for i in range(2000)], sync=False)
    if number == first:
        print("writing", flush=True)
"""


def test_sigkill_between_and_within_writes_leaves_whole_batches(tmp_path: Path):
    """Each batch gives all keys its own number: after a kill all keys have the same, and it is the last of the ring."""
    before = 0
    for delay_s in (0.01, 0.05, 0.13, 0.3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE, cwd=ROOT)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with opened(tmp_path / "s") as store:
            pairs = everything(store)
            assert len(pairs) == 2000
            assert set(pairs.values()) == {store.batches.to_bytes(8, "big") * 20}
            assert store.batches > before
            before = store.batches


# --- damage -----------------------------------------------------------------------------------------------------


class Killed:
    """A store as kill -9 left it: three SSTs, and a log with the last batches. `history[n]`: what batch n left."""

    def __init__(self, directory: Path) -> None:
        chance = random.Random(1)
        self.directory = directory / "killed"
        self.history: list[dict[bytes, bytes]] = [{}]
        now: dict[bytes, bytes] = {}
        with opened(directory / "alive") as store:
            for batch in range(40):
                puts = [(b"k%03d" % chance.randrange(300), chance.randbytes(40)) for _ in range(chance.choice([3, 30]))]
                store.write(puts, sync=False)
                now.update(puts)
                self.history.append(dict(now))
                if batch in (10, 20, 30):
                    store.flush()
            shutil.copytree(store.directory, self.directory)

    def files(self, pattern: str) -> list[Path]:
        return [path for path in sorted(self.directory.glob(pattern)) if path.stat().st_size]

    def tried(self, scratch: Path, change: Callable[[Path], None]) -> str:
        """`change` a copy, open it and read it all: what happened. A wrong answer fails the test."""
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(self.directory, scratch)
        change(scratch)
        try:
            store = opened(scratch)
        except StoreCorrupt as error:
            return "ring" if "missing" in str(error) and "batches" in str(error) else "open"
        try:
            assert everything(store) == self.history[store.batches], "a state that never was"
            return "whole" if store.batches == 40 else "older"
        except StoreCorrupt:
            return "read"
        finally:
            store.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"))


def flip(name: str, position: int, bit: int = 1) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        with open(directory / name, "r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ bit]))

    return change


def test_flipped_byte_in_the_manifest_is_found_at_open(killed: Killed, tmp_path: Path):
    [manifest] = killed.files("MANIFEST-*")
    ends = {killed.tried(tmp_path / "s", flip(manifest.name, at)) for at in range(0, manifest.stat().st_size, 3)}
    assert ends <= {"open", "ring", "whole"}
    assert "open" in ends


def test_manifest_that_lost_its_end_is_found_by_the_ring(killed: Killed, tmp_path: Path):
    """RocksDB takes a torn manifest for whole: it forgets an SST, and keeps the log that came after it."""
    [manifest] = killed.files("MANIFEST-*")
    size = manifest.stat().st_size
    ends = [
        killed.tried(tmp_path / "s", lambda at_directory, n=n: os.truncate(at_directory / manifest.name, n))
        for n in range(0, size, 20)
    ]
    assert set(ends) <= {"open", "ring", "whole"}
    assert ends.count("ring") > len(ends) // 4


def test_flipped_byte_in_the_log_is_found_or_leaves_an_older_whole_state(killed: Killed, tmp_path: Path):
    [log] = killed.files("*.log")
    ends = [killed.tried(tmp_path / "s", flip(log.name, at)) for at in range(0, log.stat().st_size, 97)]
    assert set(ends) <= {"open", "older"}
    assert ends.count("open") > len(ends) // 2


def test_log_cut_anywhere_leaves_an_older_whole_state(killed: Killed, tmp_path: Path):
    [log] = killed.files("*.log")
    for size in range(0, log.stat().st_size, 397):
        assert killed.tried(tmp_path / "s", lambda at, size=size: os.truncate(at / log.name, size)) in (
            "older",
            "whole",
        )


def test_flipped_byte_in_an_sst_is_found_at_open_or_when_it_is_read(killed: Killed, tmp_path: Path):
    ends: list[str] = []
    for sst in killed.files("*.sst")[:2]:
        size = sst.stat().st_size
        ends += [killed.tried(tmp_path / "s", flip(sst.name, at, 4)) for at in (10, size // 2, size - 300, size - 20)]
        ends.append(killed.tried(tmp_path / "s", lambda at, sst=sst: os.truncate(at / sst.name, 4000)))
        ends.append(killed.tried(tmp_path / "s", lambda at, sst=sst: (at / sst.name).unlink()))
    assert set(ends) <= {"open", "read", "whole"}  # whole: a byte of the properties that nobody reads
    assert {"open", "read"} <= set(ends)


@pytest.mark.parametrize("content", [b"", b"MANIFEST", b"MANIFEST-000099\n", b"\x00" * 16])
def test_broken_current_is_found_at_open(killed: Killed, tmp_path: Path, content: bytes):
    assert killed.tried(tmp_path / "s", lambda at: (at / "CURRENT").write_bytes(content) and None) == "open"


@pytest.mark.parametrize("name", ["rocksdict-config.json", "IDENTITY"])
def test_files_without_meaning_may_be_lost(killed: Killed, tmp_path: Path, name: str):
    assert killed.tried(tmp_path / "s", lambda at: (at / name).unlink()) == "whole"
    assert killed.tried(tmp_path / "s", lambda at: os.truncate(at / name, 0)) == "whole"


def test_ring_of_batches_goes_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "BATCH_RING", 8)
    assert BATCH_RING != 8
    for expected in (5, 10, 30):
        with opened(tmp_path / "s") as store:
            while store.batches < expected:
                store.write([], sync=False)
    with opened(tmp_path / "s") as store:
        assert store.batches == 30
        assert everything(store) == {}


def test_damaged_store_is_set_aside_and_made_again_in_the_same_process(killed: Killed, tmp_path: Path):
    shutil.copytree(killed.directory, tmp_path / "s")
    for number in range(1, 5):
        (tmp_path / "s" / "CURRENT").write_bytes(b"")
        with pytest.raises(StoreCorrupt) as caught:
            opened(tmp_path / "s")
        aside = set_aside(tmp_path / "s", str(caught.value))
        assert aside.name == f"s.aside-{number}"
        assert "CURRENT" in (aside / "REASON").read_text()
        with opened(tmp_path / "s") as store:
            assert everything(store) == {}
            store.write([(b"a", b"1")], sync=True)
    assert sorted(path.name for path in tmp_path.glob("s.aside-*")) == ["s.aside-3", "s.aside-4"]


def test_bad_block_met_while_open_is_corrupt_and_the_directory_is_free_afterwards(killed: Killed, tmp_path: Path):
    shutil.copytree(killed.directory, tmp_path / "s")
    flip(killed.files("*.sst")[0].name, 10)(tmp_path / "s")
    store = opened(tmp_path / "s")
    with pytest.raises(StoreCorrupt) as held:  # the exception is kept, with its traceback, as a logger would
        store.verify()
    store.close()
    set_aside(tmp_path / "s", str(held.value))
    opened(tmp_path / "s").close()


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "tiny"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("cannot mount a tmpfs here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_has_a_name_and_ends_when_there_is_room(tiny: Path):
    ballast = tiny / "ballast"
    ballast.write_bytes(b"x" * (5 << 20))
    store = opened(tiny / "s")

    def fill() -> None:
        while True:
            store.write([(b"%06d" % store.batches, random.Random(1).randbytes(100_000))], sync=True)

    with pytest.raises(StoreFull):
        fill()
    done = store.batches
    assert done > 5
    with pytest.raises(StoreError):  # full still
        store.write([(b"more", b"x" * 200_000)], sync=True)
    store.close()
    ballast.unlink()
    with opened(tiny / "s") as again:
        assert again.batches in (done, done + 1)
        assert [key for key, _ in again.scan(b"", HIGHEST, 1000)] == [b"%06d" % i for i in range(again.batches)]
        again.write([(b"more", b"x" * 200_000)], sync=True)
        assert again.get_many([b"more"]) == [b"x" * 200_000]


def test_a_disk_without_room_for_a_directory_is_full(tiny: Path):
    """It was a raw `OSError`, which ends the process."""
    subprocess.run(["mount", "-o", "remount,nr_inodes=3", str(tiny)], check=True)
    (tiny / "account-journal").mkdir()
    (tiny / "ballast").write_bytes(b"")
    with pytest.raises(StoreFull, match="No space left"):
        opened(tiny / "account-journal" / "0")
    (tiny / "ballast").unlink()
    with pytest.raises(StoreFull):  # a directory, and nothing in it
        opened(tiny / "account-journal" / "0")


def test_a_full_disk_keeps_no_worker_from_its_instance_directory(tiny: Path):
    instance_lock(tiny).close()
    (tiny / "instance.lock").write_bytes(b"")
    with contextlib.suppress(OSError), open(tiny / "ballast", "wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    with instance_lock(tiny), pytest.raises(InstanceLocked, match="unknown"):
        instance_lock(tiny)


LIMITED = """
import resource, signal, sys
from stream.worker.store import RocksStore, StoreFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = RocksStore.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for number in range(100):
        store.write([(b"%03d" % number, b"x" * 10_000)], sync=True)
except StoreFull:
    print("full", number)
"""


def test_file_size_limit_counts_as_full(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "s")], capture_output=True, cwd=ROOT, check=False, text=True
    )
    assert run.stdout.startswith("full"), run.stderr
    done = int(run.stdout.split()[1])
    with opened(tmp_path / "s") as store:
        assert len(everything(store)) == store.batches == done


# --- the rest ---------------------------------------------------------------------------------------------------


def test_a_store_closes_without_a_flush_that_might_have_to_wait(tmp_path: Path):
    """A flush waits for compactions of any store of the process: a worker was still leaving after nine seconds."""
    store = RocksStore.open(tmp_path / "s", memory=StoreMemory())
    store.write_changes(Changes([], {b"k%04d" % i: b"v" * 100 for i in range(5000)}), sync=False)
    store.close()
    assert not list((tmp_path / "s").glob("*.sst"))
    with RocksStore.open(tmp_path / "s", memory=StoreMemory()) as again:
        assert again.get_many([b"k0000", b"k4999"]) == [b"v" * 100] * 2


def test_a_store_that_is_closed_while_a_checkpoint_is_taken_can_be_opened_at_once(tmp_path: Path):
    """A partition that leaves while its snapshot is begun, and comes back, finds nobody in its directory."""
    store = opened(tmp_path / "s")
    store.write([(b"%08d" % i, os.urandom(1_000)) for i in range(7_000)], sync=False)
    ended: list[Exception | None] = []

    def take() -> None:
        try:
            store.checkpoint(tmp_path / "c")
            ended.append(None)
        except StoreClosed as error:  # it came too late, and says so
            ended.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    while not any((tmp_path / "s").glob("*.sst")) and taking.is_alive():
        time.sleep(0.0005)  # until the flush is under way
    store.close()
    with opened(tmp_path / "s") as again:
        assert len(again.scan(b"", HIGHEST, 10_000)) == 7_000
    taking.join(30)
    assert len(ended) == 1


def test_checkpoint_is_a_store_as_of_then(tmp_path: Path):
    with opened(tmp_path / "s") as store:
        store.write([(b"a", b"1")], sync=False)
        store.checkpoint(tmp_path / "c")
        store.write([(b"a", b"2")], sync=False)
        with opened(tmp_path / "c") as then:
            assert everything(then) == {b"a": b"1"}
            assert then.batches == 1
        assert everything(store) == {b"a": b"2"}


def test_reads_go_on_in_threads_while_batches_are_written(tmp_path: Path):
    """A reader sees a batch whole or not: all keys of one `get_many` have one value."""
    keys = [b"%04d" % i for i in range(50)]
    seen: set[int] = set()
    done = threading.Event()
    with opened(tmp_path / "s") as store:

        def read() -> None:
            while not done.is_set():
                pairs = store.scan(b"", HIGHEST, 100)
                assert len({value for _, value in pairs}) <= 1
                seen.add(len(pairs))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(300):
            store.write([(key, b"%d" % number) for key in keys], sync=False)
            if number % 100 == 50:
                store.flush()
        done.set()
        for thread in threads:
            thread.join()
    assert 50 in seen
    assert seen <= {0, 50}


def test_a_write_waits_outside_of_rocksdb_while_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Inside, it would hold the GIL, and with it the whole process."""
    monkeypatch.setattr(store_module, "MEMTABLE_BYTES", 64 << 10)
    monkeypatch.setattr(store_module, "MEMTABLES_MAX", 2)
    waits: list[float] = []
    monkeypatch.setattr(store_module, "_wait", lambda seconds: (waits.append(seconds), time.sleep(seconds)))
    with opened(tmp_path / "s") as store:
        for number in range(150):
            store.write([(b"%d-%d" % (number, i), os.urandom(1000)) for i in range(100)], sync=False)
        assert store.verify() == 150 * 100
    assert waits, "no stall came: the test shows nothing"


def test_memory_of_many_idle_stores_is_shared_and_small(tmp_path: Path):
    memory = StoreMemory(cache_bytes=64 << 20, write_buffer_bytes=16 << 20)
    stores = [RocksStore.open(tmp_path / str(i), memory=memory) for i in range(8)]
    assert memory.used_bytes() < 8 * (1 << 20)
    for number in range(40):
        for store in stores:
            store.write([(random.Random(number).randbytes(16), b"x" * 100_000)], sync=False)
    assert memory.used_bytes() < 64 << 20
    for store in stores:
        store.close()


def test_instance_directory_has_one_owner(tmp_path: Path):
    lock = instance_lock(tmp_path / "i")
    with pytest.raises(InstanceLocked, match=str(os.getpid())):
        instance_lock(tmp_path / "i")
    other = subprocess.run(
        [sys.executable, "-c", "import sys; from stream.worker.store import instance_lock; instance_lock(sys.argv[1])",
         str(tmp_path / "i")], capture_output=True, cwd=ROOT, check=False, text=True,
    )  # fmt: skip
    assert f"running process {os.getpid()}" in other.stderr
    lock.close()
    instance_lock(tmp_path / "i").close()
