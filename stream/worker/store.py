"""One RocksDB per stage and partition: the state of a partition between two checkpoints.

A store is written once a checkpoint, by one WriteBatch: the dirty keys *and* the offset that they belong to. So
whatever happens to the process, what is on disk is the state as of some checkpoint, whole. Which one does not
matter (the partition goes on from the offset it finds); a hole between two checkpoints would. RocksDB does not
report every hole (a torn manifest, or a lost page of the log, makes it forget a batch and keep a later one), so
each batch also writes its own number into a ring of reserved keys, and `open` checks that no number is missing.

What is checked when (found by flipping bytes: tests/worker/test_store.py):

| damage                              | found                                                           |
|-------------------------------------|-----------------------------------------------------------------|
| CURRENT, MANIFEST                   | at open, by RocksDB or by the ring of batch numbers             |
| write-ahead log                     | at open; or its last batches are dropped: an older, whole state |
| SST: size, footer, index            | at open or at the first read of the file                        |
| SST: a block of keys or its filter  | at the first read of the block, and when it is compacted        |
| an SST or the MANIFEST is missing   | at open                                                         |
| the log is cut or missing           | not: an older, whole state                                      |

Threads: every method may be called from any thread; `write`, `flush`, `checkpoint` and `close` exclude each other.
RocksDB's reads, flushes and compactions release the GIL, but rocksdict's `write` and checkpoint hold it. Hence a
batch is sorted before it is written (4 to 6 times faster into the skip list), a write never waits inside RocksDB for
a compaction (`no_slowdown`; the wait is a sleep here), and `checkpoint` flushes first, in a call that releases the
GIL.

Memory is bounded by `StoreMemory`, shared by all stores of a process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from rocksdict import (
    BlockBasedOptions,
    Cache,
    Checkpoint,
    ChecksumType,
    DbClosedError,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from stream.errors import OperatorError
from stream.stages.state import HIGHEST, Changes

# StoreError                      something is wrong with one store's directory
# ├── StoreCorrupt                its bytes are not what was written: set it aside, restore a snapshot
# ├── StoreFull                   no room on the disk (or beyond a file size limit): the operator makes room
# ├── StoreStuck                  RocksDB has refused writes for `STALL_S_MAX`: the process should end, loudly
# ├── StoreClosed                 used after `close`: the programmer, or a revoke that overtook a round
# └── InstanceLocked              another process owns the instance directory


class StoreError(OperatorError):
    """A store cannot do what was asked. Raised itself for I/O errors that have no name below."""


class StoreCorrupt(StoreError):
    """The store's bytes are not what was written. The caller sets it aside (`set_aside`) and restores."""


class StoreFull(StoreError):
    """No room for the write, which did not happen. Make room, then `close` and `open` again, or retry."""


class StoreStuck(StoreError):
    """RocksDB accepts no writes for want of compaction, for longer than `STALL_S_MAX`."""


class StoreClosed(StoreError):
    """The store was used after `close`."""


class InstanceLocked(StoreError):
    """Another process has the instance directory open; its pid is in the message."""


RESERVED = b"\xff\xff\xff\xff"
"""Keys from here on are the store's own: `scan` never shows them, callers never write them."""

BATCH_RING = 4096
"""Numbers of the last batches that are kept for the check at open (about 130 kB a store)."""

MEMTABLE_BYTES = 8 << 20  # of one store; it should stay in a core's cache: a checkpoint's keys go all over it
MEMTABLES_MAX = 3
MEMTABLE_FILTER_SHARE = 0.05  # of the memtable: 10 bits and more for each key of 60 bytes and longer
ARENA_BYTES = 256 << 10  # what the memtable of an idle store takes
OPEN_FILES_MAX = 128  # of one store; at 32 MB a file that is 4 GB before one is closed for another
SST_BYTES = 32 << 20
LEVEL_0_FILES = 24  # that are compacted together: most of what is below them is written anew each time
LEVEL_0_FILES_SLOW, LEVEL_0_FILES_MAX = 40, 60  # RocksDB's own brakes, in the default's proportion
LEVEL_BASE_BYTES = 192 << 20
PLAIN_LEVELS = 2  # from the top, without compression: what is there is soon written again
LEVELS = 7
BLOOM_BITS_PER_KEY = 10  # 1 % of missing keys cost a block read
BLOCK_BYTES = 4 << 10  # small: state is read by point, in no order
PUTS_AT_ONCE = 2_000  # half a millisecond in which no other thread runs
STALL_S_MAX = 60.0
STALL_POLL_S = 0.005
_wait = time.sleep

