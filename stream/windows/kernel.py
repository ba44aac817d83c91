"""The arithmetic of the windows, on flat arrays: compiled by numba, and run as plain Python to the same bits.

Only + - * / and square root on float64, in a fixed order: no fastmath, no libm, so both paths agree to the last bit.

Layout, all in 64-bit words:

    state   STATE words a slot: ring offset, ring size (log2), head, entries, first_seen_ms, habit count,
            outliers in a row, hot block (-1 none), habit mean (f64), habit variance (f64)
    entries 4 words an entry: time_ms, amount (-1 absent), other (hash, 0 absent), tag
    marks   2 words an entry: observed_at_ms of its fraud label (0 none), position (-1 absent)
    blocks  BLOCK words an overflowing entity: panes, days, folded frauds (see below)
    control bump pointers, sizes, and the free lists of rings and blocks

A ring holds 2**size entries in event-time order, ties in order of arrival, from `head`, wrapping. Its first free
entry's time links the free list. The tag packs, from bit 0: category 16, minute of the day 11, day of the week 3, has
local time 1, outlier by own habit 1, outlier by the payer's habit 1, has position 1, payment hash 28, fraud label 1.

What leaves a full ring is folded into the entity's hot block: for each window 25 panes of 1/24 of the window (first_ms,
last_ms, count, count with amount, sum f64, sum of squares f64, maximum f64), 96 days (day number, count), and the 64
latest frauds (time_ms, tag, observed_at_ms).
"""

import math
from typing import Any, Final

