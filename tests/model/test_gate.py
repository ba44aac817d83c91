"""The gate's two errors, each over 200 seeded runs."""

import numpy as np
from numpy.typing import NDArray

from stream.model.bins import CUTS, QUANTILES, STRIDE, Sketch
from stream.model.compiled import Compiled, build
from stream.model.gam import Gam
from stream.model.gate import judge
from stream.model.pairs import COARSE, keys_of

FEATURES = 4
RUNS = 200
TRUE = np.array([1.5, -1.0, 0.7, 0.0])
NO_PAIRS = np.zeros((0, 2), np.int32)


def _world(rng: np.random.Generator, n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    return x, rng.random(n) < 1.0 / (1.0 + np.exp(3.5 - x @ TRUE))


def _cuts() -> NDArray[np.float32]:
    sketch = Sketch(FEATURES)
    for row in np.random.default_rng(99).normal(size=(2_000, FEATURES)).astype(np.float32):
        sketch.add(row)
    return sketch.cuts()


CUT_POINTS = _cuts()


def _trained(seed: int, n: int = 6_000, *, poisoned: bool = False) -> Compiled:
    rng = np.random.default_rng(seed)
    x, fraud = _world(rng, n)
    gam = Gam(FEATURES * STRIDE)
    keys = np.empty(FEATURES, np.int32)
    for i in range(n):
        keys_of(x[i], CUT_POINTS, NO_PAIRS, COARSE, keys)
        taught = bool(fraud[i])
        if poisoned and rng.random() < 0.3:
            taught = not taught
        gam.learn(keys, taught)
    return _compiled(gam.weights, float(gam.intercept[0]), seed)


def _compiled(weights: NDArray[np.float64], intercept: float, offset: int) -> Compiled:
    return build(
        offset=offset,
        features_version="f",
        ready=True,
        frauds=100,
        cuts=CUT_POINTS,
        weights=weights,
        intercept=intercept,
        baseline=np.zeros(FEATURES),
    )


def _passes(new: Compiled, active: Compiled, seed: int) -> bool:
    x, fraud = _world(np.random.default_rng(seed), 9_000)
    frauds, legitimate = x[fraud][:512], x[~fraud][:2_048]
    verdict = judge(
        new,
        active,
        frauds=frauds,
        legitimate=legitimate,
        unlabelled=x[-1_024:],
        fraud_share=float(fraud.mean()),
    )
    return not verdict.why


def test_an_identical_version_passes():
    active = _trained(1)
    assert sum(_passes(active, active, 1_000 + seed) for seed in range(RUNS)) == RUNS


def test_a_version_of_equal_worth_passes_in_95_of_100():
    active = _trained(1)
    equals = [_trained(2 + seed) for seed in range(20)]
    passed = sum(_passes(equals[seed % 20], active, 2_000 + seed) for seed in range(RUNS))
    assert passed >= 0.95 * RUNS


def test_a_poisoned_version_is_held_in_95_of_100():
    active = _trained(1)
    bad = [_trained(2 + seed, poisoned=True) for seed in range(20)]
    assert sum(_passes(bad[seed % 20], active, 3_000 + seed) for seed in range(RUNS)) <= 0.05 * RUNS


def test_a_version_with_shuffled_weights_is_held():
    active = _trained(1)
    passed = 0
    for seed in range(RUNS):
        weights = np.random.default_rng(seed).permutation(np.frombuffer(active.weights, np.float64))
        passed += _passes(_compiled(weights, active.intercept, 2), active, 4_000 + seed)
    assert passed <= 0.05 * RUNS


def test_a_jump_of_alerts_is_held_though_no_label_speaks_against_it():
    active = _trained(1)
    weights = np.frombuffer(active.weights, np.float64)
    x, _ = _world(np.random.default_rng(5), 2_000)
    none = np.zeros((0, FEATURES), np.float32)
    louder = _compiled(weights, active.intercept + 3.0, 2)
    verdict = judge(louder, active, frauds=none, legitimate=none, unlabelled=x, fraud_share=0.05)
    assert verdict.why.startswith("alerts would jump from 0.9")
    assert not judge(active, active, frauds=none, legitimate=none, unlabelled=x, fraud_share=0.05).why


def test_one_that_is_far_too_quiet_does_not_hold_those_that_are_right():
    """The first versions know few frauds. What they take for their highest hundredth is no measure of alerts."""
    right = _trained(1)
    quiet = _compiled(np.frombuffer(right.weights, np.float64), right.intercept - 4.0, 2)
    x, _ = _world(np.random.default_rng(5), 2_000)
    limit = np.sort(quiet.score(x)[1])[-len(x) // 100]
    assert (right.score(x)[1] > limit).mean() > 4 * 0.01
    assert all(_passes(right, quiet, 5_000 + seed) for seed in range(RUNS))


def test_the_first_version_passes_and_readiness_is_not_given_up():
    active = _trained(1)
    none = np.zeros((0, FEATURES), np.float32)
    assert not judge(active, None, frauds=none, legitimate=none, unlabelled=none, fraud_share=0.0).why
    unready = build(
        offset=3,
        features_version="f",
        ready=False,
        frauds=0,
        cuts=np.full((FEATURES, CUTS), np.inf, np.float32)[:, : len(QUANTILES)],
        weights=np.zeros(FEATURES * STRIDE),
        intercept=0.0,
        baseline=np.zeros(FEATURES),
    )
    assert judge(unready, active, frauds=none, legitimate=none, unlabelled=none, fraud_share=0.0).why


def test_weights_are_how_many_payments_a_row_stands_for():
    """Rows of which one in four were kept speak for four: without that, what was always kept would decide."""
    active, louder = _trained(1), _trained(2, poisoned=True)
    x, fraud = _world(np.random.default_rng(7), 9_000)
    frauds, legitimate = x[fraud][:200], x[~fraud][:800]
    none = np.zeros((0, FEATURES), np.float32)
    weights = np.random.default_rng(8).integers(1, 5, len(legitimate))
    weighted = judge(
        louder, active, frauds=frauds, legitimate=legitimate, unlabelled=none, fraud_share=0.1,
        legitimate_weights=weights.astype(np.float64),
    )  # fmt: skip
    repeated = judge(
        louder, active, frauds=frauds, legitimate=np.repeat(legitimate, weights, axis=0), unlabelled=none,
        fraud_share=0.1,
    )  # fmt: skip
    plain = judge(louder, active, frauds=frauds, legitimate=legitimate, unlabelled=none, fraud_share=0.1)
    assert np.isclose(weighted.worse, repeated.worse)
    assert not np.isclose(weighted.worse, plain.worse)
    assert weighted.deviation > repeated.deviation  # four payments that are one row tell less than four rows
