"""Payments in columns and payments one by one: the same answers, journals, examples and states, to the byte."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from struct import pack
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.replay.local import Local, build_runner
from stream.replay.log import LocalLog, local_topic_id
from stream.runner.errors import StepFailed
from stream.runner.partition import META_KEY
from stream.stages.stage import Journal, Record, long_pieces, runs_of
from stream.stages.state import MemoryStore
from stream.stages.wiring import Partitions
from topics.control import Rates, encode_control
from topics.journal import (
    LAYOUT,
    LAYOUT_OLDEST,
    RAW_BYTES_MAX,
    Block,
    Item,
    Placed,
    PlacedRun,
    RawRun,
    decode_block,
    decode_dense,
    encode_block,
)
from topics.limits import DAY_MS, Limits

NOW_MS = 1_760_000_000_000
PARTITIONS = Partitions(payments=2, account=2, terminal=2, decisions=3)
TOPICS = {"decisions": 3, "decision-details": 3, "dead-letters": 3, "examples": 1}
RATES = Rates(base="EUR", nano_base_per_minor={"USD": 900_000_000, "JPY": 6_100_000_000})
POLICY = {"mode": "enforce", "review_from": 0.5}


@st.composite
def payments(draw: st.DrawFn) -> dict[str, Any]:
    """Of few accounts and ids, so that they meet: repeats, contradictions, late ones. An id of None is the place's."""
    payment: dict[str, Any] = {
        "payment_id": draw(st.none() | st.none() | st.integers(0, 20).map(lambda number: f"p{number}")),
        "event_time": NOW_MS + draw(st.integers(-3 * DAY_MS, 60_000)) // 1000 * 1000,
        "account_id": f"a{draw(st.integers(0, 5))}",
        "amount": draw(st.sampled_from([0, 100, 2_500, 10**15])),
        "currency": draw(st.sampled_from(["EUR", "EUR", "EUR", "USD", "JPY", "CHF", "XXY"])),
    }
    optional: dict[str, st.SearchStrategy[Any]] = {
        "terminal_id": st.sampled_from(["t1", "t2", "t3", "a1"]),
        "tenant_id": st.sampled_from(["default", "other"]),
        "mode": st.sampled_from(["live", "test", "backfill"]),
        "operation": st.sampled_from(["authorisation", "refund", "payout"]),
        "mcc": st.sampled_from(["5411", "9999", "54a1"]),
        "billing_amount": st.integers(0, 10**6),
        "billing_currency": st.sampled_from(["EUR", "USD"]),
        "latitude": st.sampled_from([52.52, -3.25, 0.0]),
        "longitude": st.sampled_from([13.405, -180.0]),
        "utc_offset_min": st.integers(-720, 720),
        "channel": st.sampled_from(["pos", "ecom"]),
        "respond_by": st.just(NOW_MS + 5_000),
        "attempt": st.integers(1, 3),
        "attributes": st.just({"basket": 3}),
        "order_id": st.sampled_from(["o-1", "\u00e9", 'quo"te']),
        "unknown": st.just(1),
        "padded": st.just(True),
    }
    chosen = draw(st.dictionaries(st.sampled_from(sorted(optional)), st.none(), max_size=4))
    return payment | {name: draw(optional[name]) for name in chosen}


@st.composite
def words(draw: st.DrawFn) -> dict[str, Any]:
    """A label or the labels' clock."""
    observed_at = NOW_MS + draw(st.integers(0, 3)) * DAY_MS
    if draw(st.booleans()):
        return {"kind": "clock", "observed_at": observed_at}
    number, account = draw(st.integers(0, 20)), draw(st.integers(0, 5))
    return {
        "kind": draw(st.sampled_from(["chargeback", "fraud_report", "genuine"])),
        "payment_id": f"p{number}",
        "account_id": f"a{account}",
        "observed_at": observed_at,
    }


rounds = st.lists(
    st.tuples(st.lists(payments(), min_size=8, max_size=40), st.lists(words(), max_size=4)), min_size=1, max_size=4
)
TRACES = (None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "nonsense")


@contextmanager
def columns_from(few: int) -> Iterator[None]:
    with ExitStack() as stack:
        for stage in ("intake", "account", "terminal"):
            stack.enter_context(patch(f"stream.stages.{stage}.FEW", few))
        yield