import numba

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
WINDOWS_MS: Final = (5 * MINUTE_MS, HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
WINDOWS: Final = 5

PANES_PER_WINDOW: Final = 24
PANES: Final = PANES_PER_WINDOW + 1  # one more, so that a whole window is held while the newest pane fills
PANE: Final = 7
DAYS: Final = 96
FRAUDS: Final = 64
DAYS_AT: Final = WINDOWS * PANES * PANE
FRAUDS_AT: Final = DAYS_AT + 2 * DAYS
BLOCK: Final = FRAUDS_AT + 3 * FRAUDS
assert all(w % PANES_PER_WINDOW == 0 for w in WINDOWS_MS), "panes of one window have one width, in whole ms"

STATE: Final = 10
OFFSET, SIZE, HEAD, LENGTH, FIRST_SEEN, HABIT_COUNT, OUTLIERS_RUN, HOT, HABIT_MEAN, HABIT_VARIANCE = range(STATE)
ENTRY: Final = 4
MARK: Final = 2
HEADER: Final = 6  # words before the entries of a packed entity
VERSION: Final = 1

SIZE_MIN: Final = 1  # rings begin with 2 entries
SIZE_SHRINKS: Final = 3  # rings of 8 and more are halved when they are filled to three eighths
BEGAN, ENTRIES_NEXT, ENTRIES_SIZE, BLOCKS_NEXT, BLOCKS_SIZE, BLOCKS_FREE, STAMP, SEEN_MASK, TOUCHED, FREE = range(10)
CONTROL: Final = FREE + 32
BEGAN_NEVER: Final = -(2**62)

MINUTE_SHIFT: Final = 16
WEEKDAY_SHIFT: Final = 27
HAS_TIME: Final = 1 << 30
OUTLIER: Final = 1 << 31
PAYER_OUTLIER: Final = 1 << 32
HAS_POSITION: Final = 1 << 33
PAYMENT_SHIFT: Final = 34
PAYMENT_MASK: Final = (1 << 28) - 1
FRAUD: Final = 1 << 62
CATEGORIES: Final = 1 << 16

HABIT_COUNT_MAX: Final = 128  # from then on each amount weighs 1/128: habits move
HABIT_AFTER: Final = 3  # so many amounts before anything is called an outlier
OUTLIER_RATIO: Final = 2.5
OUTLIERS_RUN_MAX: Final = 8  # the 8th outlier in a row is the new habit: nobody stays locked out of their own mean
DEVIATION_FLOOR: Final = 0.1  # of the mean: a subscription of constant price has no deviation of its own
BAND_MINUTES: Final = 120
SHARE_PRIOR: Final = 0.1
SHARE_WEIGHT: Final = 10.0
LAST_MATURED: Final = 5
EARTH_KM: Final = 6371.0
RADIANS: Final = 0.017453292519943295
HALF_PI: Final = 1.5707963267948966
DEGREE_UNITS: Final = 100_000.0
AGE_MAX_S: Final = 30 * 86_400.0  # older is old: nothing grows with the calendar for ever
SPEED_AFTER_MS: Final = 60_000  # positions closer in time are taken as a minute apart

# Columns of the result: five a window, in the order of WINDOWS_MS, then these.
COUNT, SUM, MEAN, DEVIATION, MAX = range(5)
(
    SINCE_LAST_S,
    OTHERS_1D_DISTINCT,
    OTHERS_7D_DISTINCT,
    OTHERS_30D_DISTINCT,
    CATEGORIES_1D_DISTINCT,
    CATEGORIES_30D_DISTINCT,
    COVERAGE_30D_SHARE,
    AGE_S,
    AMOUNT_RATIO,
    AMOUNT_Z,
    AMOUNT_14D_MAX_RATIO,
    OUTLIERS_3D_COUNT,
    OUTLIERS_14D_COUNT,
    OUTLIERS_14D_SHARE,
    SINCE_OUTLIER_S,
    PAYER_OUTLIERS_7D_COUNT,
    FRAUDS_7D_COUNT,
    FRAUDS_14D_COUNT,
    FRAUDS_28D_COUNT,
    FRAUD_RUN_COUNT,
    FRAUD_RUN_AGE_S,
    FRAUDS_ORDINARY_28D_COUNT,
    FRAUDS_LAST_5_COUNT,
    FRAUD_28D_SHARE,
    FRAUDS_KNOWN_30D_COUNT,
    SINCE_FRAUD_KNOWN_S,
    SINCE_FRAUD_S,
    PAIR_COUNT,
    PAIR_AGE_S,
    HOUR_SHARE,
    WEEKEND_SHARE,
    CATEGORY_COUNT,
    CATEGORY_AMOUNT_RATIO,
    DISTANCE_KM,
    SPEED_KMH,
) = range(5 * WINDOWS, 5 * WINDOWS + 35)
COLUMNS: Final = 5 * WINDOWS + 35
NAN: Final = math.nan

TOUCH_ROWS: Final = 16
TOUCH_ENTRIES: Final = 16

NEVER_SEEN: Final = 2**62  # as a time: nothing came

jit: Any = numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy")


@jit
def sine(x: float) -> float:
    """Sine of x in [-pi/2, pi/2], to 1e-9."""
    y = x * x
    return x * (
        1.0 - y / 6.0 * (1.0 - y / 20.0 * (1.0 - y / 42.0 * (1.0 - y / 72.0 * (1.0 - y / 110.0 * (1.0 - y / 156.0)))))
    )


@jit
def chord_km(a: int, b: int) -> float:
    """Straight line between two packed positions, through the earth: haversine without its arc."""
    latitude_a = ((a >> 32) - 9_000_000) / DEGREE_UNITS * RADIANS
    latitude_b = ((b >> 32) - 9_000_000) / DEGREE_UNITS * RADIANS
    turn = ((a & 0xFFFFFFFF) - (b & 0xFFFFFFFF)) / DEGREE_UNITS
    if turn > 180.0:
        turn -= 360.0
    if turn < -180.0:
        turn += 360.0
    north = sine((latitude_a - latitude_b) * 0.5)
    east = sine(turn * RADIANS * 0.5)
    shrink = sine(HALF_PI - abs(latitude_a)) * sine(HALF_PI - abs(latitude_b))
    return 2.0 * EARTH_KM * math.sqrt(north * north + shrink * east * east)


@jit
def packed_position(latitude: float, longitude: float) -> int:
    """Position in 1e-5 degrees in one word; -1 when absent or no place on earth."""
    if not (-90.0 <= latitude <= 90.0 and -180.0 <= longitude <= 180.0):
        return -1
    north = int(latitude * DEGREE_UNITS + 9_000_000.5)
    east = int(longitude * DEGREE_UNITS + 18_000_000.5)
    return (north << 32) | east


@jit
def take_ring(size: int, entries: Any, control: Any) -> int:
    """Offset of a free ring of 2**size entries, -1 if the arena must grow first."""
    offset = control[FREE + size]
    if offset >= 0:
        control[FREE + size] = entries[offset * ENTRY]
        return offset
    offset = control[ENTRIES_NEXT]
    if offset + (1 << size) > control[ENTRIES_SIZE]:
        return -1
    control[ENTRIES_NEXT] = offset + (1 << size)
    return offset


@jit
def free_ring(offset: int, size: int, entries: Any, control: Any) -> None:
    entries[offset * ENTRY] = control[FREE + size]
    control[FREE + size] = offset


@jit
def take_block(blocks: Any, control: Any) -> int:
    """Index of an empty hot block, -1 if there is no room."""
    block = control[BLOCKS_FREE]
    if block >= 0:
        control[BLOCKS_FREE] = blocks[block * BLOCK]
    else:
        block = control[BLOCKS_NEXT]
        if block >= control[BLOCKS_SIZE]:
            return -1
        control[BLOCKS_NEXT] = block + 1
    for i in range(block * BLOCK, (block + 1) * BLOCK):
        blocks[i] = 0
    return block


@jit
def fold_fraud(block: int, blocks: Any, time: int, tag: int, observed: int) -> None:
    """Keep a fraud among the latest of a hot block: into a free place, else over the oldest if that is older."""
    start = block * BLOCK + FRAUDS_AT
    place = start
    for i in range(start, start + 3 * FRAUDS, 3):
        if blocks[i + 2] == 0:
            place = i
            break
        if blocks[i] < blocks[place]:
            place = i
    if blocks[place + 2] == 0 or blocks[place] < time:
        blocks[place] = time
        blocks[place + 1] = tag
        blocks[place + 2] = observed


@jit
def fold(block: int, blocks: Any, blocks_f: Any, time: int, amount: int, tag: int, observed: int) -> None:
    """Add what left the ring to the panes, the days and, if it is one, to the folded frauds of a hot block."""
    for k in range(WINDOWS):
        width = WINDOWS_MS[k] // PANES_PER_WINDOW
        number = time // width
        at = block * BLOCK + (k * PANES + number % PANES) * PANE
        held = blocks[at] // width
        if blocks[at + 2] > 0 and held > number:
            continue  # later than a whole window: its pane is gone
        if blocks[at + 2] == 0 or held < number:
            blocks[at] = time
            blocks[at + 1] = time
            blocks[at + 2] = 0
            blocks[at + 3] = 0
            blocks_f[at + 4] = 0.0
            blocks_f[at + 5] = 0.0
            blocks_f[at + 6] = 0.0
        blocks[at] = min(blocks[at], time)
        blocks[at + 1] = max(blocks[at + 1], time)
        blocks[at + 2] += 1
        if amount >= 0:
            value = float(amount)
            blocks[at + 3] += 1
            blocks_f[at + 4] += value
            blocks_f[at + 5] += value * value
            blocks_f[at + 6] = max(blocks_f[at + 6], value)
    day = time // DAY_MS
    at = block * BLOCK + DAYS_AT + day % DAYS * 2
    if blocks[at + 1] == 0 or blocks[at] <= day:
        if blocks[at] != day:
            blocks[at] = day
            blocks[at + 1] = 0
        blocks[at + 1] += 1
    if observed != 0:
        fold_fraud(block, blocks, time, tag, observed)


@jit
def place(
    slot: int,
    position: int,
    newest: int,
    history_ms: int,
    size_max: int,
    time: int,
    amount: int,
    other: int,
    tag: int,
    where: int,
    state: Any,
    entries: Any,
    marks: Any,
    blocks: Any,
    blocks_f: Any,
    control: Any,
) -> bool:
    """Insert an entry before ring position `position`; False, with nothing changed, if an arena must grow first."""
    s = slot * STATE
    if time <= newest - history_ms:
        return True  # older than all that is kept
    offset = state[s + OFFSET]
    size = state[s + SIZE]
    mask = (1 << size) - 1
    head = state[s + HEAD]
    length = state[s + LENGTH]
    while length > 0 and entries[(offset + head) * ENTRY] <= newest - history_ms:
        head = (head + 1) & mask
        length -= 1
        position -= 1
    resized = size
    if offset < 0:
        resized = SIZE_MIN
    elif length > mask and size < size_max:
        resized = size + 1
    elif length > mask:
        if state[s + HOT] < 0:
            hot = take_block(blocks, control)
            if hot < 0:
                return False
            state[s + HOT] = hot
        if position == 0:
            fold(state[s + HOT], blocks, blocks_f, time, amount, tag, 0)
            state[s + HEAD] = head
            state[s + LENGTH] = length
            return True
        at = offset + head
        fold(
            state[s + HOT], blocks, blocks_f, entries[at * ENTRY], entries[at * ENTRY + 1], entries[at * ENTRY + 3],
            marks[at * MARK],
        )  # fmt: skip
        head = (head + 1) & mask
        length -= 1
        position -= 1
    elif size >= SIZE_SHRINKS and length <= 3 << size >> 3:
        resized = size - 1  # else each ring would in time be as large as its entity's busiest months asked for
    if resized != size:
        taken = take_ring(resized, entries, control)
        if taken < 0 and resized > size:
            return False
        if taken >= 0:
            for i in range(length):
                a = offset + ((head + i) & mask)
                b = taken + i
                for word in range(ENTRY):
                    entries[b * ENTRY + word] = entries[a * ENTRY + word]
                for word in range(MARK):
                    marks[b * MARK + word] = marks[a * MARK + word]
            if offset >= 0:
                free_ring(offset, size, entries, control)
            offset = taken
            head = 0
            mask = (1 << resized) - 1
            state[s + OFFSET] = offset
            state[s + SIZE] = resized
    for i in range(length, position, -1):
        b = offset + ((head + i) & mask)
        a = offset + ((head + i - 1) & mask)
        for word in range(ENTRY):
            entries[b * ENTRY + word] = entries[a * ENTRY + word]
        for word in range(MARK):
            marks[b * MARK + word] = marks[a * MARK + word]
    at = offset + ((head + position) & mask)
    entries[at * ENTRY] = time
    entries[at * ENTRY + 1] = amount
    entries[at * ENTRY + 2] = other
    entries[at * ENTRY + 3] = tag
    marks[at * MARK] = 0
    marks[at * MARK + 1] = where
    state[s + HEAD] = head
    state[s + LENGTH] = length + 1
    return True


@jit
def touch(start: int, stop: int, slots: Any, state: Any, entries: Any, marks: Any) -> int:
    """Read what rows `start` to `stop` will need, so that their cache misses overlap; the sum keeps the reads alive."""
    read = 0
    for row in range(start, stop):
        s = slots[row] * STATE
        read ^= state[s] ^ state[s + STATE - 1]
    for row in range(start, stop):
        s = slots[row] * STATE
        length = state[s + LENGTH]
        if length > 0:
            mask = (1 << state[s + SIZE]) - 1
            newest = state[s + HEAD] + length - 1
            for back in range(0, min(length, TOUCH_ENTRIES), 2):  # two entries share a cache line
                read ^= entries[(state[s] + ((newest - back) & mask)) * ENTRY]
            read ^= marks[(state[s] + ((newest + 1) & mask)) * MARK]
    return read


@jit
def observe(
    start: int,
    history_ms: int,
    size_max: int,
    maturity_ms: int,
    state: Any,
    state_f: Any,
    entries: Any,
    marks: Any,
    blocks: Any,
    blocks_f: Any,
    control: Any,
    scratch: Any,
    sums: Any,
    dirty: Any,
    slots: Any,
    event_ms: Any,
    amounts: Any,
    others: Any,
    payments: Any,
    categories: Any,
    minutes: Any,
    latitudes: Any,
    longitudes: Any,
    label_clock: Any,
    counts: Any,
    payer_ratios: Any,
    out: Any,
) -> int:
    """Features of rows from `start` on, each then placed; the row that needs a larger arena, or the number of rows."""
    rows = len(slots)
    category_stamps = 2 * (control[SEEN_MASK] + 1)
    for row in range(start, rows):
        if (row - start) % TOUCH_ROWS == 0:
            control[TOUCHED] ^= touch(row, min(row + TOUCH_ROWS, rows), slots, state, entries, marks)
        slot = slots[row]
        s = slot * STATE
        t = event_ms[row]
        amount = amounts[row]
        other = others[row]
        category = categories[row]
        if category < 0 or category >= CATEGORIES:
            category = 0
        minute = minutes[row]
        has_time = 0 <= minute < 7 * 1440
        weekday = minute // 1440 if has_time else 0
        minute = minute - weekday * 1440 if has_time else 0
        where = packed_position(latitudes[row], longitudes[row])

        offset = state[s + OFFSET]
        mask = (1 << state[s + SIZE]) - 1
        head = state[s + HEAD]
        length = state[s + LENGTH]
        newest = t
        position = length
        if length > 0:
            newest = max(t, entries[(offset + ((head + length - 1) & mask)) * ENTRY])
            while position > 0 and entries[(offset + ((head + position - 1) & mask)) * ENTRY] > t:
                position -= 1

        # The amount against the habit so far, in order of arrival.
        ratio = NAN
        z = NAN
        mean = state_f[s + HABIT_MEAN]
        known = state[s + HABIT_COUNT]
        if amount >= 0 and known > 0:
            ratio = amount / mean
            if known >= HABIT_AFTER:
                deviation = math.sqrt(max(state_f[s + HABIT_VARIANCE], 0.0))
                z = (amount - mean) / max(deviation, DEVIATION_FLOOR * mean)
        outlier = known >= HABIT_AFTER and ratio > OUTLIER_RATIO
        payer_outlier = outlier
        if len(payer_ratios) > 0:
            payer_outlier = payer_ratios[row] > OUTLIER_RATIO

        # One scan back from the payment, which is itself the first counted.
        control[STAMP] += 1
        stamp = control[STAMP]
        seen_mask = (4 << state[s + SIZE]) - 1  # four places an entry: small rings stay in a few cache lines
        count = 1
        with_amount = 0
        total = 0.0
        squares = 0.0
        largest = 0.0
        if amount >= 0:
            with_amount = 1
            total = float(amount)
            squares = total * total
            largest = total
        distinct = 0
        if other != 0:
            distinct = 1
            place_at = (other & seen_mask) * 2
            scratch[place_at] = other
            scratch[place_at + 1] = stamp
        kinds = 0
        if category != 0:
            kinds = 1
            scratch[category_stamps + category] = stamp
        distinct_1d = distinct_7d = distinct_30d = 0
        kinds_1d = kinds_30d = 0
        window = 0
        edge = t - WINDOWS_MS[0]
        horizon = t - history_ms
        mature = min(t, label_clock[row]) - maturity_ms
        outliers = outliers_3d = payer_outliers = recent = 0
        outlier_last = 0
        largest_14d = 0
        matured = matured_28d = frauds_7d = frauds_14d = frauds_28d = ordinary_28d = run = last = known_30d = 0
        running = True
        run_from = 0
        known_last = 0
        fraud_last = 0
        pair = 0
        pair_from = 0
        timed = same_band = weekends = 0
        in_category = in_category_amounts = 0
        category_total = 0.0
        previous_ms = 0
        previous_at = -1
        for i in range(position - 1, -1, -1):
            at = offset + ((head + i) & mask)
            e = at * ENTRY
            time = entries[e]
            while window < WINDOWS and time <= edge:
                w = window * 5
                sums[w] = float(count)
                sums[w + 1] = float(with_amount)
                sums[w + 2] = total
                sums[w + 3] = squares
                sums[w + 4] = largest
                if window == 2:
                    distinct_1d = distinct
                    kinds_1d = kinds
                elif window == 3:
                    distinct_7d = distinct
                elif window == 4:
                    distinct_30d = distinct
                    kinds_30d = kinds
                window += 1
                if window < WINDOWS:
                    edge = t - WINDOWS_MS[window]
            if time <= horizon:
                break
            tag = entries[e + 3]
            their_amount = entries[e + 1]
            their_other = entries[e + 2]
            their_category = tag & 0xFFFF
            if window < WINDOWS:
                count += 1
                if their_amount >= 0:
                    value = float(their_amount)
                    with_amount += 1
                    total += value
                    squares += value * value
                    largest = max(largest, value)
                if their_other != 0:
                    place_at = (their_other & seen_mask) * 2
                    while scratch[place_at + 1] == stamp and scratch[place_at] != their_other:
                        place_at = (place_at + 2) & (2 * seen_mask + 1)
                    if scratch[place_at + 1] != stamp:
                        scratch[place_at] = their_other
                        scratch[place_at + 1] = stamp
                        distinct += 1
                if their_category != 0 and scratch[category_stamps + their_category] != stamp:
                    scratch[category_stamps + their_category] = stamp
                    kinds += 1
            if their_other == other:
                pair += 1
                pair_from = time
            if their_category == category:
                in_category += 1
                if their_amount >= 0:
                    in_category_amounts += 1
                    category_total += float(their_amount)
            if has_time and tag & HAS_TIME != 0:
                timed += 1
                apart = abs(((tag >> MINUTE_SHIFT) & 0x7FF) - minute)
                if apart <= BAND_MINUTES or apart >= 1440 - BAND_MINUTES:
                    same_band += 1
                if (tag >> WEEKDAY_SHIFT) & 7 >= 5:
                    weekends += 1
            if time > t - 14 * DAY_MS:
                recent += 1
                largest_14d = max(largest_14d, their_amount)
                if tag & OUTLIER != 0:
                    outliers += 1
                    if time > t - 3 * DAY_MS:
                        outliers_3d += 1
                if tag & PAYER_OUTLIER != 0 and time > t - WINDOWS_MS[3]:
                    payer_outliers += 1
            if tag & OUTLIER != 0:
                outlier_last = max(outlier_last, time)
            if where >= 0 and previous_at < 0 and tag & HAS_POSITION != 0:
                previous_at = at
                previous_ms = time
            observed = marks[at * MARK] if tag & FRAUD != 0 else t + 1
            fraud = observed <= t
            if fraud:
                known_last = max(known_last, observed)
                fraud_last = max(fraud_last, time)
                if time > t - WINDOWS_MS[4]:
                    known_30d += 1
            if time <= mature:
                matured += 1
                if not fraud:
                    running = False
                elif running:
                    run += 1
                    run_from = time
                if matured <= LAST_MATURED and fraud:
                    last += 1
                if time > mature - 28 * DAY_MS:
                    matured_28d += 1
                    if fraud:
                        frauds_28d += 1
                        if tag & PAYER_OUTLIER == 0:
                            ordinary_28d += 1
                        if time > mature - 14 * DAY_MS:
                            frauds_14d += 1
                        if time > mature - 7 * DAY_MS:
                            frauds_7d += 1
        while window < WINDOWS:
            w = window * 5
            sums[w] = float(count)
            sums[w + 1] = float(with_amount)
            sums[w + 2] = total
            sums[w + 3] = squares
            sums[w + 4] = largest
            if window == 2:
                distinct_1d = distinct
                kinds_1d = kinds
            elif window == 3:
                distinct_7d = distinct
            elif window == 4:
                distinct_30d = distinct
                kinds_30d = kinds
            window += 1

        # What left the ring of a hot entity.
        hot = state[s + HOT]
        if hot >= 0:
            for k in range(WINDOWS):
                for p in range(PANES):
                    b = hot * BLOCK + (k * PANES + p) * PANE
                    if blocks[b + 2] > 0 and blocks[b] > t - WINDOWS_MS[k] and blocks[b + 1] <= t:
                        w = k * 5
                        sums[w] += float(blocks[b + 2])
                        sums[w + 1] += float(blocks[b + 3])
                        sums[w + 2] += blocks_f[b + 4]
                        sums[w + 3] += blocks_f[b + 5]
                        sums[w + 4] = max(sums[w + 4], blocks_f[b + 6])
            first_day = (mature - 28 * DAY_MS) // DAY_MS + 1
            for d in range(DAYS):
                b = hot * BLOCK + DAYS_AT + d * 2
                if first_day <= blocks[b] and (blocks[b] + 1) * DAY_MS - 1 <= mature:
                    matured_28d += blocks[b + 1]
            for f in range(FRAUDS):
                b = hot * BLOCK + FRAUDS_AT + f * 3
                observed = blocks[b + 2]
                if observed == 0 or observed > t:
                    continue
                time = blocks[b]
                if time <= horizon or time > t:
                    continue
                known_last = max(known_last, observed)
                fraud_last = max(fraud_last, time)
                if time > t - WINDOWS_MS[4]:
                    known_30d += 1
                if mature - 28 * DAY_MS < time <= mature:
                    frauds_28d += 1
                    if blocks[b + 1] & PAYER_OUTLIER == 0:
                        ordinary_28d += 1
                    if time > mature - 14 * DAY_MS:
                        frauds_14d += 1
                    if time > mature - 7 * DAY_MS:
                        frauds_7d += 1

        tag = (
            category
            | (minute << MINUTE_SHIFT)
            | (weekday << WEEKDAY_SHIFT)
            | (HAS_TIME if has_time else 0)
            | (OUTLIER if outlier else 0)
            | (PAYER_OUTLIER if payer_outlier else 0)
            | (HAS_POSITION if where >= 0 else 0)
            | ((payments[row] & PAYMENT_MASK) << PAYMENT_SHIFT)
        )
        top_ratio = largest_14d / mean if recent > 0 and known > 0 else NAN  # known is about to change
        since_last = NAN
        if position > 0:
            since_last = (t - entries[(offset + ((head + position - 1) & mask)) * ENTRY]) / 1000.0
        distance = NAN
        speed = NAN
        if previous_at >= 0:
            distance = chord_km(where, marks[previous_at * MARK + 1])
            speed = distance / (max(t - previous_ms, SPEED_AFTER_MS) / 3_600_000.0)

        if counts[row]:
            if not place(
                slot, position, newest, history_ms, size_max, t, amount, other, tag, where,
                state, entries, marks, blocks, blocks_f, control,
            ):  # fmt: skip
                return row
            dirty[slot] = 1
            if control[BEGAN] == BEGAN_NEVER:
                control[BEGAN] = t
            state[s + FIRST_SEEN] = min(state[s + FIRST_SEEN], t)
            if amount > 0:
                in_a_row = state[s + OUTLIERS_RUN] + 1 if outlier else 0
                state[s + OUTLIERS_RUN] = in_a_row
                if not outlier or in_a_row >= OUTLIERS_RUN_MAX:
                    known = min(known + 1, HABIT_COUNT_MAX)
                    share = 1.0 / known
                    away = amount - mean
                    state[s + HABIT_COUNT] = known
                    state_f[s + HABIT_MEAN] = mean + share * away
                    state_f[s + HABIT_VARIANCE] = (1.0 - share) * (state_f[s + HABIT_VARIANCE] + share * away * away)

        o = row * COLUMNS
        for k in range(WINDOWS):
            w = k * 5
            n = sums[w + 1]
            out[o + w + COUNT] = sums[w]
            if n > 0.0:
                average = sums[w + 2] / n
                out[o + w + SUM] = sums[w + 2]
                out[o + w + MEAN] = average
                out[o + w + DEVIATION] = math.sqrt(max(sums[w + 3] / n - average * average, 0.0))
                out[o + w + MAX] = sums[w + 4]
            else:
                out[o + w + SUM] = NAN
                out[o + w + MEAN] = NAN
                out[o + w + DEVIATION] = NAN
                out[o + w + MAX] = NAN
        out[o + SINCE_LAST_S] = since_last
        out[o + OTHERS_1D_DISTINCT] = distinct_1d
        out[o + OTHERS_7D_DISTINCT] = distinct_7d
        out[o + OTHERS_30D_DISTINCT] = distinct_30d
        out[o + CATEGORIES_1D_DISTINCT] = kinds_1d
        out[o + CATEGORIES_30D_DISTINCT] = kinds_30d
        began = control[BEGAN] if control[BEGAN] != BEGAN_NEVER else t
        out[o + COVERAGE_30D_SHARE] = min(max((t - began) / (30.0 * DAY_MS), 0.0), 1.0)
        out[o + AGE_S] = min(max(t - state[s + FIRST_SEEN], 0) / 1000.0, AGE_MAX_S)
        out[o + AMOUNT_RATIO] = ratio
        out[o + AMOUNT_Z] = z
        out[o + AMOUNT_14D_MAX_RATIO] = top_ratio
        out[o + OUTLIERS_3D_COUNT] = outliers_3d
        out[o + OUTLIERS_14D_COUNT] = outliers
        out[o + OUTLIERS_14D_SHARE] = float(outliers) / recent if recent > 0 else NAN
        out[o + SINCE_OUTLIER_S] = (t - outlier_last) / 1000.0 if outlier_last > 0 else NAN
        out[o + PAYER_OUTLIERS_7D_COUNT] = payer_outliers
        out[o + FRAUDS_7D_COUNT] = frauds_7d
        out[o + FRAUDS_14D_COUNT] = frauds_14d
        out[o + FRAUDS_28D_COUNT] = frauds_28d
        out[o + FRAUD_RUN_COUNT] = run
        out[o + FRAUD_RUN_AGE_S] = (t - run_from) / 1000.0 if run > 0 else NAN
        out[o + FRAUDS_ORDINARY_28D_COUNT] = ordinary_28d
        out[o + FRAUDS_LAST_5_COUNT] = float(last) if matured > 0 else NAN
        out[o + FRAUD_28D_SHARE] = (frauds_28d + SHARE_PRIOR) / (matured_28d + SHARE_WEIGHT)
        out[o + FRAUDS_KNOWN_30D_COUNT] = known_30d
        out[o + SINCE_FRAUD_KNOWN_S] = (t - known_last) / 1000.0 if known_last > 0 else NAN
        out[o + SINCE_FRAUD_S] = (t - fraud_last) / 1000.0 if fraud_last > 0 else NAN
        out[o + PAIR_COUNT] = float(pair) if other != 0 else NAN
        out[o + PAIR_AGE_S] = min((t - pair_from) / 1000.0, AGE_MAX_S) if other != 0 and pair > 0 else NAN
        out[o + HOUR_SHARE] = (same_band + 1.0) / (timed + 6.0) if timed > 0 else NAN
        usual = weekends if weekday >= 5 else timed - weekends
        out[o + WEEKEND_SHARE] = (usual + 1.0) / (timed + 2.0) if timed > 0 else NAN
        out[o + CATEGORY_COUNT] = float(in_category) if category != 0 else NAN
        category_ratio = NAN
        if category != 0 and amount >= 0 and category_total > 0.0:
            category_ratio = float(amount) * float(in_category_amounts) / category_total
        out[o + CATEGORY_AMOUNT_RATIO] = category_ratio
        out[o + DISTANCE_KM] = distance
        out[o + SPEED_KMH] = speed
    return rows


@jit
def label(
    slot: int,
    history_ms: int,
    payment: int,
    time: int,
    observed: int,
    state: Any,
    entries: Any,
    marks: Any,
    blocks: Any,
) -> int:
    """Set (or, with 0, clear) the fraud mark of one entry: 0 not held, 1 held and unchanged, 2 changed."""
    s = slot * STATE
    offset = state[s + OFFSET]
    length = state[s + LENGTH]
    head = state[s + HEAD]
    mask = (1 << state[s + SIZE]) - 1
    if length == 0:
        return 0
    low = 0
    high = length
    while low < high:
        middle = (low + high) // 2
        if entries[(offset + ((head + middle) & mask)) * ENTRY] < time:
            low = middle + 1
        else:
            high = middle
    while low < length:
        at = offset + ((head + low) & mask)
        if entries[at * ENTRY] != time:
            break
        if (entries[at * ENTRY + 3] >> PAYMENT_SHIFT) & PAYMENT_MASK == payment & PAYMENT_MASK:
            changed = marks[at * MARK] != observed
            entries[at * ENTRY + 3] = (entries[at * ENTRY + 3] & ~FRAUD) | (FRAUD if observed != 0 else 0)
            marks[at * MARK] = observed
            return 2 if changed else 1
        low += 1
    hot = state[s + HOT]
    newest = entries[(offset + ((head + length - 1) & mask)) * ENTRY]
    if hot < 0 or time > entries[(offset + head) * ENTRY] or time <= newest - history_ms:
        return 0
    for f in range(FRAUDS):
        b = hot * BLOCK + FRAUDS_AT + f * 3
        same = (blocks[b + 1] >> PAYMENT_SHIFT) & PAYMENT_MASK == payment & PAYMENT_MASK
        if blocks[b + 2] != 0 and blocks[b] == time and same:
            changed = blocks[b + 2] != observed
            if observed == 0:
                blocks[b] = 0
                blocks[b + 1] = 0
            blocks[b + 2] = observed
            return 2 if changed else 1
    if observed != 0:
        # What its amount was like left with the entry: not counted as ordinary.
        fold_fraud(hot, blocks, time, PAYER_OUTLIER | ((payment & PAYMENT_MASK) << PAYMENT_SHIFT), observed)
        return 2
    return 0


@jit
def pack(slot: int, at: int, buffer: Any, state: Any, entries: Any, marks: Any, blocks: Any, write: bool) -> int:
    """Write one entity from word `at` of `buffer` on; the number of words (only counted unless `write`)."""
    s = slot * STATE
    length = state[s + LENGTH]
    hot = state[s + HOT]
    words = HEADER + length * (ENTRY + MARK) + (BLOCK if hot >= 0 else 0)
    if not write:
        return words
    buffer[at] = VERSION | (length << 16) | ((1 if hot >= 0 else 0) << 48)
    buffer[at + 1] = state[s + FIRST_SEEN]
    buffer[at + 2] = state[s + HABIT_COUNT]
    buffer[at + 3] = state[s + OUTLIERS_RUN]
    buffer[at + 4] = state[s + HABIT_MEAN]
    buffer[at + 5] = state[s + HABIT_VARIANCE]
    offset = state[s + OFFSET]
    head = state[s + HEAD]
    mask = (1 << state[s + SIZE]) - 1
    b = at + HEADER
    for i in range(length):
        a = offset + ((head + i) & mask)
        for word in range(ENTRY):
            buffer[b + word] = entries[a * ENTRY + word]
        for word in range(MARK):
            buffer[b + ENTRY + word] = marks[a * MARK + word]
        b += ENTRY + MARK
    if hot >= 0:
        for word in range(BLOCK):
            buffer[b + word] = blocks[hot * BLOCK + word]
    return words


@jit
def unpack(slot: int, at: int, buffer: Any, state: Any, entries: Any, marks: Any, blocks: Any, control: Any) -> bool:
    """Read one entity from word `at` of `buffer` on into an empty slot; False if an arena must grow first."""
    s = slot * STATE
    length = (buffer[at] >> 16) & 0xFFFFFFFF
    hot = buffer[at] >> 48
    state[s + OFFSET] = -1
    state[s + SIZE] = 0
    state[s + HEAD] = 0
    state[s + LENGTH] = 0
    state[s + HOT] = -1
    state[s + FIRST_SEEN] = buffer[at + 1]
    state[s + HABIT_COUNT] = buffer[at + 2]
    state[s + OUTLIERS_RUN] = buffer[at + 3]
    state[s + HABIT_MEAN] = buffer[at + 4]
    state[s + HABIT_VARIANCE] = buffer[at + 5]
    if hot and control[BLOCKS_FREE] < 0 and control[BLOCKS_NEXT] >= control[BLOCKS_SIZE]:
        return False
    b = at + HEADER
    if length > 0:
        size = SIZE_MIN
        while (1 << size) < length:
            size += 1
        offset = take_ring(size, entries, control)
        if offset < 0:
            return False
        for i in range(length):
            a = offset + i
            for word in range(ENTRY):
                entries[a * ENTRY + word] = buffer[b + word]
            for word in range(MARK):
                marks[a * MARK + word] = buffer[b + ENTRY + word]
            b += ENTRY + MARK
        state[s + OFFSET] = offset
        state[s + SIZE] = size
        state[s + LENGTH] = length
    if hot:
        block = take_block(blocks, control)
        for word in range(BLOCK):
            blocks[block * BLOCK + word] = buffer[b + word]
        state[s + HOT] = block
    return True


@jit
def pack_all(slots: Any, starts: Any, buffer: Any, state: Any, entries: Any, marks: Any, blocks: Any) -> None:
    """Where each of `slots` starts in the buffer, in words; and, if it has room, their values."""
    write = len(buffer) > 0
    at = 0
    for i in range(len(slots)):
        starts[i] = at
        at += pack(slots[i], at, buffer, state, entries, marks, blocks, write)
    starts[len(slots)] = at


@jit
def unpack_all(
    start: int, slots: Any, starts: Any, buffer: Any, state: Any, entries: Any, marks: Any, blocks: Any, control: Any
) -> int:
    """Read values from number `start` on; the number of the one for which an arena must grow, or how many there are."""
    for i in range(start, len(slots)):
        if not unpack(slots[i], starts[i], buffer, state, entries, marks, blocks, control):
            return i
    return len(slots)


# The table of keys: 3 words a place (two hashes of the key, slot + 1; 0: free), linear probing, at most half full.
PLACE: Final = 3


@jit
def find(first: Any, second: Any, table: Any, found: Any, used: Any, tick: int) -> int:
    """Slot of each key by its two hashes, -1 if it has none; how many have none. `used`: when each slot was asked for
    last, from now on `tick`."""
    mask = len(table) // PLACE - 1
    missing = 0
    for i in range(len(found)):
        at = first[i] & mask
        while table[at * PLACE + 2] != 0 and (
            table[at * PLACE] != first[i] or table[at * PLACE + 1] != second[i]
        ):  # fmt: skip
            at = (at + 1) & mask
        slot = table[at * PLACE + 2] - 1
        found[i] = slot
        if slot < 0:
            missing += 1
        else:
            used[slot] = tick
    return missing


@jit
def begin(rows: Any, slots: Any, first: Any, second: Any, kept_first: Any, kept_second: Any, state: Any) -> None:
    """New entities: the hashes of those at `rows` are kept for their slots, and their state says that nothing came."""
    for i in range(len(slots)):
        kept_first[slots[i]] = first[rows[i]]
        kept_second[slots[i]] = second[rows[i]]
        s = slots[i] * STATE
        for word in range(STATE):
            state[s + word] = 0
        state[s + OFFSET] = -1
        state[s + HOT] = -1
        state[s + FIRST_SEEN] = NEVER_SEEN


@jit
def enter(first: Any, second: Any, slots: Any, table: Any) -> None:
    """Enter keys that are not in the table; `first`, `second`: the hashes kept for each slot."""
    mask = len(table) // PLACE - 1
    for i in range(len(slots)):
        slot = slots[i]
        at = first[slot] & mask
        while table[at * PLACE + 2] != 0:
            at = (at + 1) & mask
        table[at * PLACE] = first[slot]
        table[at * PLACE + 1] = second[slot]
        table[at * PLACE + 2] = slot + 1


@jit
def leave(first: Any, slots: Any, table: Any) -> None:
    """Remove keys by their slots, closing the gap, so that probing never meets a dead place."""
    mask = len(table) // PLACE - 1
    for i in range(len(slots)):
        gap = first[i] & mask
        while table[gap * PLACE + 2] != slots[i] + 1:
            gap = (gap + 1) & mask
        at = gap
        while True:
            at = (at + 1) & mask
            if table[at * PLACE + 2] == 0:
                break
            if (at - (table[at * PLACE] & mask)) & mask >= (at - gap) & mask:
                for word in range(PLACE):
                    table[gap * PLACE + word] = table[at * PLACE + word]
                gap = at
        table[gap * PLACE + 2] = 0
