import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.model.bend import BEND_KNOTS
from stream.model.bins import CUTS, QUANTILES, STRIDE
from stream.model.compiled import ENCODED_BYTES_MAX, LOGIT_MAX, Compiled, Corrupt, build
from stream.model.gam import Gam
from stream.model.pairs import COARSE, FINE, LEVELS, PAIR_STRIDE, keys_of, mean_contributions

PAIRS = np.array([[0, 1], [3, 2], [1, 4 + FINE]], np.int32)


def _model(
    seed: int,
    features: int = 5,
    *,
    slope: float = 1.0,
    shift: float = 0.0,
    spread: float = 1.0,
    bend: np.ndarray | None = None,
) -> Compiled:
    rng = np.random.default_rng(seed)
    cuts = np.full((features, CUTS), np.inf, np.float32)
    cuts[:, : len(QUANTILES)] = np.sort(rng.normal(size=(features, len(QUANTILES))), axis=1)
    return build(
        offset=seed,
        features_version="f",
        ready=True,
        frauds=3,
        cuts=cuts,
        weights=spread * rng.normal(size=features * STRIDE + len(PAIRS) * PAIR_STRIDE),
        intercept=-1.0,
        baseline=rng.normal(size=features),
        pairs=PAIRS,
        slope=slope,
        shift=shift,
        bend=bend,
    )


def _rows(seed: int, n: int, features: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


@given(st.integers(0, 2**16), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_scores_as_river_does(seed: int, row_seed: int):
    model = _model(seed, slope=1.0)
    gam = Gam(5 * STRIDE + len(PAIRS) * PAIR_STRIDE)
    gam.weights = np.frombuffer(model.weights, np.float64).copy()
    gam.intercept[0] = model.intercept
    river = gam.to_river()
    x = _rows(row_seed, 3)
    p, _ = model.score(x)
    keys = np.empty(5 + len(PAIRS), np.int32)
    for i in range(3):
        keys_of(x[i], model.cut_points, PAIRS, COARSE, keys)
        assert np.isclose(p[i], river.predict_proba_one(dict.fromkeys(keys.tolist(), 1.0))[True], rtol=1e-12)


@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_a_rows_bits_do_not_depend_on_its_batch(seed: int, n: int, batch: int):
    model, x = _model(seed), _rows(seed + 1, n)
    p, logit = model.score(x)
    parts = [model.score(x[i : i + batch]) for i in range(0, n, batch)]
    assert np.concatenate([part[0] for part in parts]).tobytes() == p.tobytes()
    assert np.concatenate([part[1] for part in parts]).tobytes() == logit.tobytes()


@given(st.integers(0, 2**16), st.floats(0.3, 2.0), st.floats(-3, 3), st.floats(0.0, 1.0))
@settings(max_examples=50, deadline=None)
def test_contributions_sum_to_the_logit_above_the_baseline(seed: int, slope: float, shift: float, bent: float):
    bend = bent * np.random.default_rng(seed).normal(size=BEND_KNOTS)
    model = _model(seed, slope=slope, shift=shift, bend=bend)
    x = _rows(seed, 4)
    _, logit = model.score(x)
    for i in range(4):
        assert np.isclose(model.contributions(x[i]).sum() + model.baseline_logit, logit[i], atol=1e-9)


def test_the_logit_is_clipped():
    _, logit = _model(1, spread=100.0).score(_rows(1, 500))
    assert logit.max() == LOGIT_MAX
    assert logit.min() == -LOGIT_MAX


def test_decoded_it_is_the_same_and_scores_the_same():
    model = _model(7)
    encoded = model.encode()
    assert len(encoded) < ENCODED_BYTES_MAX
    again = Compiled.decode(encoded)
    assert again == model
    assert again.encode() == encoded
    assert again.score(_rows(1, 9))[0].tobytes() == model.score(_rows(1, 9))[0].tobytes()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_is_found(data: st.DataObject):
    encoded = bytearray(_model(7).encode())
    where = data.draw(st.integers(0, len(encoded) - 1))
    encoded[where] ^= 1 << data.draw(st.integers(0, 7))
    try:
        damaged = Compiled.decode(bytes(encoded))
    except Corrupt:
        return
    # Only what changes no score may pass: how many frauds were seen.
    assert msgspec.structs.replace(damaged, frauds=3) == _model(7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["weights", "baseline", "bend", "intercept", "slope", "shift"])
def test_a_number_that_is_not_finite_is_refused(bad: float, field: str):
    good = _model(1)
    value: object = bad
    if field in ("weights", "baseline", "bend"):
        numbers = np.frombuffer(getattr(good, field), np.float64).copy()
        numbers[3] = bad
        value = numbers.tobytes()
    damaged = msgspec.structs.replace(good, **{field: value})
    damaged = msgspec.structs.replace(damaged, version=damaged.expected_version())
    with pytest.raises(Corrupt, match="finite"):
        Compiled.decode(msgspec.msgpack.encode(damaged))


def test_sizes_that_disagree_are_refused():
    damaged = msgspec.structs.replace(_model(1), features=6)
    damaged = msgspec.structs.replace(damaged, version=damaged.expected_version())
    with pytest.raises(Corrupt, match="6 features"):
        Compiled.decode(msgspec.msgpack.encode(damaged))


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="5 features"):
        _model(1).score(np.zeros((2, 6), np.float32))


def test_equal_content_has_an_equal_version_and_other_content_another():
    assert _model(3).version == _model(3).version
    assert _model(3).version != _model(3, slope=1.1).version
    assert _model(3).version != _model(3, bend=np.full(BEND_KNOTS, 0.1)).version
    assert _model(3).version.startswith("3-")


def test_levels_rise_with_the_bins_and_absent_is_a_level_of_its_own():
    used = COARSE[1 : len(QUANTILES) + 2]
    assert COARSE[0] == 0
    assert (np.diff(used) >= 0).all()
    assert set(used.tolist()) == set(range(1, LEVELS))


def test_mean_contributions_are_the_mean_of_contributions():
    model, rows = _model(2), _rows(3, 50)
    found = np.zeros(5)
    mean_contributions(rows, model.cut_points, PAIRS, COARSE, np.frombuffer(model.weights, np.float64), found)
    baseline = np.frombuffer(model.baseline, np.float64)
    np.testing.assert_allclose(
        np.mean([model.contributions(row) for row in rows], axis=0) + baseline, found, atol=1e-12
    )


def test_contributions_of_many_rows_are_those_of_each():
    model, rows = _model(2, slope=0.7), _rows(3, 20)
    together = model.contributions_of(rows)
    assert together.tobytes() == np.stack([model.contributions(row) for row in rows]).tobytes()
    with pytest.raises(ValueError, match="5 features"):
        model.contributions(rows[0, :4])


def test_a_code_is_crossed_by_each_of_its_bins_and_a_number_by_its_level():
    x = np.array([0.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    cuts = np.full((5, CUTS), np.inf, np.float32)
    cuts[:, : len(QUANTILES)] = np.arange(len(QUANTILES)) + 0.5
    pairs = np.array([[0, 4], [0, 4 + FINE]], np.int32)
    cells: list[set[int]] = [set(), set()]
    for value in range(len(QUANTILES) + 1):
        x[4] = value
        keys = np.empty(7, np.int32)
        keys_of(x, cuts, pairs, COARSE, keys)
        for j in range(2):
            cell = int(keys[5 + j]) - 5 * STRIDE - j * PAIR_STRIDE
            assert 0 <= cell < PAIR_STRIDE
            cells[j].add(cell)
    assert [len(found) for found in cells] == [LEVELS - 1, len(QUANTILES) + 1]
