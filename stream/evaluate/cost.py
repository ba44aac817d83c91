"""What the model costs: time of its two kernels in the process as it stands, and the bytes of a version."""

import time
from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream.model.learner import MATURITY_SOURCE, Learner

BATCH = 1_000
ROUNDS = 30


class Cost(Struct, frozen=True, kw_only=True):
    """The least of 30 rounds.

    `predict_us`: CPU us a payment in batches of 1,000 by the compiled form; `learn_us`: CPU us an example, all of the
    learner's work on it included; `weights_bytes`: of the version as its marker carries it.
    """

    predict_us: float
    learn_us: float
    weights_bytes: int
    features: int


def cost_of(learner: Learner) -> Cost | None:
    """Measured on the learner's own latest rows, with a copy of it; None while it has no version or no example."""
    if learner.active is None:
        return None
    legitimate = learner.gate_legitimate.rows
    frauds = learner.gate_frauds.rows
    if not len(legitimate) or not len(frauds):
        return None
    rows = _of_length(legitimate, BATCH)
    few = _of_length(frauds, BATCH // 10)
    version, copy = learner.active, Learner.from_bytes(learner.to_bytes())

    def learn() -> None:
        for row in rows[: BATCH - len(few)]:
            copy.example(row, False, 1.0, MATURITY_SOURCE, "matured")
        for row in few:
            copy.example(row, True, 1.0, MATURITY_SOURCE, "chargeback")

    return Cost(
        predict_us=round(_least_us(lambda: version.score(rows)) / BATCH, 3),
        learn_us=round(_least_us(learn) / BATCH, 2),
        weights_bytes=len(version.encode()),
        features=version.features,
    )


def _of_length(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[np.arange(count) % len(rows)])


def _least_us(work: Callable[[], object]) -> float:
    work()
    least = np.inf
    for _ in range(ROUNDS):
        begun = time.thread_time_ns()
        work()
        least = min(least, time.thread_time_ns() - begun)
    return float(least) / 1_000.0
