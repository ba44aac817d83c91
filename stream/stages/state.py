"""A stage's keyed state: what changed since the last checkpoint, laid over a store.

    live    changed since the last freeze; reads look here first
    frozen  being written by a checkpoint; reads look here next
    store   what the last checkpoint left

Keys start with one byte that names their table, so one store holds a stage's tables side by side.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from sortedcontainers import SortedList

HIGHEST = b"\xff" * 64


class Store(Protocol):
    """What a stage needs of its store. RocksDB in the worker, a dict in tests and off-line."""

    def get_many(self, keys: Sequence[bytes], /) -> list[bytes | None]: ...

    def scan(self, low: bytes, high: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with low <= key < high, ascending."""
        ...


class Changes(NamedTuple):
    """One checkpoint's writes: a value of None deletes; `ranges` are `[low, high)` and come first."""

    ranges: list[tuple[bytes, bytes]]
    writes: dict[bytes, bytes | None]


class MemoryStore:
    """A store in memory, for tests, simulation and off-line runs.

    A table's keys are put in order when it is first scanned or dropped from, and kept so from there on: most tables
    never are, and order costs several times what a dict does.
    """

    def __init__(self) -> None:
        self._pairs: dict[bytes, bytes] = {}
        self._ordered: dict[int, SortedList] = {}

    def get_many(self, keys: Sequence[bytes], /) -> list[bytes | None]:
        return list(map(self._pairs.get, keys))

    def scan(self, low: bytes, high: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        pairs = self._pairs
        return [(key, pairs[key]) for key in islice(self._between(low, high), limit)]

    def write(self, changes: Changes) -> None:
        pairs, ordered = self._pairs, self._ordered
        for low, high in changes.ranges:
            for key in list(self._between(low, high)):
                self._remove(key)
        fresh: dict[int, list[bytes]] = {table: [] for table in ordered}
        for key, value in changes.writes.items():
            if value is None:
                if key in pairs:
                    self._remove(key)
                continue
            if key[0] in ordered and key not in pairs:
                fresh[key[0]].append(key)
            pairs[key] = value
        for table, keys in fresh.items():
            ordered[table].update(keys)

    def pairs(self) -> Iterable[tuple[bytes, bytes]]:
        """All that is stored, in order of key."""
        return sorted(self._pairs.items())

    def copy(self) -> "MemoryStore":
        twin = MemoryStore()
        twin._pairs = self._pairs.copy()
        return twin

    def _remove(self, key: bytes) -> None:
        del self._pairs[key]
        if key[0] in self._ordered:
            self._ordered[key[0]].remove(key)

    def _between(self, low: bytes, high: bytes) -> Iterator[bytes]:
        """Keys with low <= key < high, ascending."""
        if low[:1] != high[:1] or not low:
            return iter(sorted(key for key in self._pairs if low <= key < high))
        table = low[0]
        if table not in self._ordered:
            self._ordered[table] = SortedList(key for key in self._pairs if key[0] == table)
        return self._ordered[table].irange(low, high, inclusive=(True, False))


class State:
    """Reads and writes of one stage and partition. One writer: the stage's `apply`.

    `scanned`: the table (first byte of its keys) that is often scanned from a rising floor while new keys come at its
    high end. Of it the overlays' lowest key above that floor is kept, so that a scan looks through them in need only.
    Of all others it is known whether an overlay holds any key.
    """

    def __init__(self, store: Store, scanned: bytes = b"") -> None:
        self._store = store
        self._scanned = scanned[0] if scanned else -1
        self._floor = b""
        self._live_lowest = self._frozen_lowest = HIGHEST
        self._live_tables: set[int] = set()
        self._frozen_tables: set[int] = set()
        self._live: dict[bytes, bytes | None] = {}
        self._ranges: list[tuple[bytes, bytes]] = []
        self._frozen: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.get_many((key,))[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values now, None where there is none; the store is asked once for all that no overlay holds."""
        live, frozen = self._live, self._frozen
        if not live and not frozen:
            return self._store.get_many(keys)
        found: list[bytes | None] = [None] * len(keys)
        missing: list[bytes] = []
        places: list[int] = []
        for i, key in enumerate(keys):
            if key in live:
                found[i] = live[key]
            elif key in frozen:
                found[i] = frozen[key]
            else:
                missing.append(key)
                places.append(i)
        if missing:
            for i, value in zip(places, self._store.get_many(missing), strict=True):
                found[i] = value
        return found

    def put(self, key: bytes, value: bytes) -> None:
        self._live[key] = value
        self._live_tables.add(key[0])
        if key[0] == self._scanned and self._floor <= key < self._live_lowest:
            self._live_lowest = key

    def delete(self, key: bytes) -> None:
        self._live[key] = None
        self._live_tables.add(key[0])
        if key[0] == self._scanned and self._floor <= key < self._live_lowest:
            self._live_lowest = key

    def drop_range(self, low: bytes, high: bytes) -> None:
        """Forget `[low, high)` at the next checkpoint. Only for keys that no later step reads: the stage's own rule
        of expiry must hide them from here on, or a restart between would change what is seen."""
        self._ranges.append((low, high))
        if low[:1] != high[:1] or low[0] in self._live_tables:
            for key in [key for key in self._live if low <= key < high]:
                del self._live[key]

    def scan(self, low: bytes, high: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with low <= key < high, ascending, overlays included."""
        ordered = low[0] == self._scanned
        if ordered and low >= self._floor and high <= self._frozen_lowest and high <= self._live_lowest:
            found = self._store.scan(low, high, limit)
            self._floor = high if len(found) < limit else found[-1][0]
            return found
        over: dict[bytes, bytes | None] = {}
        for overlay, tables in ((self._frozen, self._frozen_tables), (self._live, self._live_tables)):
            if low[:1] != high[:1] or low[0] in tables:
                over.update((key, value) for key, value in overlay.items() if low <= key < high)
        found = self._store.scan(low, high, limit + len(over))
        if over:
            merged: dict[bytes, bytes | None] = {**dict(found), **over}
            found = sorted((key, value) for key, value in merged.items() if value is not None)
        found = found[:limit]
        if ordered:
            self._floor = high if len(found) < limit else found[-1][0]
            self._frozen_lowest = self._lowest(self._frozen)
            self._live_lowest = self._lowest(self._live)
        return found

    def _lowest(self, overlay: dict[bytes, bytes | None]) -> bytes:
        """The lowest key of the scanned table in `overlay` that is not below the floor."""
        return min((key for key in overlay if key[0] == self._scanned and key >= self._floor), default=HIGHEST)

    def freeze(self) -> Changes:
        """Step 1 of a checkpoint: what changed up to now, to be written as one batch; later changes go elsewhere."""
        assert not self._frozen, "the checkpoint before has not been written yet"
        self._frozen, self._live = self._live, {}
        self._frozen_tables, self._live_tables = self._live_tables, set()
        self._frozen_lowest, self._live_lowest = self._live_lowest, HIGHEST
        ranges, self._ranges = self._ranges, []
        return Changes(ranges, self._frozen)

    def written(self) -> None:
        """The frozen changes are in the store."""
        self._frozen = {}
        self._frozen_tables = set()
        self._frozen_lowest = HIGHEST

    @property
    def changed(self) -> int:
        """Keys changed since the last freeze."""
        return len(self._live)