assert BATCH_RING <= 1 << 16, "a slot of the ring is two bytes"
assert BATCH_RING > 3600, "at one checkpoint a second, an hour of batches is checked"
assert LEVEL_BASE_BYTES >= LEVEL_0_FILES * MEMTABLE_BYTES, "level 1 holds what level 0 collects before it is compacted"


class StoreMemory:
    """The memory that all stores of a process share, in bytes.

    `cache_bytes` bounds blocks, indexes, filters *and* memtables: these are charged to the cache, so when writes
    need room, cached blocks give way. `write_buffer_bytes` is the part that memtables may take before a store is
    flushed early; a store that is flushed meanwhile can exceed it by one memtable.

    The default suits 12 partitions of three stages: the filters of 20 million keys take 25 MB.
    """

    def __init__(self, cache_bytes: int = 256 << 20, write_buffer_bytes: int = 96 << 20) -> None:
        assert write_buffer_bytes < cache_bytes, "memtables are charged to the cache and must leave room for blocks"
        self.cache_bytes = cache_bytes
        self.write_buffer_bytes = write_buffer_bytes
        self.cache = Cache(cache_bytes)
        self.write_buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            write_buffer_bytes,
            False,  # allow_stall: a stall would hold the GIL; a flush is enough
            self.cache,
        )

    def used_bytes(self) -> int:
        """Bytes in the cache now, memtables included."""
        return self.cache.get_usage()


