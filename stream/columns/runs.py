"""A run of payments between the stages: `PlacedRun` made from columns, and read into columns.

A payment is a row of 64-bit words, little-endian:

    0 at_ms   1 position   2 event_ms   3 respond_by   4 base amount   5 payer
    6 n, minutes (i32)   7 lengths of canonical bytes, tenant, account, payment id (u16)
    8 length of the terminal (u16), flags, mode (u8), spare   9, 10 payment's hash
    11 latitude, longitude, then the codes, then its account's features (f32, the last word may be half empty)

Each array of rows goes to a kernel in five views. What a kernel knows of another file it knows as literals of this one,
asserted to be equal: numba's cache of compiled kernels looks at no other file.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel
from stream.columns import scan
from stream.columns.combinations import Combinations
from stream.columns.scan import Scanned, copy
from stream.errors import InternalError
from stream.features import CODES_WIDTH, ENTITY_FEATURES, PAYMENT_FEATURES
from topics.journal import RUN_COUNTS, RUN_FLOATS_AT, RUN_LATE, RUN_NAMES_TERMINAL, RUN_TEST, PlacedRun

FEW: Final = 24
"""Fewer payments than this are quicker one by one than in columns (`steps.py --batch`)."""

RUN_MAX: Final = 5_000
"""Payments that are taken in columns at once: some 10 MB."""

FEATURES_WIDTH: Final = len(ENTITY_FEATURES)
CODES_FROM: Final = 2 * RUN_FLOATS_AT + 2
FEATURES_FROM: Final = CODES_FROM + CODES_WIDTH
WORDS: Final = (FEATURES_FROM + FEATURES_WIDTH + 1) // 2
assert len(PAYMENT_FEATURES) == 3 + CODES_WIDTH, "amount, hour, weekend, codes"

# Places in a row: as i32, as u16, as u8, as f32.
N_AT, MINUTES_AT = 12, 13
CANONICAL, TENANT, ACCOUNT, PAYMENT, TERMINAL = range(28, 33)
FLAGS_AT, MODE_AT = 66, 67
LATITUDE_AT, LONGITUDE_AT, CODES_AT = 22, 23, 24
assert CODES_AT == CODES_FROM

# Where the spans of `Scanned` are, and its marks.
CANONICAL_SPAN, ACCOUNT_SPAN, TERMINAL_SPAN, NAMES_SPAN = 0, 6, 9, 11
MARK_TERMINAL: Final = 1
assert (CANONICAL_SPAN, ACCOUNT_SPAN, TERMINAL_SPAN, NAMES_SPAN) == (
    scan.CANONICAL_AT,
    scan.ACCOUNT_AT,
    scan.TERMINAL_AT,
    scan.NAMES_AT,
)
assert scan.HAS_TERMINAL == MARK_TERMINAL

# What the stage knows of each payment beside its content: rows of int64.
AT_MS, POSITION, BLOCK, N, NUMBER, MARKS = range(6)

# What the windows take, as rows of int64 and of int32.
EVENT_MS, AMOUNT, OTHER, HASH, LABEL_CLOCK, TARGET, LONGS = range(7)
MINUTES, CATEGORY, INTS = range(3)


class Checked(NamedTuple):
    """Extremes of some payments: event times in ms UTC, how far one is ahead of its broker's time; and whether all
    accounts belong here and no hash is one that could mean another."""

    oldest: int
    newest: int
    ahead_ms: int
    here: bool


def check(
    scanned: Scanned, marks: NDArray[np.int64], hashes: NDArray[np.uint64], start: int, partitions: int, partition: int
) -> Checked:
    """Of the payments from `start` on, of which `hashes` (2, n) has accounts and terminals. `partitions`: of accounts;
    `partition`: here."""
    oldest, newest, ahead, here = _check(scanned.ints, marks, hashes, start, partitions, partition)
    return Checked(int(oldest), int(newest), int(ahead), bool(here))


@kernel
def _check(
    ints: NDArray[np.int64],
    marks: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    start: int,
    partitions: int,
    partition: int,
) -> tuple[int, int, int, bool]:
    oldest = newest = ints[0, start]
    ahead = ints[0, start] - marks[AT_MS, start]
    here = True
    for i in range(hashes.shape[1]):
        event = ints[0, start + i]
        oldest = min(oldest, event)
        newest = max(newest, event)
        ahead = max(ahead, event - marks[AT_MS, start + i])
        if hashes[0, i] < np.uint64(2) or hashes[1, i] < np.uint64(2):
            here = False
        if hashes[0, i] % np.uint64(partitions) != np.uint64(partition):
            here = False
    return oldest, newest, ahead, here


@kernel
def find_late(
    event_ms: NDArray[np.int64],
    test: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    watermark: int,
    lateness_ms: int,
    late: NDArray[np.bool_],
) -> int:
    """Notes which of the chosen payments are behind the watermark before them by more than `lateness_ms`; the watermark
    after them, in ms UTC, -1: none. Test payments leave it as it is and are never late."""
    for i in range(event_ms.shape[0]):
        if chosen[i] and not test[i]:
            if event_ms[i] > watermark:
                watermark = event_ms[i]
            else:
                late[i] = event_ms[i] < watermark - lateness_ms
    return watermark


def _views(
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.uint16], NDArray[np.uint8], NDArray[np.float32]]:
    return rows.view(np.int32), rows.view(np.uint16), rows.view(np.uint8), rows.view(np.float32)


class Placing(NamedTuple):
    """n payments on their way. `rows` int64 (n, WORDS), yet without features; `longs` (LONGS, n), `ints` (INTS, n) and
    `counts` bool: what the windows take."""

    rows: NDArray[np.int64]
    longs: NDArray[np.int64]
    ints: NDArray[np.int32]
    counts: NDArray[np.bool_]


def place(
    scanned: Scanned,
    start: int,
    marks: NDArray[np.int64],
    combinations: Combinations,
    base_amounts: NDArray[np.int64],
    late: NDArray[np.bool_],
    hashes: NDArray[np.uint64],
    pids: NDArray[np.uint64],
    terminal_partitions: int,
    label_clock_ms: int,
) -> Placing:
    """The payments from `start` on. `base_amounts`, `late` (n), `hashes` (2, n) and `pids` (2 n) are theirs alone."""
    n = hashes.shape[1]
    rows = np.empty((n, WORDS), np.int64)
    longs, ints, counts = np.empty((LONGS, n), np.int64), np.empty((INTS, n), np.int32), np.empty(n, np.bool_)
    _place(
        start,
        terminal_partitions,
        label_clock_ms,
        scanned.ints,
        scanned.floats,
        scanned.marks,
        scanned.spans,
        marks,
        combinations.codes,
        combinations.bits,
        base_amounts,
        late,
        hashes,
        pids,
        rows,
        *_views(rows),
        longs,
        ints,
        counts,
    )
    return Placing(rows, longs, ints, counts)


@kernel
def _place(
    start: int,
    terminal_partitions: int,
    label_clock_ms: int,
    scanned_ints: NDArray[np.int64],
    places: NDArray[np.float32],
    scanned_marks: NDArray[np.bool_],
    spans: NDArray[np.int32],
    marks: NDArray[np.int64],
    codes: NDArray[np.float32],
    bits: NDArray[np.uint8],
    base_amounts: NDArray[np.int64],
    late: NDArray[np.bool_],
    hashes: NDArray[np.uint64],
    pids: NDArray[np.uint64],
    rows: NDArray[np.int64],
    rows32: NDArray[np.int32],
    rows16: NDArray[np.uint16],
    rows8: NDArray[np.uint8],
    singles: NDArray[np.float32],
    longs: NDArray[np.int64],
    ints: NDArray[np.int32],
    counts: NDArray[np.bool_],
) -> None:
    for i in range(rows.shape[0]):
        row = start + i
        event = scanned_ints[0, row]
        number = marks[NUMBER, row]
        names_terminal = scanned_marks[MARK_TERMINAL, row]
        minute = (event // 60_000 + scanned_ints[5, row] + 4_320) % 10_080  # 1970-01-01 was a Thursday
        rows[i, 0], rows[i, 1] = marks[AT_MS, row], marks[POSITION, row]
        rows[i, 2], rows[i, 3], rows[i, 4] = event, scanned_ints[3, row], base_amounts[i]
        rows[i, 5] = np.int64(hashes[0, i])
        rows[i, 8] = 0
        rows[i, 9], rows[i, 10] = np.int64(pids[2 * i]), np.int64(pids[2 * i + 1])
        rows[i, rows.shape[1] - 1] = 0  # half of it may be no feature
        rows32[i, N_AT], rows32[i, MINUTES_AT] = marks[N, row], minute
        rows16[i, CANONICAL] = spans[row, CANONICAL_SPAN + 1] - spans[row, CANONICAL_SPAN]
        rows16[i, TENANT] = spans[row, NAMES_SPAN + 1] - spans[row, NAMES_SPAN]
        rows16[i, PAYMENT] = spans[row, NAMES_SPAN + 3] - spans[row, NAMES_SPAN + 2]
        rows16[i, ACCOUNT] = spans[row, NAMES_SPAN + 5] - spans[row, NAMES_SPAN + 4]
        rows16[i, TERMINAL] = spans[row, NAMES_SPAN + 7] - spans[row, NAMES_SPAN + 6]
        counts[i] = bits[1, number] != 0
        rows8[i, FLAGS_AT] = late[i] * 1 + names_terminal * 2 + counts[i] * 4
        rows8[i, MODE_AT] = bits[0, number]
        singles[i, LATITUDE_AT], singles[i, LONGITUDE_AT] = places[0, row], places[1, row]
        width = codes.shape[1]
        for j in range(width):
            singles[i, CODES_AT + j] = codes[number, j]
        category = codes[number, width - 1]
        longs[EVENT_MS, i], longs[AMOUNT, i], longs[LABEL_CLOCK, i] = event, base_amounts[i], label_clock_ms
        longs[OTHER, i] = np.int64(hashes[1, i]) if names_terminal else 0
        longs[HASH, i] = np.int64(pids[2 * i])
        longs[TARGET, i] = np.int64(hashes[1, i] % np.uint64(terminal_partitions))
        ints[MINUTES, i] = minute
        ints[CATEGORY, i] = 0 if category != category else int(category)


assert (RUN_LATE, RUN_NAMES_TERMINAL, RUN_COUNTS) == (1, 2, 4), "the kernels know them by heart"


def placed_runs(
    placing: Placing,
    features: NDArray[np.float32],
    scanned: Scanned,
    start: int,
    marks: NDArray[np.int64],
    senders: Sequence[tuple[bytes, int]],
    traceparents: Sequence[str | None],
) -> list[tuple[int, int, PlacedRun]]:
    """(place of its first payment, partition, run), a run for each block and partition, in the blocks' order.

    `features`: float32 (n, FEATURES_WIDTH). `senders`: of the blocks that the payments came in. `traceparents`: empty
    if nobody has any.
    """
    rows = placing.rows
    n = len(rows)
    rows.view(np.float32)[:, FEATURES_FROM : FEATURES_FROM + FEATURES_WIDTH] = features
    targets, blocks = placing.longs[TARGET], marks[BLOCK, start : start + n]
    if n > 1 and (targets != targets[0]).any():
        order = np.lexsort((targets, blocks))
        rows, targets, blocks = rows[order], targets[order], blocks[order]
    else:
        order = np.arange(n)
    ends = np.empty(n + 1, np.int64)
    _ends(scanned.spans, start, order, ends)
    texts = np.empty(int(ends[-1]), np.uint8)
    _gather(scanned.texts, scanned.spans, start, order, texts)
    found: list[tuple[int, int, PlacedRun]] = []
    whole, of_texts, content = rows.tobytes(), ends.tolist(), texts.tobytes()
    at, row_bytes = order.tolist(), 8 * WORDS
    cuts = [0, *(np.flatnonzero((targets[1:] != targets[:-1]) | (blocks[1:] != blocks[:-1])) + 1).tolist(), n]
    for first, end in pairwise(cuts):
        i, last = at[first], at[end - 1]
        topic, partition = senders[i]
        run = PlacedRun(
            int(blocks[first]),
            int(marks[N, start + i]),
            int(marks[N, start + last]),
            end - first,
            topic,
            partition,
            CODES_WIDTH,
            FEATURES_WIDTH,
            whole[row_bytes * first : row_bytes * end],
            content[of_texts[first] : of_texts[end]],
            [traceparents[j] for j in at[first:end]] if traceparents else [],
        )
        found.append((i, int(targets[first]), run))
    return found


@kernel
def _ends(spans: NDArray[np.int32], start: int, order: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """Where each payment's texts begin (n + 1), and the last one's end."""
    ends[0] = 0
    for i in range(order.shape[0]):
        row = start + order[i]
        size = spans[row, CANONICAL_SPAN + 1] - spans[row, CANONICAL_SPAN]
        size += spans[row, ACCOUNT_SPAN + 2] - spans[row, ACCOUNT_SPAN]
        if spans[row, NAMES_SPAN + 7] > spans[row, NAMES_SPAN + 6]:
            size += spans[row, TERMINAL_SPAN + 1] - spans[row, TERMINAL_SPAN]
        ends[i + 1] = ends[i] + size


@kernel
def _gather(
    texts: NDArray[np.uint8], spans: NDArray[np.int32], start: int, order: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    """Each payment's texts, one after the other: as many bytes as `_ends` says."""
    to = 0
    for i in range(order.shape[0]):
        row = start + order[i]
        to = copy(out, to, texts, spans[row, CANONICAL_SPAN], spans[row, CANONICAL_SPAN + 1])
        to = copy(out, to, texts, spans[row, ACCOUNT_SPAN], spans[row, ACCOUNT_SPAN + 2])
        if spans[row, NAMES_SPAN + 7] > spans[row, NAMES_SPAN + 6]:
            to = copy(out, to, texts, spans[row, TERMINAL_SPAN], spans[row, TERMINAL_SPAN + 1])


