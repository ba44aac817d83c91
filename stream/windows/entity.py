"""Recent payments of many entities in flat arrays, and the features of each new payment as of its own time."""

import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from types import FunctionType
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from stream.errors import InternalError
from stream.windows import kernel

HISTORY_MS: Final = 90 * kernel.DAY_MS
ENTRIES_MAX: Final = 256
STORE_KEY: Final = b""  # the key of what belongs to the store itself, not to one of its entities

FEW: Final = 8  # for fewer keys than this, lists are quicker than numpy's iterators
NO_RATIOS: Final = np.zeros(0, np.float32)


class Observations(NamedTuple):
    """Payments in the order in which they arrived, one row each; C-contiguous arrays of one length n."""

    event_ms: NDArray[np.int64]
    """UTC epoch, ms."""
    amount: NDArray[np.int64]
    """Minor units of the base currency; -1: absent."""
    other: NDArray[np.uint64]
    """Hash of the terminal for an account, of the account for a terminal; 0: absent."""
    payment: NDArray[np.uint64]
    """Hash of the payment id; its low 28 bits are kept, and tell apart payments of one entity and ms."""
    category: NDArray[np.int32]
    """Merchant category (ISO 18245), 1 to 65535; 0: absent."""
    minute_of_week: NDArray[np.int32]
    """Local time, 0 = Monday 00:00; -1: absent."""
    latitude: NDArray[np.float32]
    """Degrees; NaN: absent."""
    longitude: NDArray[np.float32]
    label_clock: NDArray[np.int64]
    """The labels' clock when the row arrived, UTC epoch ms."""
    counts: NDArray[np.bool_]
    """False: features are computed as if it were placed, but nothing is remembered (mode test, refunds)."""
    payer_ratio: NDArray[np.float32] | None = None
    """Terminal stage: the account's `amount_ratio`, so that a fraud can be told to have had an ordinary amount for its
    payer. None: the entity's own habit decides."""


@cache
def _compiled() -> dict[str, Any]:
    """The kernels for exactly these types; other types are refused, instead of being compiled anew at run time."""
    i8, f8, f4 = numba.int64, numba.float64, numba.float32
    ints, floats, singles = i8[::1], f8[::1], f4[::1]
    shared = (ints, floats, ints, ints, ints, floats, ints)
    codes, flags = numba.int32[::1], numba.boolean[::1]
    rows = (codes, ints, ints, ints, ints, codes, codes, singles, singles, ints, flags)
    signatures: dict[str, tuple[Any, ...]] = {
        "observe": (i8, i8, i8, i8, *shared, ints, floats, numba.uint8[::1], *rows, singles, singles),
        "label": (i8, i8, i8, i8, i8, ints, ints, ints, ints),
        "pack_all": (ints, ints, ints, ints, ints, ints, ints),
        "unpack_all": (i8, ints, ints, ints, ints, ints, ints, ints, ints),
        "find": (ints, ints, ints, codes, ints, i8),
        "begin": (ints, ints, ints, ints, ints, ints, ints),
        "enter": (ints, ints, ints, ints),
        "leave": (ints, ints, ints),
    }
    for name, signature in signatures.items():
        dispatcher = getattr(kernel, name)
        if hasattr(dispatcher, "disable_compile"):
            dispatcher.compile(signature)
            dispatcher.disable_compile()
    return dict(vars(kernel))


@cache
def _plain() -> dict[str, Any]:
    """The same functions as Python text, calling one another and nothing compiled."""
    plain = dict(vars(kernel))
    for name, value in vars(kernel).items():
        if hasattr(value, "py_func"):
            plain[name] = FunctionType(value.py_func.__code__, plain, name)
    return plain


