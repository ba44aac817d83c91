"""From scores to probabilities: Platt's two numbers, fitted to the logits with which recent examples were met; and what
they leave over, see bend.py.

J. Platt, "Probabilistic Outputs for Support Vector Machines" (1999). The logit that counts is the one before the
example was learned, so no data is held back, and none is judged by a model that has seen it.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel, sigmoid
from stream.model.bend import BEND_KNOTS, CELLS, bent, fit_bend, tally

CAPACITY = 32_768
FRAUDS_MIN = 100  # below it the uncertainty of the shift is more than 10 %: leave the logits alone
PRIOR_FRAUDS = 20.0  # how many frauds' worth of belief there is in a slope of 1
FIRST_STEPS = 12
STEPS = 3  # from the fit before, which is near
REFIT_EXAMPLES = 1_024  # between two fits: a thirty-second of the ring
BEND_MEMORY = 10_000.0  # frauds: those among the payments that look like any other are few
BEND_EAGERNESS = 2.0  # while young, the bend is mostly about the latest half of the frauds that were met
SLOPE_MIN, SLOPE_MAX = 0.3, 2.0
SHIFT_MAX = 4.0


@kernel
def _fit(
    logit: NDArray[np.float64],
    fraud: NDArray[np.float64],
    weight: NDArray[np.float64],
    prior: float,
    steps: int,
    out: NDArray[np.float64],
) -> None:
    """Newton's method on the weighted log loss of slope * logit + shift, with `prior` on slope = 1."""
    a = out[0]
    b = out[1]
    for _ in range(steps):
        ga = prior * (a - 1.0)
        gb = 0.0
        haa = prior
        hab = 0.0
        hbb = 1e-9
        for i in range(logit.shape[0]):
            x = logit[i]
            p = sigmoid(a * x + b)
            g = weight[i] * (p - fraud[i])
            h = weight[i] * p * (1.0 - p)
            ga += g * x
            gb += g
            haa += h * x * x
            hab += h * x
            hbb += h
        det = haa * hbb - hab * hab
        if det <= 0.0:
            break
        da = (hbb * ga - hab * gb) / det
        db = (haa * gb - hab * ga) / det
        # Half a unit at a time: far from the optimum Newton's step overshoots.
        scale = 1.0
        size = max(abs(da), abs(db))
        if size > 0.5:
            scale = 0.5 / size
        a -= scale * da
        b -= scale * db
        if size < 1e-7:
            break
    out[0] = a
    out[1] = b


@kernel
def _expected(
    logit: NDArray[np.float64], weight: NDArray[np.float64], slope: float, shift: float, bend: NDArray[np.float64]
) -> float:
    total = 0.0
    for i in range(logit.shape[0]):
        total += weight[i] * sigmoid(bent(logit[i], slope, shift, bend))
    return total


@kernel
def enter(
    logit: float,
    fraud: float,
    weight: float,
    ring: NDArray[np.float64],
    at: int,
    frauds: NDArray[np.float64],
    payments: NDArray[np.float64],
) -> None:
    """The `at`-th example goes into the ring, float64 [3, capacity] of logit, fraud and weight, and is counted."""
    i = at % ring.shape[1]
    ring[0, i] = logit
    ring[1, i] = fraud
    ring[2, i] = weight
    tally(logit, fraud, weight, frauds, payments)


class CalibrationState(msgspec.Struct, frozen=True, array_like=True):
    """The ring as plain bytes, and the fit to start from."""

    at: int
    logit: bytes
    fraud: bytes
    weight: bytes
    fit: bytes
    fitted_at: int
    met: int
    frauds: bytes
    payments: bytes
    bend: bytes


