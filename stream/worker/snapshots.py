"""Snapshots of stores at an fsspec URL: what a worker that shares no disk with the last owner starts from.

    <url>/<stage>/<partition>/files/<sha-256>                                       bytes, named by what they are
    <url>/<stage>/<partition>/manifests/<offset>-<created_ms>-<sha-256>.json        written last: the snapshot itself

RocksDB's SSTs never change, so a snapshot uploads those that are new since the one before; small files travel
inside the manifest. Nothing is ever overwritten with other bytes: a file's name is the digest of its content, and so
is the manifest's. Two uploaders of one partition (one a zombie) therefore only add snapshots; and as state is a
function of the log, any whole snapshot of a topic id at an offset is as good as another.

A snapshot is *whole* when its manifest has the digest of its name, and every file is there in its size. `latest`
skips those that are not; `restore` checks every byte. A store that was damaged before it was uploaded is found when
it is read: the caller then restores the one before (`whole` yields them all, newest first).

Threads: all functions block, hold no state of their own, and may run in any thread beside the event loop; hashing
and I/O release the GIL. One upload per store at a time (a lock on the store sees to it).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from fsspec.core import url_to_fs  # pyright: ignore[reportUnknownVariableType]
from fsspec.implementations.local import LocalFileSystem

from stream.errors import FraudstreamError
from stream.worker.room import Room
from stream.worker.store import FULL_ERRNOS, RocksStore, StoreFull
from topics.undecodable import UNDECODABLE

T = TypeVar("T")

# SnapshotError
# ├── SnapshotUnavailable         the store of snapshots cannot be reached: go on, alarm, try again later
# └── SnapshotTorn                this snapshot is not what was uploaded: take the one before


class SnapshotError(FraudstreamError):
    """A snapshot could not be written or read."""


class SnapshotUnavailable(SnapshotError):
    """The snapshot URL cannot be reached or refuses us. Work goes on without; the operator is alarmed."""


class SnapshotTorn(SnapshotError):
    """A file or manifest is missing, short, or not what its digest says. It is never used."""


MANIFEST_LAYOUT = 1
INLINE_BYTES_MAX = 64 << 10  # of a file that travels inside the manifest
FILES_MAX = 10_000  # of one snapshot: 320 GB at 32 MB a file
MANIFEST_BYTES_MAX = 16 << 20
CHUNK_BYTES = 1 << 20
TRANSFERS = 4  # files at a time

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
ALL_MS = DAY_MS  # every snapshot younger than this is kept,
HOURLY_MS = 7 * DAY_MS  # then one an hour,
DAILY_MS = 35 * DAY_MS  # then one a day: as long as the journals, from which an older one could not go on
NEWEST_KEPT = 2  # whatever their age
GRACE_MS = 6 * HOUR_MS

assert GRACE_MS < ALL_MS, "a file of an upload under way is left alone, and gone long before its snapshot would be"
assert FILES_MAX * 200 + INLINE_BYTES_MAX * 16 < MANIFEST_BYTES_MAX, "a full manifest can be read back"


class SnapshotFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a store. `size` in bytes; `sha256` in hex; `inline`: its bytes, else they are in `files/`."""

    name: str
    size: int
    sha256: str
    inline: bytes | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot: the state of a stage's partition before the record at `offset`, and what makes it usable.

    `topic_id`: the journal's UUID, hex. `engine`: the engine version that wrote the state. `created_ms`: UTC epoch ms
    by the uploader's clock, used for thinning only. `meta`: the caller's.
    """

    layout: int
    stage: str
    partition: int
    topic_id: str
    offset: int
    engine: str
    created_ms: int
    files: list[SnapshotFile]
    meta: dict[str, str] = {}

    @property
    def size_bytes(self) -> int:
        """Of all its files: what a restore writes."""
        return sum(file.size for file in self.files)


# --- upload -----------------------------------------------------------------------------------------------------


def upload(
    store: RocksStore,
    url: str,
    *,
    stage: str,
    partition: int,
    offset: int,
    topic_id: str,
    engine: str,
    now_ms: int,
    meta: Mapping[str, str] | None = None,
) -> Manifest:
    """Take a RocksDB checkpoint of `store` and upload what is new; the manifest, written last.

    `offset` must be what the store's last write holds: either no write may run meanwhile, or use
    `take_checkpoint` right after the write, and `upload_directory` later in a thread.
    Raises `SnapshotUnavailable`, `StoreFull`, `StoreCorrupt`. Whatever it raises, nothing was harmed.
    """
    taken = take_checkpoint(store)
    try:
        return upload_directory(
            taken, url, stage=stage, partition=partition, offset=offset, topic_id=topic_id, engine=engine,
            now_ms=now_ms, meta=meta, digests=store.digests,
        )  # fmt: skip
    finally:
        shutil.rmtree(taken, ignore_errors=True)


def take_checkpoint(store: RocksStore) -> Path:
    """A frozen copy of `store` beside it (hard links, milliseconds after a flush). The caller removes it.

    Leftovers of a process that died are removed here. Raises `StoreFull`, `StoreCorrupt`.
    """
    for leftover in store.directory.parent.glob(f"{store.directory.name}.checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    taken = store.directory.with_name(f"{store.directory.name}.checkpoint-{uuid.uuid4().hex}")
    store.checkpoint(taken)
    return taken


def upload_directory(
    directory: Path,
    url: str,
    *,
    stage: str,
    partition: int,
    offset: int,
    topic_id: str,
    engine: str,
    now_ms: int,
    meta: Mapping[str, str] | None = None,
    digests: dict[str, str] | None = None,
) -> Manifest:
    """Upload a checkpoint's files and then its manifest. `digests`: SHA-256 by SST name, kept between calls.

    A file that is there already, by name and size, is not sent again. After the manifest is written its files are
    looked for once more, so a `thin` that collected one meanwhile is made good. Raises `SnapshotUnavailable`.
    """
    known = digests if digests is not None else {}
    local = sorted(path for path in directory.iterdir() if path.is_file() and path.name not in _LEFT_OUT)
    assert len(local) <= FILES_MAX, f"{len(local)} files in one store"
    for gone in known.keys() - {path.name for path in local}:
        del known[gone]
    files: list[SnapshotFile] = []
    for path in local:
        size = path.stat().st_size
        immutable = path.suffix == ".sst"
        if not immutable and size <= INLINE_BYTES_MAX:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            files.append(SnapshotFile(name=path.name, size=size, sha256=digest, inline=content))
            continue
        digest = known[path.name] if immutable and path.name in known else _digest(path)
        if immutable:
            known[path.name] = digest
        files.append(SnapshotFile(name=path.name, size=size, sha256=digest))

    manifest = Manifest(
        layout=MANIFEST_LAYOUT, stage=stage, partition=partition, topic_id=topic_id, offset=offset, engine=engine,
        created_ms=now_ms, files=files, meta=dict(meta or {}),
    )  # fmt: skip
    place = _Place(url, stage, partition)
    _send_missing(place, directory, files)
    body = msgspec.json.encode(manifest)
    assert len(body) <= MANIFEST_BYTES_MAX
    place.put_bytes(body, f"manifests/{_manifest_name(manifest, body)}")
    _send_missing(place, directory, files)
    return manifest


_LEFT_OUT = frozenset({"LOCK", "LOG", "IDENTITY", "REASON"})


def _send_missing(place: _Place, directory: Path, files: list[SnapshotFile]) -> None:
    there = place.sizes("files")
    missing = {file.sha256: file for file in files if file.inline is None and there.get(file.sha256) != file.size}
    _each(lambda file: place.put_file(directory / file.name, f"files/{file.sha256}"), list(missing.values()))


# --- look-up ----------------------------------------------------------------------------------------------------


def latest(url: str, stage: str, partition: int, *, topic_id: str | None = None) -> Manifest | None:
    """The whole snapshot with the highest offset (of `topic_id`, if given), or None. Raises `SnapshotUnavailable`."""
    return next(whole(url, stage, partition, topic_id=topic_id), None)


def whole(url: str, stage: str, partition: int, *, topic_id: str | None = None) -> Iterator[Manifest]:
    """All whole snapshots, the highest offset first; torn ones are skipped. Raises `SnapshotUnavailable`."""
    place = _Place(url, stage, partition)
    there = place.sizes("files")
    for name in sorted(place.sizes("manifests"), reverse=True):
        try:
            manifest = _read_manifest(place, name)
        except SnapshotTorn:
            continue
        if topic_id is not None and manifest.topic_id != topic_id:
            continue
        if _is_whole(manifest, there):
            yield manifest


def _is_whole(manifest: Manifest, there: Mapping[str, int]) -> bool:
    return all(file.inline is not None or there.get(file.sha256) == file.size for file in manifest.files)


_MANIFEST_NAME = re.compile(r"(\d{20})-(\d{15})-([0-9a-f]{64})\.json")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _manifest_name(manifest: Manifest, body: bytes) -> str:
    return f"{manifest.offset:020d}-{manifest.created_ms:015d}-{hashlib.sha256(body).hexdigest()}.json"


def _read_manifest(place: _Place, name: str) -> Manifest:
    parts = _MANIFEST_NAME.fullmatch(name)
    if parts is None:
        raise SnapshotTorn(f"{place}/manifests/{name}: not a manifest's name")
    return decode_manifest(
        place.get_bytes(f"manifests/{name}", MANIFEST_BYTES_MAX), parts[3], place.stage, place.partition
    )


def decode_manifest(body: bytes, sha256: str, stage: str, partition: int) -> Manifest:
    """The manifest in `body`, which must have the digest `sha256` and belong to `stage` and `partition`.

    File names are plain names, so that a restore cannot write elsewhere. Raises `SnapshotTorn`.
    """
    if hashlib.sha256(body).hexdigest() != sha256:
        raise SnapshotTorn(f"manifest {sha256[:12]}: its bytes do not have the digest of its name")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except UNDECODABLE as error:
        raise SnapshotTorn(f"manifest {sha256[:12]}: {error}") from error
    if manifest.layout != MANIFEST_LAYOUT:
        raise SnapshotTorn(f"manifest {sha256[:12]}: layout {manifest.layout}, this release reads {MANIFEST_LAYOUT}")
    if (manifest.stage, manifest.partition) != (stage, partition):
        raise SnapshotTorn(f"manifest {sha256[:12]}: of {manifest.stage}[{manifest.partition}]")
    names = {file.name for file in manifest.files}
    if len(names) != len(manifest.files) or len(names) > FILES_MAX:
        raise SnapshotTorn(f"manifest {sha256[:12]}: a file is named twice, or there are too many")
    for file in manifest.files:
        if not _FILE_NAME.fullmatch(file.name) or not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise SnapshotTorn(f"manifest {sha256[:12]}: not a file of a store: {file.name!r}")
    return manifest


# --- restore ----------------------------------------------------------------------------------------------------


def restore(url: str, manifest: Manifest, directory: Path | str, *, room: Room | None = None) -> None:
    """Make `directory`, which must not exist, from a snapshot; every file's SHA-256 is checked on the way.

    Written beside it and renamed when whole, so a crash leaves no half store. `room`: of the file system that
    `directory` is on; with it nothing is written of a snapshot that does not fit.
    Raises `SnapshotTorn` (take the one before), `SnapshotUnavailable`, `StoreFull` (here), `FileExistsError`.
    """
    path = Path(directory)
    if path.exists():
        raise FileExistsError(errno.EEXIST, "a restore never overwrites a store: set it aside first", str(path))
    for leftover in path.parent.glob(f"{path.name}.restoring-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # before room is asked for: it may be in there
    place = _Place(url, manifest.stage, manifest.partition)
    making = path.with_name(f"{path.name}.restoring-{uuid.uuid4().hex}")
    try:
        with _promised(room, manifest.size_bytes) as wrote:
            making.mkdir(parents=True)
            _each(lambda file: _fetch(place, file, making, wrote), manifest.files)
            _sync_directory(making)
            making.rename(path)
            _sync_directory(path.parent)
    except OSError as error:
        if error.errno in FULL_ERRNOS:
            raise StoreFull(f"{path}: no room to restore a snapshot: {error}") from error
        raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _promised(room: Room | None, size_bytes: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    return contextlib.nullcontext(lambda _: None) if room is None else room.promised(size_bytes)


def _fetch(place: _Place, file: SnapshotFile, directory: Path, wrote: Callable[[int], None]) -> None:
    digest = hashlib.sha256()
    size = 0
    chunks = iter((file.inline,)) if file.inline is not None else place.chunks(f"files/{file.sha256}")
    with open(directory / file.name, "wb") as out:
        for chunk in chunks:
            size += len(chunk)
            if size > file.size:
                break
            digest.update(chunk)
            out.write(chunk)
            wrote(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if size != file.size or digest.hexdigest() != file.sha256:
        raise SnapshotTorn(
            f"{place}: {file.name} is not what the manifest says ({file.sha256[:12]}, {file.size} bytes)"
        )


# --- thinning ---------------------------------------------------------------------------------------------------


class Thinned(msgspec.Struct, frozen=True):
    """What one `thin` did: snapshots kept and removed, files removed, and their bytes."""

    kept: int
    removed: int
    files_removed: int
    bytes_removed: int


def thin(url: str, stage: str, partition: int, *, now_ms: int, grace_ms: int = GRACE_MS) -> Thinned:
    """Keep all of a day, one an hour of a week, one a day of 35 days, and the newest two; then collect files.

    A file is collected when no manifest referenced it *before* this call and it was written `grace_ms` ago; so an
    uploader has at least the time between two calls to name a file that it found, and looks again afterwards.
    Of an hour (a day) the highest offset stays. A torn manifest goes once it is older than `grace_ms`.
    Raises `SnapshotUnavailable`; may be called again at any time, and by several at once.
    """
    place = _Place(url, stage, partition)
    there = place.sizes("files")  # before the manifests: what is uploaded from here on is not looked at
    manifests: dict[str, Manifest] = {}
    torn: list[str] = []
    for name in sorted(place.sizes("manifests"), reverse=True):
        try:
            manifest = _read_manifest(place, name)
        except SnapshotTorn:
            torn.append(name)
            continue
        # What was written since the files were listed cannot be judged by that list.
        young = now_ms - manifest.created_ms < grace_ms
        if young or _is_whole(manifest, there):
            manifests[name] = manifest
        else:
            torn.append(name)

    referenced = {file.sha256 for manifest in manifests.values() for file in manifest.files}
    kept = _kept(manifests, now_ms)
    removed = [name for name in manifests if name not in kept]
    for name in removed:
        place.remove(f"manifests/{name}")
    for name in torn:
        if place.age_ms(f"manifests/{name}", now_ms) >= grace_ms:
            place.remove(f"manifests/{name}")
            removed.append(name)
    files_removed = bytes_removed = 0
    for name, size in there.items():
        if name not in referenced and place.age_ms(f"files/{name}", now_ms) >= grace_ms:
            place.remove(f"files/{name}")
            files_removed += 1
            bytes_removed += size
    return Thinned(len(kept), len(removed), files_removed, bytes_removed)


def _kept(manifests: Mapping[str, Manifest], now_ms: int) -> set[str]:
    """Names to keep, of `manifests` in descending order of offset."""
    kept: set[str] = set()
    taken: set[tuple[str, str, int]] = set()
    newest: dict[str, int] = {}
    for name, manifest in manifests.items():
        topic = manifest.topic_id  # a topic made again has offsets of its own
        newest[topic] = newest.get(topic, 0) + 1
        age_ms = now_ms - manifest.created_ms
        if newest[topic] <= NEWEST_KEPT or age_ms < ALL_MS:
            kept.add(name)
            continue
        if age_ms < HOURLY_MS:
            place = (topic, "hour", manifest.created_ms // HOUR_MS)
        elif age_ms < DAILY_MS:
            place = (topic, "day", manifest.created_ms // DAY_MS)
        else:
            continue
        if place not in taken:
            taken.add(place)
            kept.add(name)
    return kept


# --- the place --------------------------------------------------------------------------------------------------


class _Place:
    """The folder of one stage and partition, through fsspec; its errors become `SnapshotUnavailable`."""

    def __init__(self, url: str, stage: str, partition: int) -> None:
        assert _FILE_NAME.fullmatch(stage), f"not a folder's name: {stage!r}"
        self.stage = stage
        self.partition = partition
        self._url = url
        # fsspec has no types; this class is the only one that touches it.
        self._fs, root = self._named(lambda: cast("tuple[Any, str]", url_to_fs(url)))
        self._root = f"{root.rstrip('/')}/{stage}/{partition}"
        self._local = isinstance(self._fs, LocalFileSystem)

    def __str__(self) -> str:
        return f"{self._url}/{self.stage}/{self.partition}"

    def _named(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except SnapshotError:
            raise
        except Exception as error:  # each backend has its own exceptions: all mean that it did not work
            raise SnapshotUnavailable(f"{self._url}: {type(error).__name__}: {error}") from error

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of each file in `folder`, by name. Unfinished local ones are left out."""

        def ask() -> dict[str, int]:
            self._fs.invalidate_cache()
            try:
                rows = cast("list[dict[str, Any]]", self._fs.ls(f"{self._root}/{folder}", detail=True))
            except FileNotFoundError:
                return {}
            return {
                name: int(row["size"])
                for row in rows
                if row["type"] == "file" and not (name := str(row["name"]).rsplit("/", 1)[-1]).endswith(".part")
            }

        return self._named(ask)

    def put_file(self, source: Path, name: str) -> None:
        def send() -> None:
            with open(source, "rb") as file:
                self._put(iter(lambda: file.read(CHUNK_BYTES), b""), name)

        self._named(send)

    def put_bytes(self, body: bytes, name: str) -> None:
        self._named(lambda: self._put(iter((body,)), name))

    def _put(self, chunks: Iterator[bytes], name: str) -> None:
        """Whole or not at all: object stores show an object when it is complete; a local file is renamed."""
        target = f"{self._root}/{name}"
        self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if not self._local:
            with self._fs.open(target, "wb") as out:
                for chunk in chunks:
                    out.write(chunk)
            return
        part = f"{target}.{uuid.uuid4().hex}.part"
        try:
            with open(part, "wb") as out:
                for chunk in chunks:
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        _sync_directory(Path(target).parent)

    def get_bytes(self, name: str, size_max: int) -> bytes:
        def read() -> bytes:
            try:
                with self._fs.open(f"{self._root}/{name}", "rb") as file:
                    return cast("bytes", file.read(size_max + 1))
            except FileNotFoundError as error:
                raise SnapshotTorn(f"{self}/{name}: gone") from error

        return self._named(read)

    def chunks(self, name: str) -> Iterator[bytes]:
        def begin() -> Any:
            try:
                return self._fs.open(f"{self._root}/{name}", "rb")
            except FileNotFoundError as error:
                raise SnapshotTorn(f"{self}/{name}: gone") from error

        with self._named(begin) as file:
            while chunk := self._named(lambda: cast("bytes", file.read(CHUNK_BYTES))):
                yield chunk

    def age_ms(self, name: str, now_ms: int) -> int:
        """Since it was written, by the store's clock for the one and ours for the other; 0 when it is gone."""

        def ask() -> int:
            try:
                return now_ms - int(self._fs.modified(f"{self._root}/{name}").timestamp() * 1000)
            except FileNotFoundError:
                return 0

        return self._named(ask)

    def remove(self, name: str) -> None:
        def ask() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{name}")

        self._named(ask)


def _each(call: Callable[[SnapshotFile], None], files: list[SnapshotFile]) -> None:
    """Some at a time; the first error ends it, after those that had begun."""
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="snapshot") as pool:
        futures = [pool.submit(call, file) for file in files]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    """So that a rename in it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