def went(given_rounds: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]]]], few: int) -> dict[str, Any]:
    """All that came of it, and how many payments were journaled in columns."""
    with columns_from(few):
        local = Local(LocalLog(), PARTITIONS)
        local.now_ms = NOW_MS + 2_000
        for kind, payload in (("settings", Limits(maturity_ms=DAY_MS)), ("rates", RATES)):
            body = encode_control(kind=kind, by="test", why="test", payload=payload)
            local.log.append("control", 0, body, at_ms=NOW_MS)
        for number, (some, words_) in enumerate(given_rounds):
            for i, payment in enumerate(some):
                trace = TRACES[i % 7] if i % 7 < len(TRACES) and number % 2 else None
                headers = () if trace is None else (("traceparent", trace.encode()),)
                padding = b" " * RAW_BYTES_MAX if payment.get("padded") else b""  # what is kept of it is a payment
                named = {**payment, "payment_id": payment["payment_id"] or f"u{number}-{i}"}
                value = msgspec.json.encode({k: v for k, v in named.items() if k != "padded"}) + padding
                local.log.append("payments", i % 2, value, at_ms=local.now_ms, headers=headers)
            for word in words_:
                local.log.append("labels", 0, msgspec.json.encode(word), at_ms=local.now_ms + 4 * DAY_MS)
            local.pump()
            local.tick()
            local.pump()
        for at in local.runners:
            local.checkpoint(at)
    said = {
        (topic, p): [(r.key, r.value, list(r.headers)) for r in local.log.read(topic, p, 0, 10**6)]
        for topic, count in TOPICS.items()
        for p in range(count)
    }
    placed = [
        [decode_block(record.value or b"") for record in local.log.read("terminal-journal", p, 0, 10**6)]
        for p in range(PARTITIONS.terminal)
    ]
    states = {at: list(store.pairs()) for at, store in local.stores.items()}
    dense = sum(
        item.count
        for p in range(PARTITIONS.terminal)
        for record in local.log.read("terminal-journal", p, 0, 10**6)
        for item in decode_dense(record.value or b"").items
        if isinstance(item, PlacedRun)
    )
    raw = [
        [(b.sender, b.partition, b.prev, b.items) for b in map(decoded, local.log.read("account-journal", p, 0, 10**6))]
        for p in range(PARTITIONS.account)
    ]
    return {
        "said": said,
        "placed": [[(b.sender, b.partition, b.prev, b.items) for b in blocks] for blocks in placed],
        "states": states,
        "dense": dense,
        "raw": raw,
    }


def decoded(record: Record) -> Block:
    return decode_block(record.value or b"")


seen: list[int] = []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rounds)
def test_both_roads_lead_to_the_same_bytes(given_rounds: list[Any]) -> None:
    one_by_one, dense = went(given_rounds, 10**9), went(given_rounds, 0)
    assert one_by_one.pop("dense") == 0
    seen.append(dense.pop("dense"))
    assert dense["raw"] == one_by_one["raw"]
    assert dense["placed"] == one_by_one["placed"]
    assert dense["said"] == one_by_one["said"]
    assert dense["states"] == one_by_one["states"]
    assert META_KEY in dict(dense["states"]["terminal-journal", 0])


def test_and_most_payments_went_in_columns() -> None:
    if seen:  # alone it has nothing to say
        assert sum(seen) > 5 * len(seen)


def runs() -> list[PlacedRun]:
    some = [
        {
            "payment_id": f"p{i}",
            "event_time": NOW_MS + i,
            "account_id": f"a{i % 3}",
            "amount": 100 + i,
            "currency": "EUR",
            **({"terminal_id": f"t{i % 2}"} if i % 3 else {}),
            **({"mode": "test"} if i % 5 == 0 else {}),
        }
        for i in range(30)
    ]
    with columns_from(0):
        local = Local(LocalLog(), Partitions(payments=1, account=1, terminal=1, decisions=1))
        local.now_ms = NOW_MS + 2_000
        for payment in some:
            local.log.append("payments", 0, msgspec.json.encode(payment), at_ms=local.now_ms)
        local.pump()
        records = local.log.read("terminal-journal", 0, 0, 100)
    return [item for r in records for item in decode_dense(r.value or b"").items if isinstance(item, PlacedRun)]


