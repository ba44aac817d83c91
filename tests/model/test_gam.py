import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.model.gam import Gam

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