class Calibration:
    """A ring of the latest CAPACITY examples: logit before learning, truth, weight. Bounded: 0.8 MB."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.at = 0  # examples ever added
        self.ring = np.zeros((3, capacity))
        self.logit, self.fraud, self.weight = self.ring
        self.fitted = np.array([1.0, 0.0])
        self.fitted_at = 0
        self.met = 0  # frauds, ever
        self.frauds = np.zeros(CELLS)  # by the logit with which they were met
        self.payments = np.zeros(CELLS)
        self.bend = np.zeros(BEND_KNOTS)

    def add(self, logit: float, fraud: bool, weight: float) -> None:
        """One example; the oldest makes room. Negative weights (what is taken back) are allowed."""
        if fraud and weight > 0.0:
            keep = 1.0 - max(1.0 / BEND_MEMORY, BEND_EAGERNESS / (self.met + BEND_EAGERNESS))
            self.frauds *= keep
            self.payments *= keep
            self.met += 1
        enter(logit, float(fraud), weight, self.ring, self.at, self.frauds, self.payments)
        self.at += 1

    def fit(self) -> tuple[float, float]:
        """(slope, shift); (1, 0) while there are less than FRAUDS_MIN frauds or no legitimate payment.

        `bend` is renewed with them.
        """
        if self.fitted_at and self.at - self.fitted_at < REFIT_EXAMPLES:
            return float(self.fitted[0]), float(self.fitted[1])
        n = min(self.at, self.capacity)
        fraud, weight = self.fraud[:n], self.weight[:n]
        if float((fraud * weight).sum()) < FRAUDS_MIN or not ((1.0 - fraud) * weight).any():
            # All go together: a bend is a remainder to its own line; with another one scores could turn round.
            self.fitted[:] = (1.0, 0.0)
            self.bend[:] = 0.0
            self.fitted_at = 0
            return 1.0, 0.0
        _fit(self.logit[:n], fraud, weight, PRIOR_FRAUDS, STEPS if self.fitted_at else FIRST_STEPS, self.fitted)
        self.fitted_at = self.at
        if not np.isfinite(self.fitted).all():
            self.fitted[:] = (1.0, 0.0)
        self.fitted[0] = min(max(float(self.fitted[0]), SLOPE_MIN), SLOPE_MAX)
        self.fitted[1] = min(max(float(self.fitted[1]), -SHIFT_MAX), SHIFT_MAX)
        fit_bend(self.frauds, self.payments, float(self.fitted[0]), float(self.fitted[1]), self.bend)
        return float(self.fitted[0]), float(self.fitted[1])

    def expected_over_observed(self) -> float:
        """Frauds that the logits in the ring, calibrated, expect over those in it; NaN if there are none."""
        n = min(self.at, self.capacity)
        observed = float((self.fraud[:n] * self.weight[:n]).sum())
        if observed <= 0.0:
            return math.nan
        slope, shift = float(self.fitted[0]), float(self.fitted[1])
        return _expected(self.logit[:n], self.weight[:n], slope, shift, self.bend) / observed

    def state(self) -> CalibrationState:
        """All there is to it."""
        n = min(self.at, self.capacity)
        return CalibrationState(
            self.at,
            self.logit[:n].tobytes(),
            self.fraud[:n].astype(np.uint8).tobytes(),
            self.weight[:n].tobytes(),
            self.fitted.tobytes(),
            self.fitted_at,
            self.met,
            self.frauds.tobytes(),
            self.payments.tobytes(),
            self.bend.tobytes(),
        )

    def resume(self, state: CalibrationState) -> None:
        """Go on where `state` was taken."""
        logit = np.frombuffer(state.logit, np.float64)
        n = len(logit)
        self.at = state.at
        self.logit[:n] = logit
        self.fraud[:n] = np.frombuffer(state.fraud, np.uint8)
        self.weight[:n] = np.frombuffer(state.weight, np.float64)
        self.fitted = np.frombuffer(state.fit, np.float64).copy()
        self.fitted_at = state.fitted_at
        self.met = state.met
        self.frauds = np.frombuffer(state.frauds, np.float64).copy()
        self.payments = np.frombuffer(state.payments, np.float64).copy()
        self.bend = np.frombuffer(state.bend, np.float64).copy()
