"""Silence about a payment that looked like fraud always teaches, whatever its hash, but little until it is mature."""

import math

import numpy as np
import pytest
from stage_bench import DAY_MS, NOW_MS, Bench, limits
from test_markers import marker as activated
from test_markers import model
from test_terminal_stage import MATURITY_MS, clocks, judged, matured, pid, placed, taught

from stream.model.sampling import NOTABLE_PROBABILITY, percent_known
from stream.stages.pending import PROVISIONAL_MS
from topics.journal import EXAMPLE_CORRECTED, EXAMPLE_MATURED, Became, Example, Tick

MARGIN = 1e-6
PROVISIONAL_SILENCE = percent_known(0, 0) / 100  # no label has come in these tests


@pytest.fixture(autouse=True)
def none_is_kept_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.stages.pending.keep_legitimate", lambda _hash: 0.0)
    monkeypatch.setattr("stream.stages.pending.kept_legitimate", lambda hashes: np.zeros(len(hashes), np.bool_))


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


@pytest.mark.parametrize(
    ("probability", "teaches"), [(NOTABLE_PROBABILITY + MARGIN, True), (NOTABLE_PROBABILITY - MARGIN, False)]
)
def test_a_payment_teaches_by_the_probability_that_it_was_given(probability: float, teaches: bool) -> None:
    bench = Bench("terminal")
    out = bench.feed(activated(model(1, intercept=_logit(probability))), placed(1))
    assert out.values("decisions")[0]["probability"] == pytest.approx(probability)
    bench.feed(activated(model(2, intercept=_logit(0.5))))  # a later version's opinion counts for nothing
    assert silences(bench, PROVISIONAL_MS - 1) == []
    assert silences(bench, PROVISIONAL_MS) == ([PROVISIONAL_SILENCE] if teaches else [])
    assert silences(bench, MATURITY_MS - 1) == []
    assert silences(bench, MATURITY_MS) == ([1.0 - PROVISIONAL_SILENCE] if teaches else [])
    assert silences(bench, MATURITY_MS + DAY_MS) == []


def silences(bench: Bench, after_ms: int) -> list[float]:
    """With what weights silence teaches when the labels' clock has gone so far."""
    out = bench.feed(*clocks(NOW_MS + after_ms))
    return [e.weight for e in out.of(Example) if e.pid == pid(1) and e.kind == EXAMPLE_MATURED]


def notable() -> Bench:
    bench = Bench("terminal")
    bench.feed(activated(model(1, intercept=0.0)), placed(1))
    return bench


def test_without_a_model_the_hash_decides() -> None:
    bench = Bench("terminal")
    bench.feed(placed(1))
    assert taught(matured(bench)) == []


def test_where_the_horizon_is_near_silence_teaches_once() -> None:
    bench = notable()
    bench.feed(limits(maturity_ms=PROVISIONAL_MS))
    assert silences(bench, PROVISIONAL_MS) == [1.0]
    assert silences(bench, MATURITY_MS) == []


@pytest.mark.parametrize(("after_ms", "weight"), [(PROVISIONAL_MS, PROVISIONAL_SILENCE), (MATURITY_MS, 1.0)])
def test_a_fraud_takes_back_what_silence_has_taught_by_then(after_ms: int, weight: float) -> None:
    bench = notable()
    silences(bench, PROVISIONAL_MS)
    silences(bench, after_ms)
    bench = bench.again()
    assert taught(bench.feed(judged(1, True))) == [(EXAMPLE_CORRECTED, True, weight)]
    assert silences(bench, MATURITY_MS + DAY_MS) == []


def test_a_legitimate_label_leaves_the_rest_to_silence() -> None:
    bench = notable()
    silences(bench, PROVISIONAL_MS)
    bench = bench.again()
    assert taught(bench.feed(judged(1, False))) == []
    assert silences(bench, MATURITY_MS) == [1.0 - PROVISIONAL_SILENCE]


def test_a_payment_that_turns_out_not_to_have_gone_through_teaches_no_more() -> None:
    bench = notable()
    silences(bench, PROVISIONAL_MS)
    bench.feed(Became(0, 0, pid(1), NOW_MS, False))
    assert silences(bench, MATURITY_MS) == []


def test_more_than_a_step_may_settle_are_drained_by_ticks() -> None:
    bench = notable()
    bench.feed(*(placed(n, terminal_id=None) for n in range(2, 251)))
    silences(bench, PROVISIONAL_MS)
    while bench.stage.due_left:
        bench.feed(Tick(-1, 0, 0))
    steps = [taught(bench.feed(item)) for item in (*clocks(NOW_MS + MATURITY_MS), *[Tick(-1, 0, 0)] * 3)]
    assert [len(examples) for examples in steps] == [0, 100, 100, 50, 0]
    assert not bench.stage.due_left


def test_the_early_part_of_silence_is_the_share_of_frauds_that_are_told_early() -> None:
    bench = notable()
    bench.feed(*(placed(n, terminal_id=None) for n in range(2, 92)))
    bench.feed(*(judged(n, True) for n in range(2, 92)))
    assert silences(bench.again(), PROVISIONAL_MS) == [percent_known(90, 90) / 100] == [0.92]
