"""Who goes where, and under which key: the hashes that every stage shares.

They are part of the contract between journals and state: changing one is a new engine version.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import xxhash
from numpy.typing import NDArray

PID_BYTES = 16
CACHED_MAX = 100_000  # an entity comes again soon, and its hashes with it; about 200 bytes each

TABLE_GLOBALS = b"G"
TABLE_LEDGER = b"L"
TABLE_TRUTH = b"T"
TABLE_ORPHAN = b"O"
TABLE_ORPHAN_DUE = b"o"
TABLE_ENTITY = b"E"
TABLE_ANSWER = b"A"
TABLE_PENDING = b"P"
TABLE_LATE_DUE = b"d"
TABLE_UNSURE = b"u"
TABLE_MARKER = b"M"
ENTITY_STORE_KEY = b"e"


@lru_cache(maxsize=CACHED_MAX)
def partition_of(tenant_id: str, entity_id: str, partitions: int) -> int:
    """The partition of an entity, by our own partitioner: what a producer's client chose does not matter.

    >>> partition_of("default", "c1", 4) == partition_of("default", "c1", 4)
    True
    """
    return xxhash.xxh3_64_intdigest(f"{tenant_id}\0{entity_id}".encode()) % partitions


def partition_of_origin(topic_id: bytes, partition: int, offset: int, partitions: int) -> int:
    """The partition of a record from which no account can be read."""
    return xxhash.xxh3_64_intdigest(b"%b%d:%d" % (topic_id, partition, offset)) % partitions


def payment_hash(tenant_id: str, account_id: str, payment_id: str, test: bool = False) -> bytes:
    """128 bits that stand for (tenant, account, payment id). Payments of mode `test` have ids of their own.

    Keyed by a sender's strings, so a cryptographic hash: nobody shall craft two payments that collide.
    """
    text = f"{tenant_id}\0{account_id}\0{payment_id}\0test" if test else f"{tenant_id}\0{account_id}\0{payment_id}"
    return blake2b(text.encode(), digest_size=PID_BYTES).digest()


def fingerprint(business_content: bytes) -> bytes:
    """128 bits that stand for a payment's business content."""
    return blake2b(business_content, digest_size=16).digest()


def pid64(pid: bytes) -> int:
    """The payment's number inside a window's ring."""
    return int.from_bytes(pid[:8], "little")


def pids64(pids: Sequence[bytes]) -> NDArray[np.uint64]:
    """`pid64` of each.

    >>> pids64([bytes([1]) + bytes(15), bytes(16)])
    array([1, 0], dtype=uint64)
    """
    return np.frombuffer(b"".join(pids), "<u8")[::2].astype(np.uint64)


@lru_cache(maxsize=CACHED_MAX)
def other64(tenant_id: str, entity_id: str | None) -> int:
    """The other entity of a payment inside a window's ring; 0: there is none."""
    return 0 if entity_id is None else xxhash.xxh3_64_intdigest(f"{tenant_id}\0{entity_id}".encode()) or 1


@lru_cache(maxsize=CACHED_MAX)
def entity_key(tenant_id: str, entity_id: str) -> bytes:
    return b"E%b\0%b" % (tenant_id.encode(), entity_id.encode())


def time_key(table: bytes, at_ms: int, pid: bytes = b"") -> bytes:
    """`table`, big-endian milliseconds, payment: in order of time."""
    return table + (at_ms if at_ms > 0 else 0).to_bytes(8, "big") + pid


def epoch_key(table: bytes, epoch: int, pid: bytes = b"") -> bytes:
    return table + (epoch if epoch > 0 else 0).to_bytes(2, "big") + pid
