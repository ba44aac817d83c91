"""Silence about a payment that looked like fraud always teaches, whatever its hash; about others, by the hash."""

import math

import pytest
from stage_bench import Bench
from test_markers import marker as activated
from test_markers import model
from test_terminal_stage import judged, matured, pid, placed, taught

from stream.model.sampling import NOTABLE_PROBABILITY
from topics.journal import EXAMPLE_CORRECTED, EXAMPLE_MATURED, Example

MARGIN = 1e-6


@pytest.fixture(autouse=True)
def none_is_kept_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.stages.pending.keep_legitimate", lambda _hash: 0.0)


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
    found = [e for e in matured(bench.again()).of(Example) if e.pid == pid(1) and e.kind == EXAMPLE_MATURED]
    assert [e.weight for e in found] == ([1.0] if teaches else [])


def test_without_a_model_the_hash_decides() -> None:
    bench = Bench("terminal")
    bench.feed(placed(1))
    assert taught(matured(bench)) == []


def test_what_it_taught_is_taken_back_with_the_weight_that_it_had() -> None:
    bench = Bench("terminal")
    bench.feed(activated(model(1, intercept=0.0)), placed(1))
    matured(bench)
    assert taught(bench.again().feed(judged(1, True))) == [(EXAMPLE_CORRECTED, True, 1.0)]
