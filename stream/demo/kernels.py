"""Compiles what workers would otherwise compile while payments wait: once on a machine, then it is on disk."""

import numpy as np

from stream.bits import fixed_vectors
from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.bins import RENEWAL_ROWS
from stream.model.learner import FRAUDS_MIN, Learner, Settings
from stream.windows.entity import EntityWindows


def compile_kernels() -> None:
    """A learner is taken through its first versions, on numbers that mean nothing. Seconds the first time."""
    EntityWindows()
    learner = Learner(Settings(features=len(MODEL_FEATURES), features_version=FEATURES_VERSION))
    rows = fixed_vectors(RENEWAL_ROWS[0], len(MODEL_FEATURES), seed=1).astype(np.float32)
    for row in rows:
        learner.unlabelled(row)
    for offset in range(2):  # the second version is compared with the first
        for number in range(2 * FRAUDS_MIN):
            learner.example(rows[number % len(rows)], number % 2 == 0, 1.0, "kernels", "chargeback")
        learner.tick(offset)
