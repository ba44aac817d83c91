"""What Platt's two numbers leave over: where, along the logit, frauds come more or less often than they say.

A straight line through all logits is drawn by the many frauds that score high; of the many payments that look like any
other it may say half or twice too much. So payments and frauds are counted along the raw logit, and what is added to
the line is the piecewise linear function that makes these counts likeliest, with a ridge prior; its order is kept as
isotonic regression does (Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability
Estimates", KDD 2002).
"""

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel, sigmoid

BEND_FROM = -12.0  # where the first knot stands on the raw logit
BEND_STEP = 2.0
BEND_KNOTS = 9  # up to 4
CELLS_A_STEP = 8
CELLS = CELLS_A_STEP * (BEND_KNOTS - 1)  # where is counted
KNOT_PRIOR = 20.0  # how many frauds' worth of belief each knot has in Platt's line
RISE_MIN = 0.1  # what is left, at least, of the line's slope: the order of scores stays
NEWTON_STEPS = 8


@kernel
def bent(raw: float, slope: float, shift: float, bend: NDArray[np.float64]) -> float:
    """The calibrated logit of a raw one: `slope` * raw + `shift`, and what `bend`, float64 [BEND_KNOTS], adds there:
    linear between its knots, constant beyond them."""
    z = slope * raw + shift
    u = (raw - BEND_FROM) / BEND_STEP
    if u <= 0.0:
        return z + bend[0]
    if u >= BEND_KNOTS - 1:
        return z + bend[BEND_KNOTS - 1]
    k = int(u)
    return z + (bend[k] + (u - k) * (bend[k + 1] - bend[k]))


@kernel
def tally(raw: float, fraud: float, weight: float, frauds: NDArray[np.float64], payments: NDArray[np.float64]) -> None:
    """Count one example at the two cells, of float64 [CELLS], beside its raw logit."""
    if raw != raw:
        return  # the weights are no numbers: the next tick throws them away, and this with them
    u = min(max((raw - BEND_FROM) * CELLS_A_STEP / BEND_STEP, 0.0), CELLS - 1.0)
    c = min(int(u), CELLS - 2)
    right = weight * (u - c)
    left = weight - right
    frauds[c] += left * fraud
    frauds[c + 1] += right * fraud
    payments[c] += left
    payments[c + 1] += right


@kernel
def fit_bend(
    frauds: NDArray[np.float64], payments: NDArray[np.float64], slope: float, shift: float, bend: NDArray[np.float64]
) -> None:
    """Newton's method on the log loss of what was counted, from the `bend` before; KNOT_PRIOR on a bend of nothing.

    In the end the calibrated logit rises by RISE_MIN of `slope` > 0 at least: where it would not, knots are pooled,
    weighted by what they know.
    """
    known = np.empty(BEND_KNOTS)  # the Hessian has two diagonals: a cell knows of the two knots beside it
    beside = np.empty(BEND_KNOTS)
    step = np.empty(BEND_KNOTS)
    for _ in range(NEWTON_STEPS):
        for k in range(BEND_KNOTS):
            known[k] = KNOT_PRIOR
            beside[k] = 0.0
            step[k] = KNOT_PRIOR * bend[k]
        for c in range(CELLS):
            n = max(payments[c], 0.0)  # what was taken back may leave a little less than nothing
            y = min(max(frauds[c], 0.0), n)
            k = c // CELLS_A_STEP
            right = (c - k * CELLS_A_STEP) / CELLS_A_STEP
            left = 1.0 - right
            raw = BEND_FROM + c * BEND_STEP / CELLS_A_STEP
            p = sigmoid(slope * raw + shift + left * bend[k] + right * bend[k + 1])
            g = n * p - y
            h = n * p * (1.0 - p)
            step[k] += left * g
            step[k + 1] += right * g
            known[k] += left * left * h
            known[k + 1] += right * right * h
            beside[k] += left * right * h
        _solve(known.copy(), beside, step)
        for k in range(BEND_KNOTS):
            bend[k] -= min(max(step[k], -1.0), 1.0)  # far from the optimum Newton's step overshoots
    _in_order(known, (1.0 - RISE_MIN) * slope, bend)


@kernel
def _solve(diagonal: NDArray[np.float64], beside: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    """Gauss on a symmetric tridiagonal matrix, which is used up: `x` becomes what `x` is the matrix's product of."""
    for k in range(1, BEND_KNOTS):
        share = beside[k - 1] / diagonal[k - 1]
        diagonal[k] -= share * beside[k - 1]
        x[k] -= share * x[k - 1]
    x[BEND_KNOTS - 1] /= diagonal[BEND_KNOTS - 1]
    for k in range(BEND_KNOTS - 2, -1, -1):
        x[k] = (x[k] - beside[k] * x[k + 1]) / diagonal[k]


@kernel
def _in_order(weights: NDArray[np.float64], rise: float, bend: NDArray[np.float64]) -> None:
    """The pool of adjacent violators: from knot to knot `bend` + `rise` * raw does not fall."""
    value = np.empty(BEND_KNOTS)
    weight = np.empty(BEND_KNOTS)
    size = np.empty(BEND_KNOTS, np.int64)
    pools = 0
    for k in range(BEND_KNOTS):
        value[pools] = bend[k] + rise * (BEND_FROM + k * BEND_STEP)
        weight[pools] = weights[k]
        size[pools] = 1
        while pools > 0 and value[pools - 1] > value[pools]:
            both = weight[pools - 1] + weight[pools]
            value[pools - 1] = (value[pools - 1] * weight[pools - 1] + value[pools] * weight[pools]) / both
            weight[pools - 1] = both
            size[pools - 1] += size[pools]
            pools -= 1
        pools += 1
    k = 0
    for pool in range(pools):
        for _ in range(size[pool]):
            bend[k] = value[pool] - rise * (BEND_FROM + k * BEND_STEP)
            k += 1
