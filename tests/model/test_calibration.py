import math

import numpy as np
import pytest

from stream.model.calibration import CAPACITY, Calibration


def _filled(slope: float, shift: float, n: int = 20_000, seed: int = 1) -> Calibration:
    """Logits whose true probability is sigmoid(slope * logit + shift)."""
    rng = np.random.default_rng(seed)
    calibration = Calibration()
    for logit in rng.normal(-3, 2, n):
        p = 1.0 / (1.0 + math.exp(-(slope * logit + shift)))
        calibration.add(float(logit), bool(rng.random() < p), 1.0)
    return calibration


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.6, -0.5), (1.5, 1.0)])
def test_finds_slope_and_shift(slope: float, shift: float):
    found = _filled(slope, shift).fit()
    assert found[0] == pytest.approx(slope, abs=0.1)
    assert found[1] == pytest.approx(shift, abs=0.2)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.6, -0.5), (1.5, 1.0)])
def test_expects_as_many_frauds_as_come(slope: float, shift: float):
    calibration = _filled(slope, shift)
    calibration.fit()
    assert calibration.expected_over_observed() == pytest.approx(1.0, abs=0.02)


def test_a_sampled_tenth_with_weight_ten_gives_the_same_probabilities():
    rng = np.random.default_rng(2)
    sampled = Calibration()
    for logit in rng.normal(-3, 2, 100_000):
        fraud = rng.random() < 1.0 / (1.0 + math.exp(-(logit - 1.0)))
        if fraud:
            sampled.add(float(logit), True, 1.0)
        elif rng.random() < 0.1:
            sampled.add(float(logit), False, 10.0)
    slope, shift = sampled.fit()
    assert slope == pytest.approx(1.0, abs=0.1)
    assert shift == pytest.approx(-1.0, abs=0.2)


def test_without_enough_frauds_logits_are_left_alone():
    calibration = Calibration()
    for _ in range(1_000):
        calibration.add(-2.0, False, 1.0)
    assert calibration.fit() == (1.0, 0.0)
    assert math.isnan(calibration.expected_over_observed())


def test_when_the_frauds_have_left_the_ring_nothing_of_their_fit_is_left():
    """A bend belongs to its line: beside another one a higher score could get a lower probability."""
    calibration = _filled(0.6, -0.5)
    calibration.fit()
    assert calibration.bend.any()
    for _ in range(CAPACITY):
        calibration.add(-2.0, False, 1.0)
    assert calibration.fit() == (1.0, 0.0)
    assert not calibration.bend.any()
    assert calibration.fitted.tolist() == [1.0, 0.0]


def test_the_latest_examples_count():
    calibration = _filled(1.0, 2.0, n=5_000)
    rng = np.random.default_rng(3)
    for logit in rng.normal(-2, 2, CAPACITY):
        calibration.add(float(logit), bool(rng.random() < 1.0 / (1.0 + math.exp(-(logit - 1.0)))), 1.0)
    assert calibration.fit()[1] == pytest.approx(-1.0, abs=0.2)


def test_restored_it_fits_the_same_bits():
    first = _filled(0.8, 0.1, n=3_000)
    first.fit()
    again = Calibration()
    again.resume(first.state())
    for calibration in (first, again):
        for _ in range(1_100):
            calibration.add(-1.0, True, 1.0)
    assert again.fit() == first.fit()
    assert again.state() == first.state()