class Columns(NamedTuple):
    """Runs as the terminal stage takes them: n payments, in order.

    `names` int32 (n, 6): start and end in `texts` of tenant, payment id and account; `terminals` (n, 2): of the
    terminal's key, or of the account's where none is named. `own`: float32 (n, PAYMENT_FEATURES); `features`: the
    account's; `ratios`: one of them. `pids`: uint64 (n, 2).
    """

    size: int
    at_ms: NDArray[np.int64]
    positions: NDArray[np.int64]
    event_ms: NDArray[np.int64]
    respond_by: NDArray[np.int64]
    base_amounts: NDArray[np.int64]
    payers: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    minutes: NDArray[np.int32]
    categories: NDArray[np.int32]
    modes: NDArray[np.uint8]
    late: NDArray[np.bool_]
    names_terminal: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    latitude: NDArray[np.float32]
    longitude: NDArray[np.float32]
    own: NDArray[np.float32]
    features: NDArray[np.float32]
    ratios: NDArray[np.float32]
    names: NDArray[np.int32]
    terminals: NDArray[np.int32]
    pids: NDArray[np.uint64]
    texts: bytes
    blob: NDArray[np.uint8]


def columns_of(runs: Sequence[PlacedRun], ratio_at: int) -> Columns:
    """The runs' payments, one after the other. At least one run. `ratio_at`: the column of `ratios` in `features`."""
    n = sum([run.count for run in runs])
    assert {(run.codes, run.features, len(run.rows) // run.count) for run in runs} == {
        (CODES_WIDTH, FEATURES_WIDTH, 8 * WORDS)
    }, "features of an engine that this release does not hold"
    texts = b"".join([run.texts for run in runs])
    blob = np.frombuffer(bytearray(texts), np.uint8)
    rows = np.frombuffer(bytearray().join([run.rows for run in runs]), np.int64).reshape(n, WORDS)
    longs, ints, marks = np.empty((7, n), np.int64), np.empty((2, n), np.int32), np.empty((4, n), np.uint8)
    places, spans = np.empty((3, n), np.float32), np.empty((n, 8), np.int32)
    own = np.empty((n, len(PAYMENT_FEATURES)), np.float32)
    features = np.empty((n, FEATURES_WIDTH), np.float32)
    used = _spread(
        ratio_at,
        blob,
        scan.ENDS,
        rows,
        *_views(rows),
        longs,
        ints,
        marks,
        places,
        spans,
        own,
        features,
    )
    if used != len(texts):
        raise InternalError("texts of a run are not as long as its rows say, or its names are not plain")
    flags = marks.view(np.bool_)
    return Columns(
        n,
        longs[0],
        longs[1],
        longs[2],
        longs[3],
        longs[4],
        longs[5].view(np.uint64),
        longs[6].view(np.uint64),
        ints[0],
        ints[1],
        marks[0],
        flags[1],
        flags[2],
        flags[3],
        places[0],
        places[1],
        own,
        features,
        places[2],
        spans[:, :6],
        spans[:, 6:],
        np.ascontiguousarray(rows[:, 9:11]).view(np.uint64),
        texts,
        blob,
    )


@kernel
def _spread(
    ratio_at: int,
    texts: NDArray[np.uint8],
    not_plain: NDArray[np.uint8],
    rows: NDArray[np.int64],
    rows32: NDArray[np.int32],
    rows16: NDArray[np.uint16],
    rows8: NDArray[np.uint8],
    singles: NDArray[np.float32],
    longs: NDArray[np.int64],
    ints: NDArray[np.int32],
    marks: NDArray[np.uint8],
    places: NDArray[np.float32],
    spans: NDArray[np.int32],
    own: NDArray[np.float32],
    features: NDArray[np.float32],
) -> int:
    """Fills the columns; where the last payment's texts end, -1: a name could not stand in JSON as it is."""
    start = 0
    codes = own.shape[1] - 3
    for i in range(rows.shape[0]):
        for j in range(6):
            longs[j, i] = rows[i, j]
        longs[6, i] = rows[i, 9]
        minute, flags, mode, amount = rows32[i, MINUTES_AT], rows8[i, FLAGS_AT], rows8[i, MODE_AT], rows[i, 4]
        category = singles[i, CODES_AT + codes - 1]
        ints[0, i], ints[1, i] = minute, 0 if category != category else int(category)
        marks[0, i], marks[1, i], marks[2, i], marks[3, i] = mode, flags & 1, flags >> 1 & 1, flags >> 2 & 1
        own[i, 0] = np.nan if amount < 0 else amount
        own[i, 1], own[i, 2] = minute % 1440 / 60.0, 1.0 if minute >= 7_200 else 0.0  # five days
        for j in range(codes):
            own[i, 3 + j] = singles[i, CODES_AT + j]
        for j in range(features.shape[1]):
            features[i, j] = singles[i, CODES_AT + codes + j]
        places[0, i], places[1, i] = singles[i, LATITUDE_AT], singles[i, LONGITUDE_AT]
        places[2, i] = features[i, ratio_at]
        tenant, account, payment = int(rows16[i, TENANT]), int(rows16[i, ACCOUNT]), int(rows16[i, PAYMENT])
        terminal = int(rows16[i, TERMINAL])
        identity = start + int(rows16[i, CANONICAL])
        spans[i, 0] = identity + 1
        spans[i, 1] = identity + 1 + tenant
        spans[i, 4] = identity + 2 + tenant
        spans[i, 5] = identity + 2 + tenant + account
        spans[i, 2] = identity + 3 + tenant + account
        end = identity + 3 + tenant + account + payment
        spans[i, 3] = end
        if mode == 1:
            end += 5
        spans[i, 6], spans[i, 7] = identity, identity + 2 + tenant + account
        if terminal:
            spans[i, 6] = end
            end += 2 + tenant + terminal
            spans[i, 7] = end
        start = end
        if end > texts.shape[0]:
            return -1
        for j in range(0, 6, 2):
            for byte in texts[spans[i, j] : spans[i, j + 1]]:
                if not_plain[byte] != 0:
                    return -1
    return start


assert RUN_TEST == 1, "the kernels know it by heart"
