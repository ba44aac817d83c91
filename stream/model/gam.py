"""A generalised additive model that learns online: River's logistic regression over one-hot quantile bins.

River's `LogisticRegression(AdaGrad(0.2), l2=1e-5)` is the definition, and the oracle of the tests: `to_river` gives
that very estimator. Through dicts it takes 60 us an example of 50 features; here the same arithmetic runs on flat
arrays, which are also the state.

What is published is a running mean of the iterates and not the last of them, in the manner of Shamir and Zhang,
"Stochastic Gradient Descent for Non-smooth Optimization" (ICML 2013): a step of AdaGrad is as large as the noise in one
example, and the mean is rid of it. It forgets by half in MEAN_HALF_LIFE examples, and so follows the iterate.
"""

from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel, sigmoid
from stream.model.calibration import Calibration, enter
from stream.model.pairs import COARSE, keys_of

if TYPE_CHECKING:
    from river.linear_model import LogisticRegression

LEARNING_RATE = 0.2
INTERCEPT_RATE = 0.01
L2 = 1e-5
MEAN_EVERY = 32  # examples; more often costs more than the 2,900 weights are worth
MEAN_HALF_LIFE = 4_000  # examples
MEAN_EAGERNESS = 4.0  # while young, the mean is mostly about the latest of its iterates: 4 / (n + 4) for the n-th
EPSILON = 1.0  # not River's 1e-8: the first step on a rare bin follows its gradient, and is not a leap of 0.2
_MEAN_RATE = 1.0 - 0.5 ** (MEAN_EVERY / MEAN_HALF_LIFE)


@kernel
def _raw(keys: NDArray[np.int32], weights: NDArray[np.float64], intercept: float) -> float:
    total: float = 0.0
    for i in range(keys.shape[0]):
        total += float(weights[keys[i]])
    return total + intercept


@kernel
def _follow(mean: NDArray[np.float64], weights: NDArray[np.float64], rate: float) -> None:
    for i in range(mean.shape[0]):
        mean[i] += rate * (weights[i] - mean[i])


@kernel
def _learn(
    keys: NDArray[np.int32],
    fraud: float,
    weight: float,
    weights: NDArray[np.float64],
    squares: NDArray[np.float64],
    intercept: NDArray[np.float64],
    rates: NDArray[np.float64],
    was_fraud: float,
    was_weight: float,
    mean: NDArray[np.float64],
    mean_intercept: NDArray[np.float64],
    step: int,
) -> float:
    """One step of AdaGrad, as River takes it, the `step`-th from 1 on; the running mean follows. Returns the
    logit before it."""
    raw = _raw(keys, weights, intercept[0])
    p = sigmoid(raw)
    gradient = weight * (p - fraud)
    if was_weight > 0.0:
        gradient -= was_weight * (p - was_fraud)
    intercept[0] -= rates[1] * gradient
    for i in range(keys.shape[0]):
        k = keys[i]
        g = gradient + rates[2] * weights[k]
        squares[k] += g * g
        weights[k] -= rates[0] / np.sqrt(squares[k] + rates[3]) * g
    if step % MEAN_EVERY == 0 or step < MEAN_EVERY:
        rate = max(_MEAN_RATE, MEAN_EAGERNESS / (step / MEAN_EVERY + MEAN_EAGERNESS))
        _follow(mean, weights, rate)
        _follow(mean_intercept, intercept, rate)
    return raw


@kernel
def _learn_legitimate(
    x: NDArray[np.float32],
    weight: NDArray[np.float64],
    cuts: NDArray[np.float32],
    pairs: NDArray[np.int32],
    coarse: NDArray[np.int32],
    weights: NDArray[np.float64],
    squares: NDArray[np.float64],
    intercept: NDArray[np.float64],
    rates: NDArray[np.float64],
    mean: NDArray[np.float64],
    mean_intercept: NDArray[np.float64],
    steps: int,
    ring: NDArray[np.float64],
    at: int,
    frauds: NDArray[np.float64],
    payments: NDArray[np.float64],
) -> None:
    keys = np.empty(x.shape[1] + pairs.shape[0], np.int32)
    for i in range(x.shape[0]):
        keys_of(x[i], cuts, pairs, coarse, keys)
        logit = _raw(keys, mean, mean_intercept[0])
        enter(logit, 0.0, weight[i], ring, at + i, frauds, payments)
        _learn(
            keys,
            0.0,
            weight[i],
            weights,
            squares,
            intercept,
            rates,
            0.0,
            0.0,
            mean,
            mean_intercept,
            steps + i + 1,
        )


class GamState(msgspec.Struct, frozen=True, array_like=True):
    """The model as plain bytes (little-endian float64)."""

    weights: bytes
    squares: bytes
    intercept: float
    steps: int
    mean: bytes
    mean_intercept: float


