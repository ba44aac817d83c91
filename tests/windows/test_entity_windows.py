"""The kernel against the brute-force oracle, and every way of running it against every other."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import DAY, HOUR, MINUTE, Oracle, Row

from stream.errors import InternalError
from stream.features import ENTITY_FEATURES, ENTITY_INDEX
from stream.windows import kernel
from stream.windows.entity import STORE_KEY, EntityWindows, Observations

ENTRIES_MAX = 8
MATURITY_MS = 3 * DAY
START_MS = 1_700_000_000_000
NAN = math.nan

Label = tuple[int, int, int, int | None]  # entity, payment, event_ms, observed_ms
Step = Row | Label


@st.composite
def stories(draw: st.DrawFn) -> list[Step]:
    """Payments in order of arrival, late and tied ones among them, and labels, withdrawn ones among them."""
    entities = draw(st.integers(1, 3))
    steps: list[Step] = []
    rows: list[Row] = []
    now = clock = START_MS
    # The edges of windows and panes, both sides of each.
    gaps = st.sampled_from(
        [0, 0, 1, 1_000, 12_500, 5 * MINUTE - 1, 5 * MINUTE, HOUR, 8 * HOUR, DAY - 1, DAY, 3 * DAY, 7 * DAY, 31 * DAY]
    )
    late = st.sampled_from([1, 12_500, 5 * MINUTE, HOUR, 2 * DAY, 20 * DAY, 89 * DAY, 90 * DAY, 200 * DAY])
    amounts = st.sampled_from([-1, 0, 1, 99, 100, 101, 120, 5_000, 10**15])
    places = st.sampled_from([None, None, (52.52, 13.405), (48.14, 11.58), (-33.87, 151.2), (0.0, 179.9), (0.0, -179)])
    for number in range(draw(st.integers(1, 70))):
        what = draw(st.integers(0, 9))
        if what >= 8 and rows:
            row = draw(st.sampled_from(rows[-30:]))
            observed = draw(st.sampled_from([None, row.time, now - DAY, now, now + 5 * DAY]))
            steps.append((row.entity, row.payment, row.time, observed))
            continue
        now += draw(gaps)
        clock = max(clock, now - draw(st.sampled_from([-DAY, 0, DAY, 4 * DAY])))
        row = Row(
            entity=draw(st.integers(0, entities - 1)),
            time=now - draw(late) if what == 7 else now,
            amount=draw(amounts),
            other=draw(st.sampled_from([0, 1, 2, 1025, 2**63 + 2])),
            payment=number + 1,
            category=draw(st.sampled_from([0, 5411, 65535])),
            minute=draw(st.sampled_from([-1, 0, 119, 120, 1439, 7199, 7200, 10_079])),
            place=draw(places),
            clock=clock,
            counts=draw(st.integers(0, 9)) > 0,
            payer_ratio=draw(st.sampled_from([NAN, 1.0, 2.5, 2.6])),
        )
        rows.append(row)
        steps.append(row)
    return steps


def crowd(payments: int, entities: int, seed: int, gap_ms: int) -> list[Step]:
    """Many payments of few entities, so that rings overflow many times; a tenth late, some frauds."""
    random = np.random.default_rng(seed)
    steps: list[Step] = []
    for number in range(payments):
        time = START_MS + number * gap_ms - int(random.integers(0, 20 * gap_ms)) * int(random.integers(0, 10) == 0)
        row = Row(
            int(random.integers(0, entities)), time, int(random.integers(0, 10_000)), int(random.integers(1, 40)),
            number + 1, int(random.integers(1, 9)), number * 7 % 10_080, None, time,
        )  # fmt: skip
        steps.append(row)
        if random.integers(0, 6) == 0:
            steps.append((row.entity, row.payment, time, time + 2 * DAY))
    return steps


def columns(rows: list[Row], *, payers: bool) -> Observations:
    def each(values: Iterator[object], dtype: type) -> NDArray[np.generic]:
        return np.array(list(values), dtype)

    return Observations(
        event_ms=each((r.time for r in rows), np.int64),
        amount=each((r.amount for r in rows), np.int64),
        other=each((r.other for r in rows), np.uint64),
        payment=each((r.payment for r in rows), np.uint64),
        category=each((r.category for r in rows), np.int32),
        minute_of_week=each((r.minute for r in rows), np.int32),
        latitude=each((r.place[0] if r.place else NAN for r in rows), np.float32),
        longitude=each((r.place[1] if r.place else NAN for r in rows), np.float32),
        label_clock=each((r.clock for r in rows), np.int64),
        counts=each((r.counts for r in rows), np.bool_),
        payer_ratio=each((r.payer_ratio for r in rows), np.float32) if payers else None,
    )  # type: ignore[arg-type]


def replay(
    steps: list[Step], *, batch: int = 1000, plain: bool = False, payers: bool = False,
    restart_every: int = 0, evict_to: int | None = None, entries_max: int = ENTRIES_MAX,
) -> tuple[NDArray[np.float32], list[bool], dict[bytes, bytes]]:  # fmt: skip
    """Features of each row, whether each label met its entry, and what is stored in the end."""
    store: dict[bytes, bytes] = {}

    def load(keys: list[bytes]) -> list[bytes | None]:
        return [store.get(key) for key in keys]

    windows = EntityWindows(entries_max=entries_max, plain=plain)
    waiting: list[Row] = []
    features: list[NDArray[np.float32]] = []
    held: list[bool] = []
    calls = 0

    def flush() -> None:
        nonlocal windows, calls
        if waiting:
            slots = windows.slots([b"entity %d" % row.entity for row in waiting], load)
            features.append(windows.observe(slots, columns(waiting, payers=payers), maturity_ms=MATURITY_MS))
            waiting.clear()
            calls += 1
            if evict_to is not None:
                store.update(windows.export_dirty())
                windows.evict(evict_to)
            if restart_every and calls % restart_every == 0:
                store.update(windows.export_dirty())
                windows = EntityWindows(entries_max=entries_max, plain=plain)

    for step in steps:
        if isinstance(step, Row):
            waiting.append(step)
            if len(waiting) == batch:
                flush()
            continue
        flush()
        entity, payment, event_ms, observed = step
        (slot,) = windows.slots([b"entity %d" % entity], load)
        fraud = observed is not None
        held.append(
            windows.label(int(slot), payment=payment, event_ms=event_ms, observed_ms=observed or 0, fraud=fraud)
        )
    flush()
    store.update(windows.export_dirty())
    return np.vstack([np.zeros((0, kernel.COLUMNS), np.float32), *features]), held, store


def check_against_oracle(steps: list[Step], *, payers: bool = False, entries_max: int = ENTRIES_MAX) -> None:
    features, held, _ = replay(steps, payers=payers, entries_max=entries_max)
    oracle = Oracle(entries_max, MATURITY_MS, payers=payers)
    at = 0
    for step in steps:
        if not isinstance(step, Row):
            assert oracle.label(*step) == held.pop(0), step
            continue
        expected = oracle.observe(step)
        assert set(expected) == set(ENTITY_INDEX)
        for name, value in expected.items():
            got = float(features[at, ENTITY_INDEX[name]])
            # Positions are kept to 1e-5 degrees; a deviation is the difference of two large squares.
            loose = 0.005 if name in ("distance_km", "speed_kmh") else 1e-9
            if name.endswith("_deviation"):
                loose = 1e-6 * expected[name.replace("deviation", "max")] if not math.isnan(value) else 0
            if name == "speed_kmh" and step.place:
                loose *= 60
            same = math.isnan(got) if math.isnan(value) else math.isclose(got, value, rel_tol=2e-6, abs_tol=loose)
            assert same, f"row {at} {name}: {got}, expected {value}"
        at += 1


@settings(max_examples=150, deadline=None)
@given(steps=stories(), payers=st.booleans())
def test_every_feature_equals_brute_force(steps: list[Step], payers: bool):
    check_against_oracle(steps, payers=payers)


@pytest.mark.parametrize("gap_ms", [1, 900, 40_000, 3 * HOUR])
def test_a_hot_entity_beyond_its_ring_equals_the_model_of_panes(gap_ms: int):
    check_against_oracle(crowd(900, 2, 7, gap_ms))


def test_the_default_ring_equals_brute_force_beyond_256_entries():
    check_against_oracle(crowd(700, 1, 3, 2 * HOUR), entries_max=256)


@settings(max_examples=60, deadline=None)
@given(steps=stories(), batch=st.sampled_from([1, 2, 7]), evict_to=st.integers(0, 2), restart_every=st.integers(1, 5))
def test_cuts_evictions_and_restarts_change_no_bit(steps: list[Step], batch: int, evict_to: int, restart_every: int):
    features, held, store = replay(steps)
    for other in (
        replay(steps, batch=batch),
        replay(steps, batch=batch, evict_to=evict_to),
        replay(steps, batch=batch, restart_every=restart_every),
    ):
        assert other[0].tobytes() == features.tobytes()
        assert other[1] == held
        assert other[2] == store


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_hot_entities_survive_cuts_evictions_and_restarts(batch: int):
    steps = crowd(1500, 3, 11, 20_000)
    features, held, store = replay(steps, batch=1000)
    again = replay(steps, batch=batch, evict_to=1, restart_every=3)
    assert again[0].tobytes() == features.tobytes()
    assert again[1:] == (held, store)


@settings(max_examples=40, deadline=None)
@given(steps=stories(), payers=st.booleans())
@example(steps=crowd(400, 2, 5, 30_000), payers=False)
def test_plain_python_gives_the_same_bits_as_numba(steps: list[Step], payers: bool):
    features, held, store = replay(steps, payers=payers)
    plain = replay(steps, payers=payers, plain=True, batch=3)
    assert plain[0].tobytes() == features.tobytes()
    assert plain[1:] == (held, store)


def one(windows: EntityWindows, row: Row) -> dict[str, float]:
    slots = windows.slots([b"a"], lambda keys: [None] * len(keys))
    values = windows.observe(slots, columns([row], payers=False), maturity_ms=MATURITY_MS)[0]
    return dict(zip((feature.name for feature in ENTITY_FEATURES), values.tolist(), strict=True))


def test_a_window_is_open_at_its_start_and_closed_at_its_end():
    windows = EntityWindows()
    one(windows, Row(0, START_MS))
    assert one(windows, Row(0, START_MS + 5 * MINUTE))["payments_5m_count"] == 1
    assert one(windows, Row(0, START_MS + 10 * MINUTE - 1))["payments_5m_count"] == 2
    assert one(windows, Row(0, START_MS + 10 * MINUTE - 1))["payments_5m_count"] == 3


def test_history_is_open_at_its_start():
    for gap_ms, seen in ((90 * DAY - 1, 1), (90 * DAY, 0)):
        windows = EntityWindows()
        one(windows, Row(0, START_MS, other=5))
        assert one(windows, Row(0, START_MS + gap_ms, other=5))["pair_count"] == seen


def test_absence_is_not_zero():
    first = one(EntityWindows(), Row(0, START_MS, amount=-1))
    assert first["payments_30d_count"] == 1
    absent = ["since_last_s", "amount_1d_sum", "amount_ratio", "amount_z", "pair_count", "category_count", "hour_share"]
    assert all(math.isnan(first[name]) for name in absent)
    assert first["age_s"] == first["coverage_30d_share"] == 0


def test_coverage_tells_a_cold_start_from_a_quiet_account():
    windows = EntityWindows()
    load = lambda keys: [None] * len(keys)  # noqa: E731
    windows.observe(
        windows.slots([b"someone else"], load), columns([Row(0, START_MS)], payers=False), maturity_ms=MATURITY_MS
    )
    late_start = one(windows, Row(0, START_MS + 15 * DAY))
    assert late_start["coverage_30d_share"] == 0.5
    assert late_start["age_s"] == 0


def test_a_row_that_does_not_count_leaves_no_trace():
    windows = EntityWindows()
    one(windows, Row(0, START_MS))
    before = windows.export_dirty()
    assert one(windows, Row(0, START_MS + 1, counts=False))["payments_5m_count"] == 2
    assert windows.export_dirty() == {}
    assert one(windows, Row(0, START_MS + 2))["payments_5m_count"] == 2
    assert before.keys() == {STORE_KEY, b"a"}


def test_sums_of_squares_of_the_largest_amounts_do_not_overflow():
    windows = EntityWindows()
    for i in range(600):
        features = one(windows, Row(0, START_MS + i, amount=2**62))
    assert features["amount_30d_sum"] == pytest.approx(600 * 2.0**62)
    assert features["amount_30d_deviation"] == pytest.approx(0, abs=2.0**40)


def test_the_eighth_outlier_in_a_row_becomes_the_habit():
    windows = EntityWindows()
    for i in range(20):
        one(windows, Row(0, START_MS + i, amount=100))
    ratios = [one(windows, Row(0, START_MS + 20 + i, amount=1_000))["amount_ratio"] for i in range(40)]
    assert ratios[:8] == [10] * 8
    assert ratios[8] < 10
    assert ratios[-1] < 2.5


def test_a_label_is_invisible_to_payments_before_its_observation_and_to_unripe_clocks():
    windows = EntityWindows()
    one(windows, Row(0, START_MS, payment=9))
    assert windows.label(0, payment=9, event_ms=START_MS, observed_ms=START_MS + 2 * DAY, fraud=True)
    late = START_MS + 10 * DAY

    def seen(time: int, clock: int) -> tuple[float, float]:
        row = one(windows, Row(0, time, clock=clock, counts=False))
        return row["frauds_known_30d_count"], row["frauds_28d_count"]

    assert seen(START_MS + 2 * DAY - 1, late) == (0, 0)
    assert seen(START_MS + 2 * DAY, late) == (1, 0)
    assert seen(late, START_MS + 3 * DAY - 1) == (1, 0)
    assert seen(late, START_MS + 3 * DAY) == (1, 1)
    assert windows.label(0, payment=9, event_ms=START_MS, observed_ms=0, fraud=True)
    assert seen(late, late) == (0, 0)
    assert not windows.label(0, payment=8, event_ms=START_MS, observed_ms=1, fraud=True)
    assert not windows.label(0, payment=9, event_ms=START_MS + 1, observed_ms=1, fraud=True)


def test_eviction_spares_the_latest_and_what_is_not_exported():
    windows = EntityWindows()
    asked: list[bytes] = []

    def load(keys: list[bytes]) -> list[bytes | None]:
        asked.extend(keys)
        return [None] * len(keys)

    for key in (b"a", b"b", b"c"):
        windows.observe(windows.slots([key], load), columns([Row(0, START_MS)], payers=False), maturity_ms=MATURITY_MS)
    assert windows.evict(0) == 0, "nothing is exported yet"
    windows.export_dirty()
    assert windows.evict(1) == 2
    assert len(windows) == 1
    asked.clear()
    windows.slots([b"c", b"a", b"a"], load)
    assert asked == [b"a"]


def test_those_who_stay_are_found_after_others_leave():
    windows = EntityWindows()
    keys = [b"%d" % i for i in range(2_000)]
    asked: list[bytes] = []

    def load(wanted: list[bytes]) -> list[bytes | None]:
        asked.extend(key for key in wanted if key != STORE_KEY)
        return [None] * len(wanted)

    for step in (2, 3, 5):
        windows.slots(keys, load)
        stay = keys[::step]
        slots = windows.slots(stay, load)
        assert windows.evict(len(stay)) == len(keys) - len(stay)
        asked.clear()
        assert windows.slots(stay, load).tolist() == slots.tolist()
        assert asked == []
        windows.slots(keys, load)
        assert asked == [key for key in keys if key not in set(stay)]


def test_rings_of_the_evicted_are_used_again():
    windows = EntityWindows()
    size = 0
    for turn in range(50):
        keys = [b"%d %d" % (turn, i) for i in range(100) for _ in range(9)]
        rows = columns([Row(0, START_MS + i) for i in range(len(keys))], payers=False)
        windows.observe(windows.slots(keys, lambda ks: [None] * len(ks)), rows, maturity_ms=MATURITY_MS)
        windows.export_dirty()
        assert windows.evict(0) == 100
        size = size or windows.memory_bytes
    assert windows.memory_bytes == size


def test_rings_of_those_who_went_quiet_are_used_again():
    windows = EntityWindows()
    groups, busy = 30, 200
    sizes: list[int] = []
    now = START_MS
    for turn in range(groups):
        keys = [b"%d" % entity for entity in range(10 * groups)]  # everybody pays now and then
        keys += [b"%d" % (10 * turn + i) for _ in range(busy) for i in range(10)]  # and in each season other ten, a lot
        rows = [Row(0, now + i * HOUR // 10) for i in range(len(keys))]
        now = rows[-1].time + 100 * DAY
        slots = windows.slots(keys, lambda ks: [None] * len(ks))
        windows.observe(slots, columns(rows, payers=False), maturity_ms=MATURITY_MS)
        sizes.append(windows.memory_bytes)
    assert sizes[-1] == sizes[4] < 30 * 10 * 256 * 48


def bursts() -> list[Step]:
    """One entity that fills a large ring, goes quiet until it is halved again and again, and comes back."""
    steps: list[Step] = []
    now = START_MS
    for payments, quiet in ((100, 60 * DAY), (20, 35 * DAY), (3, 80 * DAY), (40, 50 * DAY), (9, 41 * DAY), (300, DAY)):
        for _ in range(payments):
            now += 7 * MINUTE
            steps.append(
                Row(entity=0, time=now, amount=1_000 + len(steps), other=len(steps) % 5, payment=len(steps) + 1)
            )
            if len(steps) % 11 == 0:
                steps.append((0, len(steps), now, now + DAY))
        now += quiet
    return steps


def test_a_ring_that_is_halved_changes_no_bit():
    check_against_oracle(bursts(), entries_max=256)
    whole, held, stored = replay(bursts(), entries_max=256)
    again, held_again, stored_again = replay(bursts(), entries_max=256, batch=5, restart_every=3)
    np.testing.assert_array_equal(whole.view(np.uint32), again.view(np.uint32))
    assert (held, stored) == (held_again, stored_again)


def test_read_only_strided_and_narrow_columns_are_copied_not_compiled():
    rows = columns([Row(0, START_MS + i, category=i) for i in range(6)], payers=False)
    odd = rows._replace(category=rows.category.astype(np.uint16), amount=np.repeat(rows.amount, 2)[::2])  # type: ignore[arg-type]
    odd.event_ms.flags.writeable = False
    results = []
    for given_rows in (rows, odd):
        windows = EntityWindows()
        slots = windows.slots([b"a"] * 6, lambda keys: [None] * len(keys))
        results.append(windows.observe(slots, given_rows, maturity_ms=MATURITY_MS).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "value", [b"", b"\x02" + bytes(47), b"\x01" + bytes(40), b"\x01\x00\x03" + bytes(45), b"x" * 9]
)
def test_bytes_that_no_version_wrote_are_refused(value: bytes):
    windows = EntityWindows()
    for _ in range(2):  # nothing half-loaded stays behind
        with pytest.raises(InternalError, match="stored windows of b'a'"):
            windows.slots([b"a"], lambda keys: [None if key == STORE_KEY else value for key in keys])


def test_wrong_use_is_refused():
    with pytest.raises(ValueError):
        EntityWindows(entries_max=100)
    windows = EntityWindows()
    with pytest.raises(ValueError):
        windows.slots([b""], lambda keys: [None] * len(keys))
    with pytest.raises(ValueError):
        windows.slots([b"a"], lambda keys: [])
    slots = windows.slots([b"a"], lambda keys: [None] * len(keys))
    with pytest.raises(ValueError):
        windows.observe(slots, columns([Row(0, 1), Row(0, 2)], payers=False), maturity_ms=1)