def _hashes_of(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """(2, n): two independent hashes of each key."""
    if len(keys) < FEW:
        return np.array([list(map(hash, keys)), [_signed(xxh3_64_intdigest(key)) for key in keys]], np.int64)
    hashes = np.empty((2, len(keys)), np.int64)
    hashes[0] = np.fromiter(map(hash, keys), np.int64, len(keys))
    hashes[1] = np.fromiter(map(xxh3_64_intdigest, keys), np.uint64, len(keys)).view(np.int64)
    return hashes


def _signed(word: int) -> int:
    return word - (word >> 63 << 64)


def _larger(array: NDArray[Any], words: int) -> NDArray[Any]:
    grown = np.zeros(words, array.dtype)
    grown[: len(array)] = array
    return grown


class EntityWindows:
    """Recent payments of many entities (accounts or terminals: same code), as flat arrays.

    Each entity has a ring of its latest payments, in power-of-two sizes, in order of event time; ties in order of
    arrival. It is exact over the last `entries_max` payments of the last `history_ms`. What leaves a full ring is
    folded into panes of 1/24 of each window, so counts, sums and maxima stay right to one pane, while distinct counts,
    habits and label features see the ring only (frauds: also the 64 latest that were folded). So a payment costs at
    most one scan of `entries_max` entries and of the panes.

    Bounds: an entity holds at most 48 bytes * `entries_max`, and `kernel.BLOCK` words once it overflowed; how many
    entities are in memory is the caller's choice (`evict`).

    `plain` runs the kernel's text as Python, to the same bits.
    """

    def __init__(self, *, entries_max: int = ENTRIES_MAX, history_ms: int = HISTORY_MS, plain: bool = False) -> None:
        if entries_max < 2 or entries_max & (entries_max - 1):
            raise ValueError(f"entries_max must be a power of two from 2 on, not {entries_max}")
        if history_ms < kernel.WINDOWS_MS[-1]:
            raise ValueError("history_ms must hold the longest window")
        self.entries_max = entries_max
        self.history_ms = history_ms
        self.plain = plain or bool(getattr(numba, "config").DISABLE_JIT)  # noqa: B009 (numba does not declare it)
        self._kernel: dict[str, Any] = _plain() if self.plain else _compiled()
        self._size_max = entries_max.bit_length() - 1
        self._keys: list[bytes] = []
        self._free_slots: list[int] = []
        self._tick = 0
        self.copied = 0  # calls whose columns were not as the kernel takes them
        self._began_saved = True
        self._began_loaded = False
        slots = 256
        # Two hashes stand for a key: Python's, whose secret nobody outside can aim at, and xxh3. A table of them takes
        # a tenth of a dict's cache misses. Neither the order in it nor the secret reaches any result.
        self._table: NDArray[np.int64] = np.zeros(2 * slots * kernel.PLACE, np.int64)
        self._hashes: NDArray[np.int64] = np.zeros((2, slots), np.int64)
        self._used: NDArray[np.int64] = np.zeros(slots, np.int64)
        self._dirty: NDArray[np.uint8] = np.zeros(slots, np.uint8)
        self._state: NDArray[np.int64] = np.zeros(slots * kernel.STATE, np.int64)
        self._entries: NDArray[np.int64] = np.zeros(1024 * kernel.ENTRY, np.int64)
        self._marks: NDArray[np.int64] = np.zeros(1024 * kernel.MARK, np.int64)
        self._blocks: NDArray[np.int64] = np.zeros(0, np.int64)
        self._control: NDArray[np.int64] = np.full(kernel.CONTROL, -1, np.int64)
        self._control[kernel.BEGAN] = kernel.BEGAN_NEVER
        self._control[kernel.ENTRIES_NEXT] = self._control[kernel.BLOCKS_NEXT] = self._control[kernel.STAMP] = 0
        self._control[kernel.ENTRIES_SIZE] = 1024
        self._control[kernel.BLOCKS_SIZE] = 0
        seen = 1 << (4 * (entries_max + 1)).bit_length()
        self._control[kernel.SEEN_MASK] = seen - 1
        self._scratch: NDArray[np.int64] = np.zeros(2 * seen + kernel.CATEGORIES, np.int64)
        self._sums: NDArray[np.float64] = np.zeros(5 * kernel.WINDOWS, np.float64)
        self._share_arrays()

    def _share_arrays(self) -> None:
        """The arrays as the kernels take them; plain Python reads faster, and plain ints, through memoryviews."""
        arrays: tuple[Any, ...] = (
            self._state,
            self._state.view(np.float64),
            self._entries,
            self._marks,
            self._blocks,
            self._blocks.view(np.float64),
            self._control,
            self._scratch,
            self._sums,
            self._dirty,
        )
        self._arrays = tuple(memoryview(a) for a in arrays) if self.plain else arrays

    def __len__(self) -> int:
        """Entities in memory."""
        return len(self._keys) - len(self._free_slots)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays (touched or not), without the keys."""
        arrays = (self._used, self._dirty, self._state, self._entries, self._marks, self._blocks, self._scratch)
        return sum(a.nbytes for a in arrays) + self._table.nbytes + self._hashes.nbytes

    def slots(self, keys: Sequence[bytes], load: Callable[[list[bytes]], list[bytes | None]]) -> NDArray[np.int32]:
        """Slot of each entity key; those not in memory are loaded in one call (None: new).

        `load` is also asked, once, for `STORE_KEY` (the empty key), which `export_dirty` writes. Slots stay valid until
        the next `evict`; nothing is evicted here.
        """
        hashes = _hashes_of(keys)
        found = np.empty(len(keys), np.int32)
        self._tick += 1
        missing = self._find(hashes, found)
        if missing or not self._began_loaded:
            self._load(keys, hashes, found, load)
            missing = self._find(hashes, found)
            assert not missing
        return found

    def _find(self, hashes: NDArray[np.int64], found: NDArray[np.int32]) -> int:
        """Slots by the hashes of keys, -1 of those that are not in memory; how many are not."""
        arrays = map(self._view, (hashes[0], hashes[1], self._table, found, self._used))
        return self._kernel["find"](*arrays, self._tick)

    def _load(
        self,
        keys: Sequence[bytes],
        hashes: NDArray[np.int64],
        found: NDArray[np.int32],
        load: Callable[[list[bytes]], list[bytes | None]],
    ) -> None:
        rows_of = {keys[row]: row for row, slot in enumerate(found.tolist()) if slot < 0}
        missing = list(rows_of)
        if STORE_KEY in missing:
            raise ValueError("an entity's key is not empty")
        wanted = missing if self._began_loaded else [STORE_KEY, *missing]
        values = load(wanted)
        if len(values) != len(wanted):
            raise ValueError(f"load answered {len(values)} of {len(wanted)} keys")
        if not self._began_loaded:
            self._began_loaded = True
            if values[0] is not None:
                (self._control[kernel.BEGAN],) = struct.unpack("<q", values[0])
            values = values[1:]
        for key, value in zip(missing, values, strict=True):
            if value is not None:
                self._check(key, value)
        fresh = [self._new_slot(key) for key in missing]
        rows, slots = np.array(list(rows_of.values()), np.int64), np.array(fresh, np.int64)
        kept = self._hashes
        self._kernel["begin"](*map(self._view, (rows, slots, hashes[0], hashes[1], kept[0], kept[1], self._state)))
        self._enter(slots)
        stored = [(slot, value) for slot, value in zip(fresh, values, strict=True) if value is not None]
        if stored:
            self._import([slot for slot, _ in stored], [value for _, value in stored])

    def _new_slot(self, key: bytes) -> int:
        if self._free_slots:
            slot = self._free_slots.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            if slot == len(self._used):
                slots = slot + (slot >> 1)
                self._used = _larger(self._used, slots)
                self._hashes = np.concatenate([self._hashes, np.zeros((2, slots - slot), np.int64)], axis=1)
                self._dirty = _larger(self._dirty, slots)
                self._state = _larger(self._state, slots * kernel.STATE)
                self._share_arrays()
        self._dirty[slot] = 0
        return slot

    def _enter(self, slots: NDArray[np.int64]) -> None:
        """Enter new keys into the table, which doubles when they would fill more than half of it."""
        places = len(self._table) // kernel.PLACE
        if 2 * len(self) > places:
            while 2 * len(self) > places:
                places *= 2
            self._table = np.zeros(places * kernel.PLACE, np.int64)
            slots = np.setdiff1d(np.arange(len(self._keys)), self._free_slots)
        self._kernel["enter"](*map(self._view, (self._hashes[0], self._hashes[1], slots, self._table)))

    def _grow(self) -> None:
        """Room for at least one more of the largest rings, and for one more hot block."""
        control = self._control
        size = int(control[kernel.ENTRIES_SIZE])
        if size - int(control[kernel.ENTRIES_NEXT]) < self.entries_max:
            size += max(size >> 1, self.entries_max)
            self._entries = _larger(self._entries, size * kernel.ENTRY)
            self._marks = _larger(self._marks, size * kernel.MARK)
            control[kernel.ENTRIES_SIZE] = size
        blocks = int(control[kernel.BLOCKS_SIZE])
        if control[kernel.BLOCKS_FREE] < 0 and blocks == int(control[kernel.BLOCKS_NEXT]):
            blocks += max(blocks >> 1, 4)
            self._blocks = _larger(self._blocks, blocks * kernel.BLOCK)
            control[kernel.BLOCKS_SIZE] = blocks
        self._share_arrays()

    def observe(self, slots: NDArray[np.int32], rows: Observations, *, maturity_ms: int) -> NDArray[np.float32]:
        """(n, `kernel.COLUMNS`), the columns of `stream.features.ENTITY_FEATURES`.

        Row by row: the features as of the row's event time, itself included, from what arrived before it and is not
        later than it; then the row takes its place. So the result does not depend on how rows are cut into calls.
        """
        n = len(slots)
        out = np.empty((n, kernel.COLUMNS), np.float32)
        ratios = NO_RATIOS if rows.payer_ratio is None else rows.payer_ratio
        if {*map(len, rows[:10])} - {n} or len(ratios) not in (0, n):
            raise ValueError("slots and columns differ in length")
        columns: tuple[Any, ...] = (
            slots,
            rows.event_ms,
            rows.amount,
            rows.other.view(np.int64),
            rows.payment.view(np.int64),
            rows.category,
            rows.minute_of_week,
            rows.latitude,
            rows.longitude,
            rows.label_clock,
            rows.counts,
            ratios,
            out.reshape(-1),
        )
        if self.plain:
            columns = tuple(memoryview(column) for column in columns)
        began = self._control[kernel.BEGAN]
        done = 0
        while True:
            done = self._observe(done, maturity_ms, columns)
            if done == n:
                break
            self._grow()
        if self._control[kernel.BEGAN] != began:
            self._began_saved = False
        return out

    def _observe(self, start: int, maturity_ms: int, columns: tuple[Any, ...]) -> int:
        observe = self._kernel["observe"]
        try:
            return observe(start, self.history_ms, self._size_max, maturity_ms, *self._arrays, *columns)
        except TypeError:
            if self.plain:
                raise
        # Types are exact, so that nothing is compiled at run time: copy what is read-only, strided or of another width.
        # Finding that out takes numba ten times what a payment does.
        self.copied += 1
        exact = [np.array(column, dtype, order="C") for column, dtype in zip(columns[:-1], COLUMN_TYPES, strict=True)]
        return observe(start, self.history_ms, self._size_max, maturity_ms, *self._arrays, *exact, columns[-1])

    def label(self, slot: int, *, payment: int, event_ms: int, observed_ms: int, fraud: bool) -> bool:
        """Note that a payment was fraud, from `observed_ms` on; 0 or `fraud=False` withdraws it.

        True if the entry was still held: in the ring or, for an entity that overflowed, young enough for its panes.
        """
        state, _, entries, marks, blocks, *_ = self._arrays
        observed = observed_ms if fraud else 0
        low = payment & kernel.PAYMENT_MASK
        held = self._kernel["label"](slot, self.history_ms, low, event_ms, observed, state, entries, marks, blocks)
        if held == 2:
            self._dirty[slot] = 1
        return held > 0

    def export_dirty(self) -> dict[bytes, bytes]:
        """By key the value of each entity changed since the last export, and of `STORE_KEY` when that changed.

        A value is little-endian 64-bit words: version (16 bits) | entries (32 bits) | has a hot block (1 bit);
        first seen, ms; habit count; outliers in a row; habit mean and variance (f64); then for each entry, oldest
        first, time ms, amount, other, tag, observed_at ms, position; then the hot block. `stream/windows/kernel.py` has
        the layouts of tag and block. The store's value is the event time of its first payment, ms.
        """
        exported: dict[bytes, bytes] = {}
        if not self._began_saved:
            exported[STORE_KEY] = struct.pack("<q", int(self._control[kernel.BEGAN]))
            self._began_saved = True
        slots = np.flatnonzero(self._dirty[: len(self._keys)])
        if not len(slots):
            return exported
        starts = np.zeros(len(slots) + 1, np.int64)
        state, _, entries, marks, blocks, *_ = self._arrays
        pack_all = self._kernel["pack_all"]
        none = np.zeros(0, np.int64)
        pack_all(self._view(slots), self._view(starts), self._view(none), state, entries, marks, blocks)
        buffer = np.empty(int(starts[-1]), np.int64)
        pack_all(self._view(slots), self._view(starts), self._view(buffer), state, entries, marks, blocks)
        whole = buffer.astype("<i8", copy=False).tobytes()
        ends = (starts * 8).tolist()
        keys = self._keys
        self._dirty[slots] = 0
        values = [whole[a:b] for a, b in pairwise(ends)]
        exported.update(zip([keys[slot] for slot in slots.tolist()], values, strict=True))
        return exported

    def _view(self, array: Any) -> Any:
        return memoryview(array) if self.plain else array

    def _check(self, key: bytes, value: bytes) -> None:
        words, rest = divmod(len(value), 8)
        head = int.from_bytes(value[:8], "little") if words else 0
        version, length, hot = head & 0xFFFF, head >> 16 & 0xFFFFFFFF, head >> 48
        expected = kernel.HEADER + length * (kernel.ENTRY + kernel.MARK) + hot * kernel.BLOCK
        if version != kernel.VERSION or rest or hot > 1 or length > self.entries_max or words != expected:
            raise InternalError(
                f"stored windows of {key!r}: {len(value)} bytes of version {version} are not version {kernel.VERSION} "
                f"with at most {self.entries_max} entries"
            )

    def _import(self, slots: list[int], values: list[bytes]) -> None:
        starts = np.zeros(len(values), np.int64)
        np.cumsum([len(value) // 8 for value in values[:-1]], out=starts[1:])
        buffer = np.array(np.frombuffer(b"".join(values), "<i8"), np.int64)
        done = 0
        while True:
            state, _, entries, marks, blocks, _, control, *_ = self._arrays
            done = self._kernel["unpack_all"](
                done,
                self._view(np.array(slots, np.int64)),
                self._view(starts),
                self._view(buffer),
                state,
                entries,
                marks,
                blocks,
                control,
            )
            if done == len(slots):
                return
            self._grow()

    def evict(self, slots_max: int) -> int:
        """Forget least recently used clean entities until at most `slots_max` are left; how many were forgotten.

        Entities that changed since the last export stay, so call it after one.
        """
        excess = len(self) - slots_max
        if excess <= 0:
            return 0
        held = self._dirty[: len(self._keys)] == 0
        held[self._free_slots] = False
        clean = np.flatnonzero(held)
        used = self._used[clean]
        # Not in order: sorting all would take 5 % of a core, each second, from then on that memory is full.
        oldest = (clean if excess >= len(clean) else clean[np.argpartition(used, excess)[:excess]]).tolist()
        entries, blocks, control = self._entries, self._blocks, self._control
        for slot in oldest:
            offset, size = self._state[slot * kernel.STATE :][:2].tolist()
            hot = int(self._state[slot * kernel.STATE + kernel.HOT])
            if offset >= 0:
                entries[offset * kernel.ENTRY] = control[kernel.FREE + size]
                control[kernel.FREE + size] = offset
            if hot >= 0:
                blocks[hot * kernel.BLOCK] = control[kernel.BLOCKS_FREE]
                control[kernel.BLOCKS_FREE] = hot
            self._keys[slot] = STORE_KEY
        gone = np.array(oldest, np.int64)
        self._kernel["leave"](*map(self._view, (self._hashes[0, gone], gone, self._table)))
        self._free_slots += oldest
        return len(oldest)


COLUMN_TYPES: Final = (
    np.int32,
    np.int64,
    np.int64,
    np.int64,
    np.int64,
    np.int32,
    np.int32,
    np.float32,
    np.float32,
    np.int64,
    np.bool_,
    np.float32,
)
