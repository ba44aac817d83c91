"""Who goes where, and under which key: the hashes that every stage shares.

They are part of the contract between journals and state: changing one is a new engine version.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream.features import PLAIN_ROWS
from topics.payment import ID_LENGTH_MAX, Payment

PID_BYTES = 16
CACHED_MAX = 400_000  # an entity comes again soon, and its hashes with it; at most about 500 bytes each
CACHED_CHARS_MAX = 2 * ID_LENGTH_MAX  # of a tenant's and an entity's id together

TABLE_GLOBALS = b"G"
TABLE_LEDGER = b"L"
TABLE_TRUTH = b"T"
TABLE_ORPHAN = b"O"
TABLE_ORPHAN_DUE = b"o"
TABLE_ENTITY = b"E"
TABLE_ANSWER = b"A"
TABLE_SHARED = b"S"
TABLE_PENDING = b"P"
TABLE_LATE_DUE = b"d"
TABLE_UNSURE = b"u"
TABLE_MARKER = b"M"
ENTITY_STORE_KEY = b"e"
_TIME_KEY = np.dtype([("table", "u1"), ("ms", ">u8"), ("pid", "V16")])


@lru_cache(maxsize=CACHED_MAX // 4)
def partition_of(tenant_id: str, entity_id: str, partitions: int) -> int:
    """The partition of an entity, by our own partitioner: what a producer's client chose does not matter.

    >>> partition_of("default", "c1", 4) == partition_of("default", "c1", 4)
    True
    """
    return xxhash.xxh3_64_intdigest(f"{tenant_id}\0{entity_id}".encode()) % partitions


def partition_of_unchecked(tenant_id: str, entity_id: str, partitions: int) -> int:
    """`partition_of` ids that nobody has measured: long ones, which are no ids, are not remembered."""
    if len(tenant_id) + len(entity_id) > CACHED_CHARS_MAX:
        return partition_of.__wrapped__(tenant_id, entity_id, partitions)
    return partition_of(tenant_id, entity_id, partitions)


def partition_of_origin(topic_id: bytes, partition: int, offset: int, partitions: int) -> int:
    """The partition of a record from which no account can be read."""
    return xxhash.xxh3_64_intdigest(b"%b%d:%d" % (topic_id, partition, offset)) % partitions


class Entity(NamedTuple):
    """What stages need of an account or a terminal: see `partition_of`, `entity_key`, `other64`. `text`: its id."""

    partition: int
    key: bytes
    number: int
    text: bytes


class _Entities:
    """What was asked for, by tenant and number of partitions; all is forgotten when there is too much of it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, Entity]] = {}
        self._count = 0

    def of(self, tenant_id: str, partitions: int) -> dict[str, Entity]:
        known = self._known.get((tenant_id, partitions))
        if known is None:
            known = self._known[tenant_id, partitions] = {}
            self._count += 1
        return known

    def make(self, tenant_id: str, entity_id: str, partitions: int) -> Entity:
        if self._count >= CACHED_MAX:
            self._known.clear()
            self._count = 0
        self._count += 1
        entity = self.of(tenant_id, partitions)[entity_id] = Entity(
            partition_of(tenant_id, entity_id, partitions),
            entity_key(tenant_id, entity_id),
            other64(tenant_id, entity_id),
            entity_id.encode(),
        )
        return entity


_entities = _Entities()


def entities_of(tenants: Sequence[str], ids: Sequence[str], partitions: int) -> list[Entity]:
    """`entity_of` each (tenant, id); at once where there is one tenant, as in most runs."""
    if len(ids) < PLAIN_ROWS or len(set(tenants)) != 1:
        return [entity_of(tenant, one, partitions) for tenant, one in zip(tenants, ids, strict=True)]
    tenant = tenants[0]
    found = list(map(_entities.of(tenant, partitions).get, ids))
    return [entity or entity_of(tenant, one, partitions) for entity, one in zip(found, ids, strict=True)]