class RocksStore:
    """A sorted map from bytes to bytes on disk, written in atomic batches. Made by `open`.

    `directory`: where it lives; nothing else may write there.
    `digests`: SHA-256 by SST name, filled by `snapshots.upload` so that an immutable file is hashed once.
    """

    def __init__(self, db: Rdict, directory: Path, batches: int) -> None:
        self.directory = directory
        self.digests: dict[str, str] = {}
        self._db = db
        self._batches = batches
        self._writing = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, directory: Path | str, *, memory: StoreMemory | None = None) -> RocksStore:
        """Open or create the store in `directory`, and check what can be checked without reading all of it.

        Replays the write-ahead log and reads the ring of batch numbers: milliseconds, plus the log's size.
        Raises `StoreCorrupt`, `StoreFull`, or `StoreError` (permissions, another process has it open).
        """
        path = Path(directory)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL_ERRNOS:
                raise StoreFull(f"{path}: {error}") from error
            raise
        try:
            _write_rocksdict_config(path)
            options = _options(memory or StoreMemory())
            # Without this second mention rocksdict reopens a store with a table format of its own making, from the
            # OPTIONS file, which has neither our cache nor a bloom filter.
            db = Rdict(str(path), options, column_families={"default": options})
        except Exception as error:
            raise _named(error, path, opening=True) from error
        try:
            batches = _last_batch(db, path)
        except Exception as error:
            _close(db)
            raise _named(error, path, opening=True) from error
        return cls(db, path, batches)

    @property
    def batches(self) -> int:
        """How many batches were ever written. Survives restarts and restores."""
        return self._batches

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order; None where there is none. Raises `StoreCorrupt`, `StoreClosed`."""
        if not keys:
            return []
        try:
            return cast(
                "list[bytes | None]", self._db.get(cast("list[Any]", keys if isinstance(keys, list) else list(keys)))
            )
        except Exception as error:
            raise self._error(error) from error

    def scan(self, low: bytes, high: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first `limit` pairs with low <= key < high, ascending. Raises `StoreCorrupt`, `StoreClosed`."""
        try:
            return _pairs(self._db, low, min(high, RESERVED), limit)
        except Exception as error:
            raise self._error(error) from error

    def write(
        self,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
        ranges: Iterable[tuple[bytes, bytes]] = (),
        *,
        sync: bool,
    ) -> None:
        """Everything, or after a crash nothing of it: `ranges` [low, high) and `deletes` first, then `puts`.

        So a key that is both deleted and put is there afterwards; of two puts of one key the later one stands.
        `sync`: wait until it survives a loss of power, not only of the process.
        Raises `StoreFull`, `StoreCorrupt`, `StoreStuck`, `StoreClosed`: it did not happen, or, after `StoreFull`
        on sync, may be found to have happened when the store is opened again.
        """
        self._write(ranges, {**dict.fromkeys(deletes), **dict(puts)}, sync=sync)

    def write_changes(self, changes: Changes, *, sync: bool) -> None:
        """`write`, of what `State.freeze` returned."""
        self._write(changes.ranges, changes.writes, sync=sync)

    def _write(
        self, ranges: Iterable[tuple[bytes, bytes]], writes: Mapping[bytes, bytes | None], *, sync: bool
    ) -> None:
        spans = [(low, min(high, RESERVED)) for low, high in ranges]
        ordered = sorted(writes)
        assert not ordered or ordered[-1] < RESERVED, "a key at or above RESERVED"
        gone = [key for key, value in writes.items() if value is None]
        there = [key for key in ordered if writes[key] is not None] if gone else ordered
        options = WriteOptions()
        options.sync = sync
        options.no_slowdown = True
        with self._writing:
            number = self._batches + 1
            deadline_s = time.monotonic() + STALL_S_MAX
            while True:
                batch = WriteBatch(raw_mode=True)
                for low, high in spans:
                    if low < high:
                        batch.delete_range(low, high)
                _for_all(batch.delete, gone)
                for first in range(0, len(there), PUTS_AT_ONCE):
                    some = there[first : first + PUTS_AT_ONCE]
                    _for_all(batch.__setitem__, some, map(writes.__getitem__, some))
                batch[_ring_key(number)] = number.to_bytes(8, "big")
                try:
                    self._db.write(batch, options)
                except Exception as error:
                    if not _is_stall(error):
                        raise self._error(error) from error
                    if time.monotonic() > deadline_s:
                        raise StoreStuck(f"{self.directory}: no write accepted for {STALL_S_MAX} s") from error
                    _wait(STALL_POLL_S)
                else:
                    self._batches = number
                    return

    def flush(self) -> None:
        """Write the memtable to an SST, so that the next open has no log to replay. Releases the GIL."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            self._db.flush()
        except Exception as error:
            raise self._error(error) from error

    def checkpoint(self, directory: Path | str) -> None:
        """A store of its own in `directory`, which must not exist, as of the last write; SSTs are hard links.

        `directory` must be on the same file system, else RocksDB copies. Raises `StoreFull`, `StoreCorrupt`.
        """
        # Whoever closes meanwhile waits: RocksDB lets go of its directory when the last call into it has ended, and who
        # opens it before that finds it locked.
        with self._writing:
            self._flush()
            try:
                Checkpoint(self._db).create_checkpoint(str(directory))
                shutil.copyfile(self.directory / _CONFIG, Path(directory) / _CONFIG)
            except Exception as error:
                raise self._error(error) from error

    def verify(self) -> int:
        """Read every block and check it; the number of keys. About 1 µs a key: for tests and `fraud` commands."""
        count = 0
        low = b""
        while True:
            page = self.scan(low, RESERVED, 100_000)
            count += len(page)
            if len(page) < 100_000:
                return count
            low = page[-1][0] + b"\x00"

    def close(self) -> None:
        """Let go of files, threads and memory; never raises. Called again it does nothing."""
        with self._writing:
            if not self._closed:
                self._closed = True
                _close(self._db)

    def __enter__(self) -> RocksStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _error(self, error: Exception) -> StoreError:
        return _named(error, self.directory, opening=False)


# --- what RocksDB is told ---------------------------------------------------------------------------------------


def _options(memory: StoreMemory) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(memory.cache)
    table.set_block_size(BLOCK_BYTES)
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    # Indexes and filters live in the cache too, or memory would grow with the number of keys.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_checksum_type(ChecksumType.xxh3())
    table.set_format_version(6)

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_manager(memory.write_buffers)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_write_buffer_number(MEMTABLES_MAX)
    # Most keys that are asked for are not there (is this payment new?): a filter says so without a walk through a list.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_SHARE)
    options.set_arena_block_size(ARENA_BYTES)
    options.set_allow_concurrent_memtable_write(False)  # one writer a store
    kinds = [DBCompressionType.none()] * PLAIN_LEVELS + [DBCompressionType.lz4()] * (LEVELS - PLAIN_LEVELS)
    options.set_num_levels(LEVELS)
    options.set_compression_per_level(kinds)
    options.set_bottommost_compression_type(DBCompressionType.lz4())
    options.set_level_zero_file_num_compaction_trigger(LEVEL_0_FILES)
    options.set_level_zero_slowdown_writes_trigger(LEVEL_0_FILES_SLOW)
    options.set_level_zero_stop_writes_trigger(LEVEL_0_FILES_MAX)
    options.set_target_file_size_base(SST_BYTES)
    options.set_max_bytes_for_level_base(LEVEL_BASE_BYTES)
    options.set_max_background_jobs(2)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_max_file_opening_threads(2)
    options.set_bytes_per_sync(1 << 20)  # no bursts when a file is finished

    # Paranoid: the manifest, every block that is read, and every compaction's count of records are checked.
    options.set_paranoid_checks(True)
    # A log that ends in half a batch is what kill -9 leaves; damage anywhere else is reported, not skipped.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())

    options.set_max_manifest_file_size(4 << 20)
    options.set_manifest_preallocation_size(64 << 10)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


_CONFIG = "rocksdict-config.json"


def _write_rocksdict_config(directory: Path) -> None:
    """rocksdict keeps its own file beside RocksDB's and truncates it in place; a kill there must not lose a store."""
    config = directory / _CONFIG
    try:
        empty = config.stat().st_size == 0
    except FileNotFoundError:
        return
    if empty:
        config.unlink()


