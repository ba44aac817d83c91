"""The kernels' JSON is, byte for byte, what msgspec makes of the structs that `Decider.answers`, `details` fill."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.bits import plain
from stream.columns import text
from stream.columns.text import Names, Texts, decision_texts, details_texts
from stream.rules.policy import VERDICTS, outcome
from topics.decision import Decision, Origin, PolicyMode, Position, Versions
from topics.details import DecisionDetails, RuleHit
from topics.payment import Mode

encode = msgspec.json.encode

PARTITION, STAGE_PARTITION = 7, 12
FEATURE_SET = "f3"
MODES: tuple[Mode, ...] = ("live", "test", "backfill")
KERNELS = tuple(name for name, value in vars(text).items() if plain(value) is not value)

int64s = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 9, 10, -9, -10, 2**63 - 1, -(2**63)])
ids = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.sampled_from([0.0, 1.0, 1e-300, 5e-324, 1e-05, 0.1 + 0.2]) | st.floats(0, 1)
rule_hits = st.lists(st.builds(RuleHit, ids, ids, st.none() | finite, st.none() | finite), max_size=3)


class Row(NamedTuple):
    """One payment and all that is said of it."""

    position: int
    step_offset: int
    number: int
    names: tuple[str, str, str]
    mode: Mode
    verdict: int
    probability: float
    logit: float
    reasons: list[str]
    event_ms: int
    respond_by: int | None
    contributions: list[float]
    hits: list[RuleHit]
    near_hits: list[RuleHit]
    late: bool


class Run(NamedTuple):
    """Payments, and what they have in common."""

    rows: list[Row]
    scored: bool
    policy_mode: PolicyMode
    versions: Versions
    limits: dict[str, float]
    features: int


rows = st.builds(
    Row,
    int64s,
    int64s,
    int64s,
    st.tuples(ids, ids, ids),
    st.sampled_from(MODES),
    st.integers(0, len(VERDICTS) - 1),
    shares,
    finite,
    st.lists(ids, max_size=5),
    int64s,
    st.none() | int64s.filter(lambda ms: ms != text.ABSENT),
    st.lists(finite, max_size=4),
    rule_hits,
    rule_hits,
    st.booleans(),
)
versions = st.builds(
    Versions, engine=st.integers(0, 9), features=st.just(FEATURE_SET), model=st.none() | ids, rules=st.none() | ids
)
runs = st.builds(
    Run,
    st.lists(rows, max_size=6),
    st.booleans(),
    st.sampled_from(["shadow", "enforce"]),
    versions,
    st.dictionaries(st.sampled_from(VERDICTS[1:]), shares, max_size=3),
    st.integers(1, 76),
)


def features_of(run: Run) -> np.ndarray[Any, np.dtype[np.float32]]:
    n = len(run.rows)
    bits = np.random.default_rng(n).integers(0, 2**32, n * run.features, np.uint32)  # NaN of any kind among them
    return bits.view(np.float32).reshape(n, run.features)


def decisions_by_struct(run: Run) -> list[bytes]:
    return [
        encode(
            Decision(
                outcome=outcome(VERDICTS[row.verdict], run.policy_mode),
                verdict=VERDICTS[row.verdict],
                origin=Origin("payments", PARTITION, row.position),
                versions=cast(Versions, msgspec.Raw(encode(run.versions))),
                position=Position(STAGE_PARTITION, row.step_offset, row.number),
                tenant_id=row.names[0],
                payment_id=row.names[1],
                account_id=row.names[2],
                mode=row.mode,
                policy_mode=run.policy_mode,
                probability=row.probability if run.scored else None,
                reasons=row.reasons,
                event_time=row.event_ms,
                respond_by=row.respond_by,
            )
        )
        for row in run.rows
    ]


def details_by_struct(run: Run, decisions: Sequence[bytes]) -> list[bytes]:
    limits = cast(dict[str, float], msgspec.Raw(encode(run.limits))) if run.limits else {}
    return [
        encode(
            DecisionDetails(
                decision=cast(Decision, msgspec.Raw(decision)),
                feature_set=FEATURE_SET,
                features=features.tobytes(),
                logit=row.logit if run.scored else None,
                contributions=row.contributions,
                limits=limits,
                hits=row.hits,
                near_hits=row.near_hits,
                late=row.late,
            )
        )
        for row, decision, features in zip(run.rows, decisions, features_of(run), strict=True)
    ]


def names_of(rows: Sequence[Row], *, writable: bool = True) -> Names:
    """As in a message that was fetched: with other text around each id."""
    blob = bytearray(b'{"')
    at = np.zeros((len(rows), 6), np.int32)
    for i, row in enumerate(rows):
        for k, name in enumerate(row.names):
            at[i, 2 * k] = len(blob)
            blob += name.encode()
            at[i, 2 * k + 1] = len(blob)
            blob += b'":\xff'
    return Names(np.frombuffer(blob if writable else bytes(blob), np.uint8), at)


def given_texts(rows: Sequence[Row], of: Callable[[Row], Sequence[Any]]) -> dict[int, bytes]:
    return {i: encode(of(row)) for i, row in enumerate(rows) if of(row)}


def decision_arguments(run: Run) -> dict[str, Any]:
    rows = run.rows
    longs: Callable[[list[int]], Any] = lambda numbers: np.array(numbers, np.int64)  # noqa: E731
    return {
        "heads": [
            b'{"outcome":"%s","verdict":"%s","origin":{"topic":"payments","partition":%d,"offset":'
            % (outcome(verdict, run.policy_mode).encode(), verdict.encode(), PARTITION)
            for verdict in VERDICTS
        ],
        "positions": longs([row.position for row in rows]),
        "middle": b'},"versions":%s,"position":{"partition":%d,"offset":' % (encode(run.versions), STAGE_PARTITION),
        "step_offsets": longs([row.step_offset for row in rows]),
        "numbers": longs([row.number for row in rows]),
        "names": names_of(rows),
        "modes": np.array([MODES.index(row.mode) for row in rows], np.uint8),
        "mode_texts": (b"", b',"mode":"test"', b',"mode":"backfill"'),
        "policy_text": b"" if run.policy_mode == "shadow" else b',"policy_mode":"enforce"',
        "verdicts": np.array([row.verdict for row in rows], np.uint8),
        "probabilities": [row.probability for row in rows] if run.scored else None,
        "reasons": given_texts(rows, lambda row: row.reasons),
        "event_ms": longs([row.event_ms for row in rows]),
        "respond_by": longs([text.ABSENT if row.respond_by is None else row.respond_by for row in rows]),
    }


def details_arguments(run: Run, decisions: Texts) -> dict[str, Any]:
    rows = run.rows
    return {
        "decisions": decisions,
        "middle": b',"feature_set":"%s","features":"' % FEATURE_SET.encode(),
        "rows": features_of(run),
        "logits": [row.logit for row in rows] if run.scored else None,
        "contributions": given_texts(rows, lambda row: row.contributions),
        "limits": encode(run.limits),
        "hits": given_texts(rows, lambda row: row.hits),
        "near_hits": given_texts(rows, lambda row: row.near_hits),
        "late": np.array([row.late for row in rows], np.bool_),
    }


def row_of(n: int, **others: Any) -> Row:
    names = (f"t{n % 3}", f"pay-{n}", f"a{n}")
    row = Row(n, 10**12, 0, names, "live", 0, 1 / (abs(n) + 2), 0.5, [], 10**12 + abs(n) % 99, None, [], [], [], False)
    return row._replace(**others)


def run_of(rows: list[Row], *, features: int = 75) -> Run:
    return Run(rows, True, "enforce", Versions(engine=1, features=FEATURE_SET), {"review": 0.5}, features)


def assert_equal_to_structs(run: Run) -> None:
    decisions = decision_texts(**decision_arguments(run))
    expected = decisions_by_struct(run)
    assert decisions.values() == expected
    details = details_texts(**details_arguments(run, decisions))
    assert details.values() == details_by_struct(run, expected)
    assert decisions.bounds[-1] == len(decisions.blob)
    assert details.bounds[-1] == len(details.blob)


EDGES = [row_of(n, position=n, event_ms=n, respond_by=n, number=n) for n in (0, 9, 10, 2**63 - 1, -(2**63), -2, -10)]


@given(runs)
@example(run_of([]))
@example(run_of([row_of(1)]))
@example(run_of(EDGES))
@example(run_of([row_of(n, probability=p) for n, p in enumerate((0.0, -0.0, 1.0, 1e-300, 1e-05, 5e-324, 1e22))]))
def test_texts_are_those_of_the_structs(run: Run):
    assert_equal_to_structs(run)


def test_a_long_run_is_that_of_the_structs():
    hit = RuleHit("burst", "payments_1h_count", 3.5, None)
    assert_equal_to_structs(
        run_of(
            [
                row_of(
                    n,
                    verdict=n % 4,
                    mode=MODES[n % 7 % 3],
                    reasons=["BURST", "NEW_TERMINAL"][: n % 4],
                    contributions=[n / 7] * (n % 4),
                    near_hits=[hit] * (n % 5 == 1),
                    hits=[hit] * (n % 3),
                    late=n % 9 == 0,
                )
                for n in range(1_000)
            ]
        )
    )


@given(runs)
def test_the_plain_text_of_the_kernels_says_the_same(run: Run):
    compiled = decision_texts(**decision_arguments(run))
    detailed = details_texts(**details_arguments(run, compiled))
    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(text, name, plain(getattr(text, name)))
        assert decision_texts(**decision_arguments(run)).blob == compiled.blob
        assert details_texts(**details_arguments(run, compiled)).blob == detailed.blob


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_cannot_say_is_null_as_in_the_structs(number: float):
    assert_equal_to_structs(run_of([row_of(1, probability=number, logit=number), row_of(2)]))


@pytest.mark.parametrize("features", range(1, 8))
def test_features_of_every_length_are_padded(features: int):
    assert_equal_to_structs(run_of([row_of(n) for n in range(3)], features=features))


def test_arrays_that_are_read_only_or_strided_give_the_same_and_compile_nothing_more():
    run = run_of([row_of(n) for n in range(8)])
    arguments = decision_arguments(run)
    expected = decision_texts(**arguments)
    detailed = details_texts(**details_arguments(run, expected))
    for name in ("positions", "event_ms", "respond_by", "modes"):
        arguments[name] = np.repeat(arguments[name], 2)[::2]
    arguments["names"] = names_of(run.rows, writable=False)
    arguments["verdicts"] = arguments["verdicts"].astype(np.int64)
    assert decision_texts(**arguments).blob == expected.blob
    of_details = details_arguments(run, expected)
    of_details["rows"].flags.writeable = False
    assert details_texts(**of_details).blob == detailed.blob
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        written = ("_decisions_room", "_write_decisions", "_details_room", "_write_details")
        assert {name: len(getattr(text, name).signatures) for name in written} == dict.fromkeys(written, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdicts": np.array([4])},
        {"verdicts": np.array([-1])},
        {"modes": np.array([3])},
        {"modes": np.array([-1])},
        {"names": Names(np.zeros(9, np.uint8), np.array([[0, 1, 1, 2, 2, 10]], np.int32))},
        {"names": Names(np.zeros(9, np.uint8), np.array([[0, 1, -1, 2, 2, 3]], np.int32))},
        {"names": Names(np.zeros(9, np.uint8), np.array([[1, 0, 1, 2, 2, 3]], np.int32))},
        {"reasons": {1: b"[]"}},
        {"reasons": {-1: b"[]"}},
        {"probabilities": []},
        {"probabilities": [0.5, 0.5]},
        {"event_ms": np.zeros(2, np.int64)},
    ],
)
def test_a_decision_that_would_reach_outside_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError):
        decision_texts(**decision_arguments(run_of([row_of(1)])) | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"decisions": Texts(b"{}", np.array([0, 3]))},
        {"decisions": Texts(b"{}", np.array([-1, 2]))},
        {"decisions": Texts(b"{}", np.array([2, 1]))},
        {"decisions": Texts(b"{}", np.array([0, 1, 2]))},
        {"rows": np.zeros((2, 75), np.float32)},
        {"rows": np.zeros((1, 0), np.float32)},
        {"logits": [0.5, 0.5]},
        {"hits": {1: b"[]"}},
        {"near_hits": {-1: b"[]"}},
    ],
)
def test_details_that_would_reach_outside_are_refused(wrong: dict[str, Any]):
    run = run_of([row_of(1)])
    right = details_arguments(run, decision_texts(**decision_arguments(run)))
    with pytest.raises(ValueError):
        details_texts(**right | wrong)
