import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.model.gam import MEAN_EAGERNESS, MEAN_EVERY, MEAN_HALF_LIFE, Gam

KEYS = st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True).map(sorted)
EXAMPLES = st.lists(st.tuples(KEYS, st.booleans(), st.sampled_from([0.5, 1.0, 10.0, -1.0])), max_size=60)


def _learned(examples: list[tuple[list[int], bool, float]]) -> Gam:
    model = Gam(40)
    for keys, fraud, weight in examples:
        model.learn(np.array(keys, np.int32), fraud, weight)
    return model


@given(EXAMPLES, EXAMPLES)
@settings(max_examples=60, deadline=None)
def test_learns_as_river_does(first: list[tuple[list[int], bool, float]], then: list[tuple[list[int], bool, float]]):
    model = _learned(first)
    river = model.to_river()
    for keys, fraud, weight in then:
        x = dict.fromkeys(keys, 1.0)
        ours = model.logit(np.array(keys, np.int32))
        assert np.isclose(1.0 / (1.0 + np.exp(-ours)), river.predict_proba_one(x)[True], rtol=1e-9, atol=1e-12)
        river.learn_one(x, fraud, w=weight)
        assert model.learn(np.array(keys, np.int32), fraud, weight) == ours
    theirs = np.array([river.weights.get(key, 0.0) for key in range(40)])
    np.testing.assert_allclose(model.weights, theirs, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(model.intercept[0], river.intercept, rtol=1e-9, atol=1e-12)


@given(EXAMPLES, EXAMPLES)
@settings(max_examples=60, deadline=None)
def test_restored_it_learns_on_to_the_same_bits(
    first: list[tuple[list[int], bool, float]], then: list[tuple[list[int], bool, float]]
):
    through = _learned(first + then)
    resumed = Gam(40)
    resumed.resume(_learned(first).state())
    for keys, fraud, weight in then:
        resumed.learn(np.array(keys, np.int32), fraud, weight)
    assert resumed.state() == through.state()


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match="40 weights"):
        Gam(40).resume(Gam(41).state())


@given(EXAMPLES)
@settings(max_examples=30, deadline=None)
def test_the_mean_is_of_the_iterates_by_its_formula(examples: list[tuple[list[int], bool, float]]):
    model = Gam(40)
    mean, rate_least = np.zeros(40), 1.0 - 0.5 ** (MEAN_EVERY / MEAN_HALF_LIFE)
    for step, (keys, fraud, weight) in enumerate(examples * 3, 1):
        model.learn(np.array(keys, np.int32), fraud, weight)
        if step < MEAN_EVERY or step % MEAN_EVERY == 0:
            rate = max(rate_least, MEAN_EAGERNESS / (step / MEAN_EVERY + MEAN_EAGERNESS))
            mean += rate * (model.weights - mean)
    np.testing.assert_allclose(model.mean, mean, rtol=1e-9, atol=1e-12)


def test_the_mean_is_nearer_to_the_truth_than_the_last_iterate():
    """Coins of a known bias: the last iterate is as noisy as its latest examples."""
    rng = np.random.default_rng(1)
    model, truth = Gam(8), np.linspace(-3.0, 0.0, 8)
    last, mean = 0.0, 0.0
    for step in range(1, 40_001):
        key = int(rng.integers(8))
        model.learn(np.array([key], np.int32), bool(rng.random() < 1.0 / (1.0 + np.exp(-truth[key]))))
        if step > 20_000 and step % 100 == 0:
            for k in range(8):
                one = np.array([k], np.int32)
                last += (model.logit(one) - truth[k]) ** 2
                mean += (model.mean_logit(one) - truth[k]) ** 2
    assert mean < 0.8 * last


def test_a_correction_is_one_step_of_both_gradients():
    keys = np.array([1, 3], np.int32)
    model = _learned([([1, 3], True, 1.0)] * 50)
    before, squares = model.logit(keys), model.squares[1]
    assert model.correct(keys, False, 1.0, True, 1.0) == before
    # Whatever the logit was: (p - 1) - (p - 0) = -1, but for the decay of the weights.
    assert model.squares[1] - squares == pytest.approx(1.0, rel=1e-4)