def _for_all(call: Callable[..., None], *each: Iterable[Any]) -> None:
    """A loop without the interpreter, for a hundred thousand calls a second. No other thread runs meanwhile."""
    deque(map(call, *each), maxlen=0)


def _close(db: Rdict) -> None:
    # rocksdict would flush the memtable first, and a flush waits for compactions, of other stores as well: seconds that
    # a worker which leaves does not have. The log holds what was not flushed, so the flush is refused; `close` reports
    # that, or what else is wrong (a bad block, a full disk), and the handle is gone all the same.
    with contextlib.suppress(Exception):
        db.flush_wal(True)  # after a stop in order, the machine may lose its power as well
    with contextlib.suppress(Exception):
        db.cancel_all_background(True)
    with contextlib.suppress(Exception):
        db.close()


def _pairs(db: Rdict, low: bytes, high: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """The first `limit` pairs with low <= key < high."""
    if low >= high or limit <= 0:
        return []
    bounded = ReadOptions()
    bounded.set_iterate_upper_bound(high)
    # Half of what an iterator takes, of which key, value and next are asked. It has no name: in the traceback of an
    # exception it would keep the database open after `close`.
    found = list(islice(cast("Iterator[tuple[bytes, bytes]]", db.items(from_key=low, read_opt=bounded)), limit))
    if len(found) < limit:
        _check_end(db, bounded, found[-1][0] if found else low)
    return found


def _check_end(db: Rdict, bounded: ReadOptions, last: bytes) -> None:
    """An iterator that met a bad block ends as at its end, and only one with a status says which it was."""
    at = db.iter(bounded)
    try:
        at.seek(last)
        while at.valid():
            at.next()
        at.status()
    finally:
        del at


# --- the ring of batch numbers ----------------------------------------------------------------------------------


def _ring_key(number: int) -> bytes:
    return RESERVED + (number % BATCH_RING).to_bytes(2, "big")


def _last_batch(db: Rdict, directory: Path) -> int:
    """The number of the last batch, after a look whether those before it are all there. Raises `StoreCorrupt`."""
    seen = [int.from_bytes(value, "big") for _, value in _pairs(db, RESERVED, HIGHEST, BATCH_RING)]
    last = max(seen, default=0)
    expected = set(range(max(1, last - BATCH_RING + 1), last + 1))
    if set(seen) != expected:
        lost = sorted(expected - set(seen))
        raise StoreCorrupt(f"{directory}: batches {lost[:3]}... of {last} are missing ({len(lost)} in all)")
    if last == 0 and _pairs(db, b"", RESERVED, 1):
        raise StoreCorrupt(f"{directory}: has keys, but no batch was ever written")
    return last


# --- names for what goes wrong ----------------------------------------------------------------------------------

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Of an `OSError` that means: no room, for us."""

_FULL_WORDS = ("no space left", "file too large", "disk quota exceeded", "space limit")


def _is_stall(error: Exception) -> bool:
    return "write stall" in str(error).lower()


def _named(error: Exception, directory: Path, *, opening: bool) -> StoreError:
    """`error` as one of ours. At open, what has no other explanation is damage: a healthy store opens."""
    if isinstance(error, StoreError):
        return error
    text = str(error)
    lower = text.lower()
    if isinstance(error, DbClosedError):
        return StoreClosed(f"{directory}: closed")
    if (isinstance(error, OSError) and error.errno in FULL_ERRNOS) or any(word in lower for word in _FULL_WORDS):
        return StoreFull(f"{directory}: {text}")
    if "permission denied" in lower or "lock file" in lower or "lock hold" in lower or "too many open files" in lower:
        return StoreError(f"{directory}: {text}")
    if opening or "corruption" in lower or "checksum" in lower:
        return StoreCorrupt(f"{directory}: {text}")
    return StoreError(f"{directory}: {text}")


# --- the instance directory -------------------------------------------------------------------------------------


class InstanceLock:
    """Held from `instance_lock` until `close`, or until the process is gone."""

    def __init__(self, descriptor: int, directory: Path) -> None:
        self.directory = directory
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)  # the lock goes with it
            self._descriptor = None

    def __enter__(self) -> InstanceLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def instance_lock(directory: Path | str) -> InstanceLock:
    """Make `directory` and lock it for this process. Raises `InstanceLocked`, naming the owner's pid.

    On a full disk the pid is missing; the lock is had all the same.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / "instance.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise InstanceLocked(
            f"{path} belongs to the running process {owner}. Stop it, or give this worker a directory of its own"
        ) from error
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        if error.errno not in FULL_ERRNOS:
            os.close(descriptor)
            raise
    return InstanceLock(descriptor, path)


ASIDE_KEPT = 2
"""Damaged stores kept beside a store for a look; the oldest goes, so that they cannot fill the disk."""


def set_aside(directory: Path | str, reason: str) -> Path:
    """Rename a store (closed before) to `<name>.aside-<n>` and write `reason` into its file REASON; the new path.

    Keeps the last `ASIDE_KEPT`. Works on a full disk too: the reason is then missing, the rename is done.
    """
    path = Path(directory)
    prefix = f"{path.name}.aside-"
    numbers = sorted(
        int(other.name.removeprefix(prefix))
        for other in path.parent.glob(f"{prefix}*")
        if other.name.removeprefix(prefix).isdigit()
    )
    aside = path.with_name(f"{prefix}{(numbers[-1] if numbers else 0) + 1}")
    path.rename(aside)
    for number in numbers[: len(numbers) + 1 - ASIDE_KEPT]:
        shutil.rmtree(path.with_name(f"{prefix}{number}"), ignore_errors=True)
    try:
        (aside / "REASON").write_text(reason + "\n", encoding="utf-8")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return aside
