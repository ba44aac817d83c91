import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.model.bins import CUTS, QUANTILES, STRIDE, Sketch, bin_of, carried_over

FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=25), FLOAT32)
@settings(deadline=None)  # the first call compiles
def test_bin_is_one_more_than_the_number_of_cuts_below(found: list[float], x: float):
    cuts = np.full(CUTS, np.inf, np.float32)
    cuts[: len(found)] = np.sort(np.array(found, np.float32))
    expected = 0 if math.isnan(x) else 1 + int((cuts < np.float32(x)).sum())
    assert bin_of(cuts, np.float32(x)) == expected < STRIDE


def _sketch_of(columns: NDArray[np.float32], seed: int = 1) -> Sketch:
    sketch = Sketch(columns.shape[1], seed=seed)
    for row in columns:
        sketch.add(row)
    return sketch


@pytest.mark.parametrize("shape", ["normal", "lognormal", "counts", "ascending", "descending"])
def test_quantiles_are_within_a_tenth_of_the_mass_above(shape: str):
    rng = np.random.default_rng(3)
    n = 20_000
    values = {
        "normal": rng.normal(size=n),
        "lognormal": np.exp(2 * rng.normal(size=n)),
        "counts": rng.poisson(0.3, n).astype(float),
        "ascending": np.arange(n, dtype=float),
        "descending": -np.arange(n, dtype=float),
    }[shape].astype(np.float32)
    sketch = _sketch_of(values[:, None])
    exact = np.sort(values)
    for q in QUANTILES:
        got = sketch.quantile(0, q)
        low = np.searchsorted(exact, got, side="left") / n
        high = np.searchsorted(exact, got, side="right") / n
        allowed = 0.1 * (1.0 - q) + 1.0 / n
        assert low - allowed <= q <= high + allowed, (q, low, high)


def test_up_to_one_buffer_quantiles_are_exact():
    values = np.random.default_rng(1).normal(size=127).astype(np.float32)
    sketch = _sketch_of(values[:, None])
    for q in QUANTILES:
        assert sketch.quantile(0, q) == np.quantile(values, q, method="inverted_cdf")


def test_mass_is_kept_and_absent_rows_are_not_counted():
    values = np.random.default_rng(2).normal(size=(5_000, 2)).astype(np.float32)
    values[::2, 1] = np.nan
    sketch = _sketch_of(values)
    assert sketch.items(0)[1].sum() == 5_000
    assert sketch.items(1)[1].sum() == 2_500
    assert np.isnan(_sketch_of(np.full((5, 1), np.nan, np.float32)).quantile(0, 0.5))


def test_a_restored_sketch_goes_on_to_the_same_cuts():
    values = np.random.default_rng(4).normal(size=(6_000, 3)).astype(np.float32)
    through = _sketch_of(values)
    restored = Sketch.restore(_sketch_of(values[:2_777]).state())
    for row in values[2_777:]:
        restored.add(row)
    assert restored.state() == through.state()
    assert restored.cuts().tobytes() == through.cuts().tobytes()


def test_the_seed_decides_what_is_kept():
    values = np.random.default_rng(4).normal(size=(6_000, 1)).astype(np.float32)
    assert _sketch_of(values, seed=1).state() != _sketch_of(values, seed=2).state()


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match="3 features"):
        Sketch(3).add(np.zeros(4, np.float32))


def test_weights_carried_to_the_same_cuts_stay():
    values = np.random.default_rng(5).normal(size=(3_000, 2)).astype(np.float32)
    sketch = _sketch_of(values)
    cuts = sketch.cuts()
    weights = np.random.default_rng(6).normal(size=2 * STRIDE)
    after = carried_over(sketch, cuts, cuts, weights).reshape(2, STRIDE)
    used = np.s_[:, : len(QUANTILES) + 1]
    np.testing.assert_allclose(after[used], weights.reshape(2, STRIDE)[used], rtol=1e-12)


def test_weights_carried_to_other_cuts_keep_the_shape():
    values = np.random.default_rng(5).normal(size=(4_000, 1)).astype(np.float32)
    early, late = _sketch_of(values[:150]), _sketch_of(values)
    old, new = early.cuts(), late.cuts()
    weights = np.zeros(STRIDE)
    weights[1 : len(QUANTILES) + 2] = np.linspace(-2, 2, len(QUANTILES) + 1)
    after = carried_over(late, old, new, weights)
    probe = values[:, 0]
    before_at = np.array([weights[bin_of(old[0], x)] for x in probe])
    after_at = np.array([after[bin_of(new[0], x)] for x in probe])
    assert np.abs(before_at - after_at).mean() < 0.05
    assert abs(before_at.mean() - after_at.mean()) < 0.01
