"""A stage's keyed state: what changed since the last checkpoint, laid over a store.

    live    changed since the last freeze; reads look here first
    frozen  being written by a checkpoint; reads look here next
    store   what the last checkpoint left

Keys start with one byte that names their table, so one store holds a stage's tables side by side.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
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


class _Overlay:
    """Changes that the store does not hold yet. A table's keys are put in order when it is first scanned, and from
    there on by the next scan: what came at the high end meanwhile costs nothing, and what did not, one sort."""

    def __init__(self, ordered: Iterable[int]) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.fresh: dict[int, list[bytes]] = {table: [] for table in ordered}
        self._sorted: dict[int, list[bytes]] = {table: [] for table in ordered}

    def between(self, low: bytes, high: bytes) -> list[bytes]:
        """Keys with low <= key < high, ascending."""
        if not self.values:
            return []
        if low[:1] != high[:1] or not low:
            return sorted(key for key in self.values if low <= key < high)
        keys = self._keys(low[0])
        return keys[bisect_left(keys, low) : bisect_left(keys, high)]

    def forget(self, low: bytes, high: bytes) -> None:
        """As if `[low, high)` had never changed."""
        for key in self.between(low, high):
            del self.values[key]
        for table in range(low[0], high[0] + 1) if low and high else list(self._sorted):
            if table in self._sorted:
                keys = self._keys(table)
                del keys[bisect_left(keys, low) : bisect_left(keys, high)]

    def _keys(self, table: int) -> list[bytes]:
        keys, fresh = self._sorted.get(table), self.fresh.get(table)
        if keys is None:
            keys = self._sorted[table] = sorted(key for key in self.values if key[0] == table)
            self.fresh[table] = []
        elif fresh:
            keys += fresh
            keys.sort()
            fresh.clear()
        return keys


class State:
    """Reads and writes of one stage and partition. One writer: the stage's `apply`.

    `scanned`: a table (first byte of its keys) that is often scanned: its changes are kept in order from the start.
    """

    def __init__(self, store: Store, scanned: bytes = b"") -> None:
        self._store = store
        self._ordered = set(scanned)
        self._take(_Overlay(self._ordered))
        self._frozen = _Overlay(())
        self._ranges: list[tuple[bytes, bytes]] = []

    def _take(self, overlay: _Overlay) -> None:
        self._overlay = overlay
        self._live = overlay.values
        self._fresh = overlay.fresh

    def get(self, key: bytes) -> bytes | None:
        return self.get_many((key,))[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values now, None where there is none; the store is asked once for all that no overlay holds."""
        live, frozen = self._live, self._frozen.values
        if not live and not frozen:
            return self._store.get_many(keys)
        if live.keys().isdisjoint(keys) and frozen.keys().isdisjoint(keys):
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
        if key[0] in self._fresh and key not in self._live:
            self._fresh[key[0]].append(key)
        self._live[key] = value

    def delete(self, key: bytes) -> None:
        if key[0] in self._fresh and key not in self._live:
            self._fresh[key[0]].append(key)
        self._live[key] = None

    def drop_range(self, low: bytes, high: bytes) -> None:
        """Forget `[low, high)` at the next checkpoint. Only for keys that no later step reads: the stage's own rule
        of expiry must hide them from here on, or a restart between would change what is seen."""
        self._ranges.append((low, high))
        self._overlay.forget(low, high)

    def scan(self, low: bytes, high: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with low <= key < high, ascending, overlays included."""
        if low[:1] == high[:1] and low:
            self._ordered.add(low[0])
        live, frozen = self._live, self._frozen.values
        over: dict[bytes, bytes | None] = {}
        left = limit
        for key in merge(self._frozen.between(low, high), self._overlay.between(low, high)):
            if key in over:
                continue  # in both
            value = over[key] = live[key] if key in live else frozen[key]
            if value is not None:
                left -= 1
                if not left:
                    high = key + b"\0"  # the store's keys beyond are not needed: there are enough before
                    break
        found = self._store.scan(low, high, limit + len(over))
        if not over:
            return found
        merged: dict[bytes, bytes | None] = {**dict(found), **over}
        return sorted((key, value) for key, value in merged.items() if value is not None)[:limit]

    def freeze(self) -> Changes:
        """Step 1 of a checkpoint: what changed up to now, to be written as one batch; later changes go elsewhere."""
        assert not self._frozen.values, "the checkpoint before has not been written yet"
        self._frozen = self._overlay
        self._take(_Overlay(self._ordered))
        ranges, self._ranges = self._ranges, []
        return Changes(ranges, self._frozen.values)

    def written(self) -> None:
        """The frozen changes are in the store."""
        self._frozen = _Overlay(())

    @property
    def changed(self) -> int:
        """Keys changed since the last freeze."""
        return len(self._live)