def entity_of(tenant_id: str, entity_id: str, partitions: int) -> Entity:
    """`partitions`: of the topic on which its partition is asked for."""
    return _entities.of(tenant_id, partitions).get(entity_id) or _entities.make(tenant_id, entity_id, partitions)


def payment_hash(tenant_id: str, account_id: str, payment_id: str, test: bool = False) -> bytes:
    """128 bits that stand for (tenant, account, payment id). Payments of mode `test` have ids of their own.

    Keyed by a sender's strings, so a cryptographic hash: nobody shall craft two payments that collide.
    """
    text = f"{tenant_id}\0{account_id}\0{payment_id}\0test" if test else f"{tenant_id}\0{account_id}\0{payment_id}"
    return blake2b(text.encode(), digest_size=PID_BYTES).digest()


def pids_of(digests: NDArray[np.uint64]) -> list[bytes]:
    """Digests, uint64 (n, 2), as `payment_hash` gives them."""
    return pieces(digests.tobytes(), PID_BYTES)


def pieces(blob: bytes, size: int) -> list[bytes]:
    """Rows of one size, that stand one after the other.

    >>> pieces(b"abcd", 2)
    [b'ab', b'cd']
    """
    return [blob[at : at + size] for at in range(0, len(blob), size)]


def payment_hashes(payments: Sequence[Payment]) -> list[bytes]:
    """`payment_hash` of each."""
    return [payment_hash(p.tenant_id, p.account_id, p.payment_id, p.mode == "test") for p in payments]


def fingerprints(business_contents: Sequence[bytes]) -> list[bytes]:
    """128 bits each, that stand for a payment's business content."""
    return [blake2b(content, digest_size=16).digest() for content in business_contents]


def pid64(pid: bytes) -> int:
    """The payment's number inside a window's ring."""
    return int.from_bytes(pid[:8], "little")


def pids64(pids: Sequence[bytes]) -> NDArray[np.uint64]:
    """`pid64` of each.

    >>> pids64([bytes([1]) + bytes(15), bytes(16)])
    array([1, 0], dtype=uint64)
    """
    if len(pids) < PLAIN_ROWS:
        return np.array([pid64(pid) for pid in pids], np.uint64)
    return np.frombuffer(b"".join(pids), "<u8")[::2].astype(np.uint64)


def other64(tenant_id: str, entity_id: str) -> int:
    """An entity inside another's ring; 0 would be none."""
    return xxhash.xxh3_64_intdigest(f"{tenant_id}\0{entity_id}".encode()) or 1


def entity_key(tenant_id: str, entity_id: str) -> bytes:
    return b"E%b\0%b" % (tenant_id.encode(), entity_id.encode())


def time_key(table: bytes, at_ms: int, pid: bytes = b"") -> bytes:
    """`table`, big-endian milliseconds, payment: in order of time."""
    return table + (at_ms if at_ms > 0 else 0).to_bytes(8, "big") + pid


def time_keys(table: bytes, at_ms: Sequence[int], pids: Sequence[bytes]) -> list[bytes]:
    """`time_key` of each."""
    return [table + (ms if ms > 0 else 0).to_bytes(8, "big") + pid for ms, pid in zip(at_ms, pids, strict=True)]


def time_keys_of(table: bytes, at_ms: NDArray[np.int64], pids: NDArray[np.uint64]) -> list[bytes]:
    """`time_key` of each. `pids`: uint64 (n, 2), as `pids_of` takes them."""
    rows: Any = np.empty(len(at_ms), _TIME_KEY)
    rows["table"], rows["ms"] = table[0], np.maximum(at_ms, 0)
    rows["pid"] = pids.view(_TIME_KEY["pid"])[:, 0]
    return pieces(rows.tobytes(), _TIME_KEY.itemsize)


def epoch_key(table: bytes, epoch: int, pid: bytes = b"") -> bytes:
    return table + (epoch if epoch > 0 else 0).to_bytes(2, "big") + pid
