import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.model.bins import RENEWAL_ROWS
from stream.model.compiled import Compiled
from stream.model.learner import (
    MATURITY_SOURCE,
    PROVISIONAL_WEIGHT,
    SOURCE_DAY_FACTOR,
    SOURCE_DAY_WEIGHT_MIN,
    SOURCES_MAX,
    WAITING_MAX,
    Broken,
    Held,
    Learner,
    Published,
    Settings,
)

FEATURES = 6
TRUE = np.array([2.0, -1.0, 0.7, 0.0, 0.0, 0.0])


def _world(seed: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    fraud = rng.random(n) < 1.0 / (1.0 + np.exp(4.0 - x @ TRUE))
    x[rng.random(x.shape) < 0.05] = np.nan
    return x, fraud


def _fresh() -> Learner:
    return Learner(Settings(features=FEATURES, features_version="f", pairs=((0, 1),)))


def _teach(learner: Learner, x: NDArray[np.float32], fraud: NDArray[np.bool_]) -> None:
    for i in range(len(x)):
        if i % 10 == 0:
            learner.unlabelled(x[i])
        learner.example(x[i], bool(fraud[i]), 1.0, "acquirer" if fraud[i] else MATURITY_SOURCE, "chargeback", day=i)


def _taught(seed: int = 1, n: int = 12_000) -> Learner:
    learner = _fresh()
    _teach(learner, *_world(seed, n))
    return learner


@given(st.integers(0, 3_000), st.integers(0, 2_000))
@settings(max_examples=12, deadline=None)
def test_restored_it_learns_on_to_the_same_bits(cut: int, tick_at: int):
    x, fraud = _world(3, 3_000)
    through = _fresh()
    _teach(through, x[:cut], fraud[:cut])
    through.tick(tick_at)
    restored = Learner.from_bytes(through.to_bytes())
    for learner in (through, restored):
        _teach(learner, x[cut:], fraud[cut:])
    assert restored.to_bytes() == through.to_bytes()
    assert restored.tick(5) == through.tick(5)
    assert restored.to_bytes() == through.to_bytes()


def test_versions_separate_and_expect_as_many_frauds_as_come():
    """One version is a sample of a noisy walk, a few per cent off; a day's versions together are not."""
    x, fraud = _world(1, 40_000)
    later, later_fraud = _world(2, 20_000)
    learner, ratios = _fresh(), list[float]()
    for i in range(len(x)):
        if i % 10 == 0:
            learner.unlabelled(x[i])
        learner.example(x[i], bool(fraud[i]), 1.0, MATURITY_SOURCE, "matured")
        if i % 2_000 == 1_999:
            published = learner.tick(i)
            assert isinstance(published, Published)
            assert published.compiled.version.startswith(f"{i}-")
            p, _ = published.compiled.score(later)
            ratios.append(float(p.sum() / later_fraud.sum()))
            assert p[later_fraud].mean() > 3 * p[~later_fraud].mean()
            assert published.compiled.ready
    assert 0.93 < float(np.mean(ratios[10:])) < 1.07
    assert all(0.8 < ratio < 1.25 for ratio in ratios[10:])


def test_negatives_sampled_with_weight_leave_probabilities_as_they_are():
    learner = _fresh()
    x, fraud = _world(1, 40_000)
    rng = np.random.default_rng(7)
    for i in range(len(x)):
        if i % 20 == 0:
            learner.unlabelled(x[i])
        if fraud[i]:
            learner.example(x[i], True, 1.0, "acquirer", "chargeback", day=i)
        elif rng.random() < 0.1:
            learner.example(x[i], False, 10.0, MATURITY_SOURCE, "matured")
    published = learner.tick(1)
    assert isinstance(published, Published)
    later, later_fraud = _world(2, 20_000)
    assert 0.85 < published.compiled.score(later)[0].sum() / later_fraud.sum() < 1.15


def test_nothing_new_nothing_published():
    learner = _taught(n=2_000)
    assert isinstance(learner.tick(1), Published)
    assert learner.tick(2) is None


def test_before_there_are_bins_examples_wait_and_are_then_learned():
    learner = _fresh()
    x, fraud = _world(1, WAITING_MAX + 5)
    for i in range(len(x)):
        learner.example(x[i], bool(fraud[i]), 1.0, MATURITY_SOURCE, "matured")
    assert learner.tick(1) is None
    assert learner.counts.lost == 5
    for row in x[:100]:
        learner.unlabelled(row)
    assert learner.counts.frauds + learner.counts.legitimate == WAITING_MAX
    assert isinstance(learner.tick(2), Published)


def test_too_few_frauds_are_not_ready():
    learner = _fresh()
    x, _ = _world(1, 2_000)
    _teach(learner, x, np.zeros(2_000, np.bool_))
    published = learner.tick(1)
    assert isinstance(published, Published)
    assert not published.compiled.ready


def test_a_planted_bad_version_is_held_and_the_active_one_stays():
    learner = _taught()
    good = learner.tick(1)
    assert isinstance(good, Published)
    learner.gam.weights[:] = np.random.default_rng(1).permutation(learner.gam.weights)
    learner.gam.mean[:] = learner.gam.weights
    x, _ = _world(4, 1)
    learner.example(x[0], False, 1.0, MATURITY_SOURCE, "matured")
    held = learner.tick(2)
    assert isinstance(held, Held)
    assert held.verdict.why
    assert learner.active == good.compiled


def test_a_correction_takes_back_most_of_what_was_taught():
    learner = _taught()
    x, _ = _world(5, 1)
    before = learner.logit(x[0])
    weight = learner.example(x[0], True, 1.0, "acquirer", "chargeback", day=99_999)
    raised = learner.logit(x[0])
    learner.correct(x[0], True, weight, False, 1.0, "acquirer", "chargeback_reversed", day=99_999)
    after = learner.logit(x[0])
    assert raised > before
    assert abs(after - before) < 0.5 * (raised - before)
    assert learner.counts.corrections == 1


def test_a_provisional_label_weighs_less():
    learner = _taught()
    x, _ = _world(5, 1)
    assert learner.example(x[0], True, 1.0, "acquirer", "fraud_report", day=99_999) == PROVISIONAL_WEIGHT


def test_a_source_teaches_no_more_a_day_than_its_cap():
    learner = _taught(n=2_000)
    x, _ = _world(5, 1)
    taught = sum(learner.example(x[0], True, 1.0, "loud", "chargeback", day=5_000) for _ in range(2_000))
    assert taught == SOURCE_DAY_WEIGHT_MIN
    assert learner.counts.capped == 2_000 - SOURCE_DAY_WEIGHT_MIN
    assert learner.example(x[0], True, 1.0, "quiet", "chargeback", day=5_000) == 1.0
    assert learner.example(x[0], True, 1.0, "loud", "chargeback", day=4_000) == 0.0
    assert learner.example(x[0], True, 1.0, "loud", "chargeback", day=5_001) == 1.0
    assert learner.example(x[0], False, 1e6, MATURITY_SOURCE, "matured", day=5_001) == 1e6


def test_the_cap_follows_what_a_source_teaches_on_an_average_day():
    learner = _taught(n=2_000)
    x, _ = _world(5, 1)
    for day in range(100):
        learner.example(x[0], True, SOURCE_DAY_WEIGHT_MIN, "big", "chargeback", day=day)
    allowed = learner.example(x[0], True, 1e9, "big", "chargeback", day=100)
    assert allowed == pytest.approx(SOURCE_DAY_FACTOR * SOURCE_DAY_WEIGHT_MIN, rel=1e-3)


def test_sources_are_bounded():
    learner = _taught(n=2_000)
    x, _ = _world(5, 1)
    for i in range(SOURCES_MAX + 50):
        learner.example(x[0], True, 1.0, f"source {i}", "chargeback", day=5_000)
    assert len(learner.sources) <= SOURCES_MAX + 1


@given(st.integers(0, 2_500), st.lists(st.integers(1, 700), max_size=8))
@settings(max_examples=12, deadline=None)
def test_however_a_run_of_silences_is_cut_it_teaches_what_its_examples_would(before: int, cuts: list[int]):
    """Before there are bins, too, and beyond the rings of the gate."""
    x, fraud = _world(4, before + sum(cuts) + 1)
    one_by_one, at_once = _fresh(), _fresh()
    for learner in (one_by_one, at_once):
        _teach(learner, x[:before], fraud[:before])
    weights = np.where(np.arange(len(x)) % 3 == 0, 4.0, 0.37)
    at = before
    for cut in cuts:
        at_once.silences(x[at : at + cut], weights[at : at + cut])
        at += cut
    for row, weight in zip(x[before:at], weights[before:at].tolist(), strict=True):
        one_by_one.example(row, False, weight, MATURITY_SOURCE, "chargeback")
    assert at_once.to_bytes() == one_by_one.to_bytes()


def test_silences_of_no_weight_or_of_another_width_are_refused():
    learner = _taught(n=2_000)
    with pytest.raises(ValueError, match="above 0"):
        learner.silences(np.zeros((2, FEATURES), np.float32), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="6 features"):
        learner.silences(np.zeros((2, FEATURES + 1), np.float32), np.ones(2))


def test_a_weight_of_nothing_and_a_row_of_another_width_are_refused():
    learner = _taught(n=2_000)
    with pytest.raises(ValueError, match="above 0"):
        learner.example(np.zeros(FEATURES, np.float32), True, 0.0, "s", "chargeback")
    with pytest.raises(ValueError, match="6 features"):
        learner.example(np.zeros(FEATURES + 1, np.float32), True, 1.0, "s", "chargeback")


def test_a_pair_that_names_no_feature_is_refused():
    with pytest.raises(ValueError, match="names none"):
        Learner(Settings(features=3, features_version="f", pairs=((0, 3),)))


def test_bins_are_renewed_from_the_latest_rows_and_never_again_from_few():
    learner = _fresh()
    for n, rows in enumerate((*RENEWAL_ROWS, RENEWAL_ROWS[-1])):
        old = learner.cuts
        x = np.random.default_rng(n).normal(loc=float(n), size=(rows, FEATURES)).astype(np.float32)
        for row in x[:-1]:
            learner.unlabelled(row)
        assert learner.counts.renewals == n
        assert learner.cuts is old
        learner.unlabelled(x[-1])
        assert learner.counts.renewals == n + 1
        assert learner.cuts is not None
        assert abs(float(learner.cuts[0, 9]) - n) < 0.3  # the median of this block, not of all rows so far


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_never_published(number: float):
    learner = _taught()
    good = learner.tick(1)
    assert isinstance(good, Published)
    learner.gam.mean[0] = number
    _teach(learner, *_world(2, 100))
    for state in (learner, Learner.from_bytes(learner.to_bytes())):  # also what a damaged state says
        held = state.tick(2)
        assert isinstance(held, Broken)
        assert state.active is not None
        assert state.active.version == good.compiled.version
        _teach(state, *_world(2, 2_000))
        assert isinstance(state.tick(3), Published | Held), "it is learned anew"


def test_a_state_whose_active_version_cannot_score_goes_on_without_one():
    learner = _taught()
    good = learner.tick(1)
    assert isinstance(good, Published)
    broken = build_like(good.compiled, np.full(good.compiled.features, np.nan))
    learner.active = broken
    restored = Learner.from_bytes(learner.to_bytes())
    assert restored.active is None
    _teach(restored, *_world(2, 100))
    assert isinstance(restored.tick(2), Published)


def build_like(compiled: Compiled, baseline: NDArray[np.float64]) -> Compiled:
    changed = msgspec.structs.replace(compiled, baseline=baseline.tobytes())
    return msgspec.structs.replace(changed, version=changed.expected_version())
