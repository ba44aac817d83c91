import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stream.model.bend import BEND_FROM, BEND_KNOTS, BEND_STEP, CELLS, CELLS_A_STEP, RISE_MIN, bent, fit_bend, tally

AT = BEND_FROM + BEND_STEP / CELLS_A_STEP * np.arange(CELLS)
counts = hnp.arrays(np.float64, CELLS, elements=st.floats(-1.0, 1e6))


def _fitted(frauds: np.ndarray, payments: np.ndarray, slope: float = 1.0, shift: float = 0.0) -> np.ndarray:
    bend = np.zeros(BEND_KNOTS)
    fit_bend(frauds, payments, slope, shift, bend)
    return bend


def _probability(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


@given(counts, counts, st.floats(0.3, 2.0), st.floats(-4.0, 4.0))
@settings(max_examples=200, deadline=None)
def test_the_order_of_scores_stays(frauds: np.ndarray, payments: np.ndarray, slope: float, shift: float):
    bend = _fitted(frauds, payments, slope, shift)
    raw = np.linspace(-40.0, 40.0, 999)
    risen = np.diff([bent(x, slope, shift, bend) for x in raw])
    assert (risen >= RISE_MIN * slope * np.diff(raw) * (1.0 - 1e-6)).all()


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.5, -2.0), (2.0, 1.0)])
def test_where_as_many_frauds_come_as_the_line_says_nothing_changes(slope: float, shift: float):
    payments = np.linspace(0.0, 5e6, CELLS)
    bend = _fitted(payments * _probability(slope * AT + shift), payments, slope, shift)
    np.testing.assert_allclose(bend, 0.0, atol=1e-9)


def test_without_any_frauds_nothing_changes_much():
    np.testing.assert_array_equal(_fitted(np.zeros(CELLS), np.zeros(CELLS)), 0.0)


@pytest.mark.parametrize("more", [-1.5, 0.7, 2.0])
def test_a_shift_of_all_frauds_is_found(more: float):
    payments = 1e7 / _probability(AT)
    np.testing.assert_allclose(_fitted(payments * _probability(AT + more), payments), more, atol=1e-3)


def test_one_fraud_changes_little():
    frauds, payments = np.zeros(CELLS), np.zeros(CELLS)
    frauds[20], payments[20] = 1.0, 1.0
    assert 0.0 < np.abs(_fitted(frauds, payments)).max() < 0.25


@given(counts, counts, st.floats(0.3, 2.0), st.floats(-4.0, 4.0))
@settings(max_examples=100, deadline=None)
def test_fitted_again_from_itself_it_stays(frauds: np.ndarray, payments: np.ndarray, slope: float, shift: float):
    """One fit is enough: the next one, from its end, would find no more; unless its order had to be mended."""
    first = _fitted(frauds, payments, slope, shift)
    again = first.copy()
    fit_bend(frauds, payments, slope, shift, again)
    rises = np.diff(first) + (1.0 - RISE_MIN) * slope * BEND_STEP
    if rises.min() > 1e-6 and np.abs(first).max() < 6.0:
        np.testing.assert_allclose(again, first, atol=1e-3)


@given(st.floats(-60.0, 60.0), st.booleans(), st.floats(0.1, 4.0))
@settings(max_examples=200, deadline=None)
def test_an_example_is_counted_whole(raw: float, fraud: bool, weight: float):
    frauds, payments = np.ones(CELLS), np.ones(CELLS)
    tally(raw, float(fraud), weight, frauds, payments)
    assert math.isclose(frauds.sum(), CELLS + weight * fraud, rel_tol=1e-9)
    assert math.isclose(payments.sum(), CELLS + weight, rel_tol=1e-9)
    if AT[0] <= raw <= AT[-1]:
        mean = (AT * (payments - 1.0)).sum() / weight
        assert math.isclose(mean, raw, rel_tol=1e-6, abs_tol=1e-6)


def test_a_logit_that_is_no_number_is_not_counted():
    frauds, payments = np.ones(CELLS), np.ones(CELLS)
    tally(math.nan, 1.0, 1.0, frauds, payments)
    assert frauds.sum() == payments.sum() == CELLS


def test_in_every_part_of_the_score_as_many_frauds_are_expected_as_come():
    """A score that says half too little in its lower part, and half too much in its upper."""
    rng = np.random.default_rng(4)
    raw = rng.normal(-5.0, 1.5, 400_000)
    fraud = rng.random(len(raw)) < _probability(np.where(raw < -5.0, raw + 0.5, raw - 0.4) + 0.1)
    frauds, payments = np.zeros(CELLS), np.zeros(CELLS)
    for x, y in zip(raw.tolist(), fraud.tolist(), strict=True):
        tally(x, float(y), 1.0, frauds, payments)
    bend = _fitted(frauds, payments)
    after = _probability(np.array([bent(x, 1.0, 0.0, bend) for x in raw.tolist()]))
    before = _probability(raw)
    for low, high in ((-8.0, -6.0), (-6.0, -5.25), (-4.5, -3.0), (-3.0, -1.0)):
        part = (raw >= low) & (raw < high)
        assert not 0.8 < before[part].sum() / fraud[part].sum() < 1.25
        assert 0.9 < after[part].sum() / fraud[part].sum() < 1.1
