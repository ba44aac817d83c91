"""Journals as files, so that they can be applied again elsewhere, by anyone, without a broker.

One file a partition, `<topic>-<partition>.journal.zst`: one Zstandard frame of

    MAGIC
    u32 length | msgpack `Head`                                    which topic, which partition, which engine
    u32 length | msgpack [offset, at_ms, key, value, headers]      one a record, in order of offset
    ...
    u32 END    | u64 count of records                              without it, the file is not whole

Integers are little-endian. `at_ms`: the broker's time, UTC; `headers`: [[name, value], ...]. `offset` is the record's
own, so gaps that a foreign topic may have are kept.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
from msgspec import Struct

from stream.errors import OperatorError
from stream.stages.stage import Record
from topics.undecodable import UNDECODABLE

MAGIC: Final = b"fraudstream journal 1\n"
SUFFIX: Final = ".journal.zst"
END: Final = 0xFFFF_FFFF
RECORD_BYTES_MAX: Final = 16_777_216
READ_BYTES: Final = 1_048_576

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class JournalDamaged(OperatorError):
    """The file is no journal, or not a whole one. The message says which, and where."""


class Head(Struct, frozen=True, kw_only=True):
    """`topic`: its name without prefix; `topic_id`: 16 bytes; `partitions`: of the topic; `engine`: that wrote it;
    `first_offset`: of the partition when it was written, above 0 when retention had deleted records."""

    topic: str
    topic_id: bytes
    partition: int
    partitions: int
    engine: int
    first_offset: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_record = msgspec.msgpack.Decoder(
    tuple[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
).decode


def file_name(topic: str, partition: int) -> str:
    return f"{topic}-{partition}{SUFFIX}"


class JournalWriter:
    """Writes one partition. A context manager: left by an exception, the file has no end, and is refused when read."""

    def __init__(self, directory: Path, head: Head) -> None:
        self.path = directory / file_name(head.topic, head.partition)
        self.count = 0
        self._head = head
        self._out: Any = None

    def __enter__(self) -> "JournalWriter":
        self._out = pa.CompressedOutputStream(str(self.path), "zstd")
        self._out.write(MAGIC + _framed(_encode(self._head)))
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._out.write(_U32.pack(END) + _U64.pack(self.count))
        self._out.close()

    def add(self, records: Sequence[Record]) -> None:
        """Append records, in order of offset."""
        self.count += len(records)
        self._out.write(
            b"".join(
                _framed(_encode((record.offset, record.at_ms, record.key, record.value, list(record.headers))))
                for record in records
            )
        )


def _framed(body: bytes) -> bytes:
    return _U32.pack(len(body)) + body


class JournalReader:
    """Reads one file. `head` is known at once; `records` goes through it once. Raises `JournalDamaged`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._buffer = b""
        self._at = 0
        try:
            self._in: Any = pa.CompressedInputStream(str(path), "zstd")
        except OSError as error:
            raise JournalDamaged(f"{path}: {error}") from error
        if self._take(len(MAGIC)) != MAGIC:
            raise JournalDamaged(f"{path}: not a journal of this layout")
        try:
            self.head = _decode_head(self._take(self._length()))
        except UNDECODABLE as error:
            raise JournalDamaged(f"{path}: its head: {error}") from error

    def records(self) -> Iterator[Record]:
        count = 0
        while (length := self._length()) != END:
            try:
                offset, at_ms, key, value, headers = _decode_record(self._take(length))
            except UNDECODABLE as error:
                raise JournalDamaged(f"{self.path}: record {count}: {error}") from error
            yield Record(offset, at_ms, key, value, tuple(headers))
            count += 1
        (expected,) = _U64.unpack(self._take(_U64.size))
        if expected != count:
            raise JournalDamaged(f"{self.path}: {count} records, its end says {expected}")

    def _length(self) -> int:
        (length,) = _U32.unpack(self._take(_U32.size))
        if length != END and length > RECORD_BYTES_MAX:
            raise JournalDamaged(f"{self.path}: a record of {length} bytes")
        return length

    def _take(self, count: int) -> bytes:
        while len(self._buffer) - self._at < count:
            try:
                more: bytes = self._in.read(READ_BYTES)
            except OSError as error:
                raise JournalDamaged(f"{self.path}: {error}") from error
            if not more:
                raise JournalDamaged(f"{self.path}: ends before its end: not written to the end, or cut")
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        taken = self._buffer[self._at : self._at + count]
        self._at += count
        return taken


def journals_in(directory: Path) -> dict[tuple[str, int], Path]:
    """The files of a directory by (topic, partition). Raises `JournalDamaged` if one is not named as its head says."""
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        head = JournalReader(path).head
        if path.name != file_name(head.topic, head.partition):
            raise JournalDamaged(f"{path}: holds {head.topic}[{head.partition}]")
        found[head.topic, head.partition] = path
    return found
