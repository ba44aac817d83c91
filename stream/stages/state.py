"""A stage's keyed state: what changed since the last checkpoint, laid over a store.

    live    changed since the last freeze; reads look here first
    frozen  being written by a checkpoint; reads look here next
    store   what the last checkpoint left

Keys start with one byte that names their table, so one store holds a stage's tables side by side.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from heapq import merge
from typing import NamedTuple, Protocol, cast

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


class _Ordered:
    """The keys of one table in order. What is added is put in its place when something is asked that it may be part of:
    what came at the high end meanwhile, as most does where keys are times, costs next to nothing."""

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._keys = sorted(keys)
        self._fresh: list[bytes] = []
        self._fresh_low = HIGHEST

    def add(self, keys: Collection[bytes]) -> None:
        """Keys that are not held yet."""
        if keys:
            self._fresh += keys
            self._fresh_low = min(self._fresh_low, min(keys))

    def _below(self, high: bytes) -> list[bytes]:
        """Keys in order, among them all below `high`."""
        keys, fresh = self._keys, self._fresh
        if fresh and self._fresh_low < high:
            at = bisect_left(keys, self._fresh_low)
            keys[at:] = sorted(keys[at:] + fresh)
            fresh.clear()
            self._fresh_low = HIGHEST
        return keys

    def between(self, low: bytes, high: bytes, limit: int | None = None) -> list[bytes]:
        """Keys with low <= key < high, ascending, at most `limit` of them."""
        keys = self._below(high)
        first, last = bisect_left(keys, low), bisect_left(keys, high)
        return keys[first : last if limit is None else min(last, first + limit)]

    def remove_between(self, low: bytes, high: bytes) -> None:
        keys = self._below(high)
        del keys[bisect_left(keys, low) : bisect_left(keys, high)]

    def remove(self, key: bytes) -> None:
        """A key that is held."""
        keys = self._below(key + b"\0")
        del keys[bisect_left(keys, key)]


def _remove_between(ordered: dict[int, _Ordered], low: bytes, high: bytes) -> None:
    for table, keys in ordered.items():
        if low[:1] <= bytes([table]) <= high[:1]:  # to ask another one would put it in order, each time
            keys.remove_between(low, high)


class MemoryStore:
    """A store in memory, for tests, simulation and off-line runs.

    A table's keys are put in order when it is first scanned or dropped from, and kept so from there on: most tables
    never are.
    """

    def __init__(self) -> None:
        self._pairs: dict[bytes, bytes] = {}
        self._ordered: dict[int, _Ordered] = {}

    def get_many(self, keys: Sequence[bytes], /) -> list[bytes | None]:
        return list(map(self._pairs.get, keys))

    def scan(self, low: bytes, high: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        pairs = self._pairs
        return [(key, pairs[key]) for key in self._between(low, high, limit)]

    def write(self, changes: Changes) -> None:
        pairs, ordered, writes = self._pairs, self._ordered, changes.writes
        for low, high in changes.ranges:
            for key in self._between(low, high):
                del pairs[key]
            _remove_between(ordered, low, high)
        gone = [key for key, value in writes.items() if value is None]
        for key in gone:
            if pairs.pop(key, None) is not None and key[0] in ordered:
                ordered[key[0]].remove(key)
        for table, keys in ordered.items():
            keys.add([key for key in writes if key[0] == table and key not in pairs and writes[key] is not None])
        pairs.update(cast("dict[bytes, bytes]", writes))
        for key in gone:
            del pairs[key]

    def pairs(self) -> Iterable[tuple[bytes, bytes]]:
        """All that is stored, in order of key."""
        return sorted(self._pairs.items())

    def copy(self) -> "MemoryStore":
        twin = MemoryStore()
        twin._pairs = self._pairs.copy()
        return twin

    def _between(self, low: bytes, high: bytes, limit: int | None = None) -> list[bytes]:
        """Keys with low <= key < high, ascending."""
        if low[:1] != high[:1] or not low:
            return sorted(key for key in self._pairs if low <= key < high)[:limit]
        table = low[0]
        if table not in self._ordered:
            self._ordered[table] = _Ordered(key for key in self._pairs if key[0] == table)
        return self._ordered[table].between(low, high, limit)


class _Overlay:
    """Changes that the store does not hold yet. A table's keys are put in order when it is first scanned, and kept so
    from there on."""

    def __init__(self, ordered: Iterable[int]) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.ordered: dict[int, _Ordered] = {table: _Ordered() for table in ordered}

    def between(self, low: bytes, high: bytes) -> list[bytes]:
        """Keys with low <= key < high, ascending."""
        if not self.values:
            return []
        if low[:1] != high[:1] or not low:
            return sorted(key for key in self.values if low <= key < high)
        table = low[0]
        if table not in self.ordered:
            self.ordered[table] = _Ordered(key for key in self.values if key[0] == table)
        return self.ordered[table].between(low, high)

    def forget(self, low: bytes, high: bytes) -> None:
        """As if `[low, high)` had never changed."""
        for key in self.between(low, high):
            del self.values[key]
        _remove_between(self.ordered, low, high)


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
        self._live_ordered = overlay.ordered

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
        self._change(key, value)

    def put_all(self, table: bytes, values: dict[bytes, bytes]) -> None:
        """`put` of each, in their order; all keys are of one table."""
        ordered, live = self._live_ordered.get(table[0]), self._live
        if ordered is not None:
            ordered.add(values if live.keys().isdisjoint(values) else [key for key in values if key not in live])
        live.update(values)

    def delete(self, key: bytes) -> None:
        self._change(key, None)

    def _change(self, key: bytes, value: bytes | None) -> None:
        ordered = self._live_ordered.get(key[0])
        if ordered is not None and key not in self._live:
            ordered.add((key,))
        self._live[key] = value

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