def test_a_run_stands_for_its_payments() -> None:
    (run,) = runs()
    placed = list(run.spread())
    assert [item.payment.payment_id for item in placed] == [f"p{i}" for i in range(30)]
    assert [item.payment.mode == "test" for item in placed] == [i % 5 == 0 for i in range(30)]
    assert [item.base_amount for item in placed] == [100 + i for i in range(30)]
    assert (placed[0].n, placed[-1].n) == (run.n, run.last_n)
    assert len({item.pid for item in placed}) == run.count == 30


@pytest.mark.parametrize("layout", [LAYOUT_OLDEST, LAYOUT])
def test_who_reads_a_block_sees_single_items(layout: int) -> None:
    items: list[Item] = [*runs()] if layout == LAYOUT else [*runs()[0].spread()]
    block = Block(layout=layout, sender=b"s" * 16, partition=0, prev=(-1, -1), items=items)
    assert [type(item) for item in decode_block(encode_block(block)).items] == [Placed] * 30


def raw_run(**changes: Any) -> RawRun:
    run = RawRun(4, 0, 6, 2, 0, pack("<2q", 4, 6), pack("<2q", 1, 2), pack("<2i", 2, 3), b"{}\0[1]\0")
    return msgspec.structs.replace(run, **changes)


DAMAGED = [
    raw_run(count=0),
    raw_run(count=3),
    raw_run(at_ms=pack("<q", 1)),
    raw_run(offsets=pack("<2q", 4, 7)),
    raw_run(lengths=pack("<2i", 3, 2), values=b"{}\0[1]"),
    raw_run(lengths=pack("<2i", -1, 6)),
    raw_run(traceparents=[None]),
    *[msgspec.structs.replace(run, **changes) for run in runs() for changes in ({"count": 0}, {"rows": run.rows[8:]})],
    *[msgspec.structs.replace(run, traceparents=["x"]) for run in runs()],
]


@pytest.mark.parametrize("run", DAMAGED)
def test_a_damaged_run_is_no_block(run: Item) -> None:
    decode_block(encode_block(Block(layout=LAYOUT, sender=b"s" * 16, partition=0, prev=(-1, -1), items=[raw_run()])))
    with pytest.raises(msgspec.DecodeError):
        decode_block(encode_block(Block(layout=LAYOUT, sender=b"s" * 16, partition=0, prev=(-1, -1), items=[run])))


@pytest.mark.parametrize(("layout", "sender"), [(LAYOUT_OLDEST, b"s" * 16), (LAYOUT, b"")])
def test_a_run_stands_in_no_block_of_the_oldest_layout_nor_of_a_timer(layout: int, sender: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_block(encode_block(Block(layout=layout, sender=sender, partition=0, prev=(-1, -1), items=[raw_run()])))


@pytest.mark.parametrize("place", [0, 40, 50_000])
def test_a_run_with_damaged_texts_stops_and_can_be_skipped(place: int) -> None:
    (run,) = runs()
    texts = bytearray(run.texts)
    if place < len(texts):
        texts[place] ^= 0xFF
    else:
        texts.pop()
    damaged = msgspec.structs.replace(run, texts=bytes(texts))
    sender = local_topic_id("account-journal")
    block = encode_block(Block(layout=LAYOUT, sender=sender, partition=0, prev=(-1, -1), items=[damaged]))
    log = LocalLog()
    log.append("terminal-journal", 0, block, at_ms=NOW_MS)
    journal = Journal("terminal-journal", local_topic_id("terminal-journal"), 0)
    few = Partitions(payments=1, account=1, terminal=1, decisions=1)
    records = log.read("terminal-journal", 0, 0, 10)
    if place > len(texts):
        with pytest.raises(StepFailed):
            build_runner(journal, MemoryStore(), few).step(records)
    skipping = build_runner(journal, MemoryStore(), few)
    skipping.skips.add(0)
    skipping.step(records)
    assert skipping.next_offset == 1


@pytest.mark.parametrize(("sizes", "expected"), [([500], False), ([0, 47], True), ([0, 96], False), ([30, 30], True)])
def test_short_pieces_are_taken_together(sizes: list[int], expected: bool) -> None:
    kinds = [kind for size in sizes for kind in (*[True] * size, False)]
    kinds = kinds[:-1] if len(sizes) == 1 else kinds
    whole = [(False, 0, len(kinds))]
    assert long_pieces(kinds, 24) == (whole if expected else list(runs_of(kinds)))
    assert long_pieces(kinds, 0) == list(runs_of(kinds))
    assert long_pieces(kinds, 24, [100] * len(kinds)) == list(runs_of(kinds))
