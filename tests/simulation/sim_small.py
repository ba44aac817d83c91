"""Bounds made small, so that two hundred payments reach what takes millions in production."""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.gam import Gam
from stream.model.learner import Learner
from stream.model.learner import Settings as LearnerSettings

DAY_MS = 86_400_000
KEEP_ONE_IN = 2
UNLABELLED_ONE_IN = 2


def keep_legitimate(payment_hash: int) -> float:
    return float(KEEP_ONE_IN) if (payment_hash >> 32) * KEEP_ONE_IN >> 32 == 0 else 0.0


NEVER = -1


class BreakingGam(Gam):
    """Its weights become NaN at its `breaks_at`-th step, as by an overflow; at every learner of a run, and again when
    it is restored and repeats that step."""

    breaks_at = NEVER
    broken = 0

    def learn(self, keys: Any, fraud: bool, weight: float = 1.0) -> float:
        logit = super().learn(keys, fraud, weight)
        if self.steps == BreakingGam.breaks_at:
            self.weights[:] = self.mean[:] = math.nan
            BreakingGam.broken += 1
        return logit


SMALL: tuple[tuple[str, str, Any], ...] = (
    ("stream.runner.partition", "BLOCK_ITEMS_MAX", 4),
    ("stream.runner.partition", "BLOCK_BYTES_MAX", 4_000),
    ("stream.stages.account", "EPOCH_MS", DAY_MS),
    ("stream.stages.account", "LABELS_MAX", 6),
    ("stream.stages.account", "CLOCK_STEP_MS", 6 * 3_600_000),
    ("stream.stages.terminal", "UNLABELLED_ONE_IN", UNLABELLED_ONE_IN),
    ("stream.stages.terminal", "MATURED_MAX", 2),
    ("stream.stages.terminal", "DUE_ROWS_MAX", 5),
    ("stream.stages.pending", "keep_legitimate", keep_legitimate),
    ("stream.model.learner", "RENEWAL_ROWS", (3, 10, 30)),
    ("stream.model.learner", "Gam", BreakingGam),
)


@contextmanager
def small_bounds(breaks_at: int = NEVER) -> Iterator[None]:
    """Production's constants are replaced while this lasts. `breaks_at`: see `BreakingGam`."""
    BreakingGam.breaks_at, BreakingGam.broken = breaks_at, 0
    before = [(importlib.import_module(module), name) for module, name, _ in SMALL]
    kept = [(module, name, getattr(module, name)) for module, name in before]
    for (module, name), (_, _, value) in zip(before, SMALL, strict=True):
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def small_learner() -> Learner:
    return Learner(LearnerSettings(features=len(MODEL_FEATURES), features_version=FEATURES_VERSION, frauds_min=2))
