"""A kept answer is less than the answer, and makes the same bytes again."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_bench import DAY_MS, NOW_MS, Bench, control
from test_terminal_stage import placed, repeat

from stream.errors import InternalError
from stream.rules.policy import Policy
from stream.stages import keys
from stream.stages.kept import Said, Shared, answer_of, decode_shared, encode_shared, pack, shared_of
from topics.decision import Decision, Origin, Position, Versions
from topics.journal import RUN_MODES, Repeat

LONG = st.integers(0, 2**62)
VERSIONS = Versions(engine=1, features="f", model="7-ab", rules="r", policy="p")
SHARED = Shared(
    3,
    "enforce",
    ["approve", "challenge", "review", "decline"],
    ["approve", "challenge", "review", "decline"],
    msgspec.json.encode(VERSIONS),
)
ASKED = Repeat(1, 0, NOW_MS, b"p" * 16, 0, 9, b"i" * 16, NOW_MS, "t", 'a"1', "p\u00e9")


@st.composite
def decisions(draw: st.DrawFn) -> list[Decision]:
    probable = draw(st.booleans())
    return [
        Decision(
            outcome=SHARED.outcomes[code := draw(st.integers(0, 3))],
            verdict=SHARED.verdicts[code],
            origin=Origin("payments", draw(st.integers(0, 65_535)), draw(LONG)),
            versions=VERSIONS,
            position=Position(3, draw(LONG), draw(st.integers(0, 2**31 - 1))),
            tenant_id=ASKED.tenant_id,
            payment_id=ASKED.payment_id,
            account_id=ASKED.account_id,
            mode=draw(st.sampled_from(RUN_MODES)),
            policy_mode="enforce",
            probability=draw(st.floats(0, 1)) if probable else None,
            reasons=draw(st.lists(st.sampled_from(["rule:a", "velocity"]), max_size=5)) if code else [],
            event_time=draw(LONG),
            respond_by=draw(st.none() | LONG),
        )
        for _ in range(draw(st.integers(1, 14)))
    ]


def said_of(some: list[Decision]) -> Said:
    probabilities: Any = [one.probability for one in some]
    return Said(
        [SHARED.verdicts.index(one.verdict) for one in some],
        [RUN_MODES.index(one.mode) for one in some],
        [one.origin.partition for one in some],
        [one.origin.offset for one in some],
        [one.position.offset for one in some if one.position],
        [one.position.n for one in some if one.position],
        [one.event_time or 0 for one in some],
        [-1 if one.respond_by is None else one.respond_by for one in some],
        None if None in probabilities else probabilities,
        {i: msgspec.json.encode(one.reasons) for i, one in enumerate(some) if one.reasons},
    )


@given(decisions())
def test_what_is_kept_makes_the_answer_again(some: list[Decision]) -> None:
    kept = pack(said_of(some), SHARED.key)
    assert {shared_of(value) for value in kept} == {SHARED.key}
    assert [answer_of(value, SHARED, ASKED) for value in kept] == [msgspec.json.encode(one) for one in some]


def test_what_ended_has_the_same_key_and_reads_back() -> None:
    ended = msgspec.structs.replace(SHARED, until_ms=5)
    assert ended.key == SHARED.key
    assert decode_shared(encode_shared(ended)) == ended


@pytest.mark.parametrize("value", [b"", b"\x02" + bytes(60), b"\x01short"])
def test_what_is_no_kept_answer_stops_the_partition(value: bytes) -> None:
    with pytest.raises(InternalError):
        shared_of(value)


def first_and_again(bench: Bench, number: int, **at: int) -> tuple[bytes, bytes]:
    first = bench.feed(placed(number)).kept[0][3]
    bench.feed(control("policy", Policy(mode="enforce", review_from=0.5)))
    return first, bench.again().feed(repeat(number, NOW_MS + 1)).kept[0][3]


def test_a_repeat_is_answered_as_the_first_was_under_another_policy_and_after_a_restart() -> None:
    bench = Bench("terminal")
    first, again = first_and_again(bench, 1)
    assert again == first
    bench = bench.again()
    assert bench.feed(placed(2)).values("decisions")[0]["policy_mode"] == "enforce"
    assert len(shared_in(bench)) == 2


def shared_in(bench: Bench) -> list[Shared]:
    found = bench.state.scan(keys.TABLE_SHARED, keys.TABLE_SHARED + b"\xff" * 9, 100)
    return [decode_shared(value) for _, value in found]


def test_what_answers_shared_goes_when_they_do() -> None:
    bench = Bench("terminal")
    first_and_again(bench, 1)
    assert [one.until_ms for one in shared_in(bench)] == [NOW_MS]
    bench.feed(placed(2, at_ms=NOW_MS + 5 * DAY_MS))
    assert sorted([one.until_ms for one in shared_in(bench)], key=bool) == [None, NOW_MS]
    bench.feed(placed(3, at_ms=NOW_MS + 9 * DAY_MS))
    assert [one.until_ms for one in shared_in(bench)] == [None]


def test_an_answer_that_an_earlier_release_kept_whole_goes_out_as_it_is() -> None:
    bench = Bench("terminal")
    whole = bench.feed(placed(1)).kept[0][3]
    key = keys.time_key(keys.TABLE_ANSWER, NOW_MS, placed(1).pid)
    kept = bench.state.get(key)
    assert kept is not None
    assert len(kept) * 4 < len(whole)
    bench.state.put(key, whole)
    assert bench.feed(repeat(1, NOW_MS + 1)).kept[0][3] == whole