class Gam:
    """Weights and AdaGrad's sums of squared gradients for `size` keys, all of which are zero at first."""

    def __init__(
        self, size: int, *, learning_rate: float = LEARNING_RATE, intercept_rate: float = INTERCEPT_RATE, l2: float = L2
    ) -> None:
        self.size = size
        self.weights = np.zeros(size)
        self.squares = np.zeros(size)
        self.intercept = np.zeros(1)
        self.mean = np.zeros(size)
        self.mean_intercept = np.zeros(1)
        self.rates = np.array([learning_rate, intercept_rate, l2, EPSILON])
        self.steps = 0

    def logit(self, keys: NDArray[np.int32]) -> float:
        """The sum of the weights of `keys` and the intercept."""
        return float(_raw(keys, self.weights, self.intercept[0]))

    def mean_logit(self, keys: NDArray[np.int32]) -> float:
        """The same by the running mean of the weights."""
        return float(_raw(keys, self.mean, self.mean_intercept[0]))

    def learn(self, keys: NDArray[np.int32], fraud: bool, weight: float = 1.0) -> float:
        """One example: int32 keys below `size`, each once. Returns its logit before learning, an honest prediction."""
        return self.correct(keys, False, 0.0, fraud, weight)

    def correct(self, keys: NDArray[np.int32], was_fraud: bool, was_weight: float, fraud: bool, weight: float) -> float:
        """The same, and what the example with another truth had taught is taken back, to first order, in the same step.

        In one step, for the two have most of their gradients in common: taken one after the other they would count
        twice in AdaGrad's sums, and the second would be a step from where the first overshot to.
        """
        self.steps += 1
        return float(
            _learn(
                keys,
                float(fraud),
                weight,
                self.weights,
                self.squares,
                self.intercept,
                self.rates,
                float(was_fraud),
                was_weight,
                self.mean,
                self.mean_intercept,
                self.steps,
            )
        )

    def learn_legitimate(
        self,
        x: NDArray[np.float32],
        weight: NDArray[np.float64],
        cuts: NDArray[np.float32],
        pairs: NDArray[np.int32],
        calibration: Calibration,
    ) -> None:
        """A run of legitimate payments in one call: `calibration` is told the mean logit of each row of `x`, float32
        [n, features], and the row is learned with its `weight`, float64 [n]."""
        _learn_legitimate(
            x,
            weight,
            cuts,
            pairs,
            COARSE,
            self.weights,
            self.squares,
            self.intercept,
            self.rates,
            self.mean,
            self.mean_intercept,
            self.steps,
            calibration.ring,
            calibration.at,
            calibration.frauds,
            calibration.payments,
        )
        self.steps += len(x)
        calibration.at += len(x)

    def state(self) -> GamState:
        """All there is to it, but the rates."""
        return GamState(
            self.weights.tobytes(),
            self.squares.tobytes(),
            float(self.intercept[0]),
            self.steps,
            self.mean.tobytes(),
            float(self.mean_intercept[0]),
        )

    def resume(self, state: GamState) -> None:
        """Go on where `state` was taken, to the bit. ValueError if it is of another size."""
        weights = np.frombuffer(state.weights, np.float64)
        if weights.shape != (self.size,):
            raise ValueError(f"a state of {self.size} weights, got {weights.shape[0]}")
        self.weights = weights.copy()
        self.squares = np.frombuffer(state.squares, np.float64).copy()
        self.intercept = np.array([state.intercept])
        self.steps = state.steps
        self.mean = np.frombuffer(state.mean, np.float64).copy()
        self.mean_intercept = np.array([state.mean_intercept])

    def to_river(self) -> "LogisticRegression":
        """River's estimator in the same state: `learn_one({key: 1.0, ...}, fraud, w=weight)` goes on from here."""
        from river import optim  # seconds of imports that no worker needs
        from river.linear_model import LogisticRegression

        rate, intercept_rate, l2, epsilon = (float(r) for r in self.rates)
        optimizer = optim.AdaGrad(rate, epsilon)
        model = LogisticRegression(optimizer=optimizer, l2=l2, intercept_lr=intercept_rate)
        # One step over every key at a learning rate of zero makes River know them all.
        model.learn_one(dict.fromkeys(range(self.size), 0.0), False, w=0.0)
        for key in range(self.size):
            cast(dict[int, float], model._weights)[key] = float(self.weights[key])  # pyright: ignore[reportPrivateUsage]
            optimizer.g2[key] = float(self.squares[key])
        model.intercept = float(self.intercept[0])
        optimizer.n_iterations = self.steps
        return model
