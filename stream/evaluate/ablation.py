"""What a group of features is worth: the learner taught again without it, each example scored before it is learned."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream.features import FEATURES_VERSION, MODEL_NAMES
from stream.model.learner import Learner, Settings
from stream.model.pairs import pairs_of
from stream.stages.learn import teach
from stream.stages.model_reasons import MODEL_REASONS
from topics.journal import EXAMPLE_UNLABELLED, Example

EXAMPLES_MAX = 120_000


class Ablation(Struct, frozen=True, kw_only=True):
    """`group`: the reason that its features stand for; "" is the whole model. `average_precision`: weighted, over the
    later half of the examples, without the group."""

    group: str
    features: int
    average_precision: float


def ablation(examples: Sequence[Example], *, examples_max: int = EXAMPLES_MAX) -> list[Ablation]:
    """The whole model first, then by what is lost without a group. Empty if there are no frauds to tell.

    Examples are those of the journal, in its order; of more than `examples_max` the latest. A group none of whose
    features is ever present is left out.
    """
    latest = [example for example in examples if len(example.features) == 4 * len(MODEL_NAMES)][-examples_max:]
    judged = [example for example in latest if example.kind != EXAMPLE_UNLABELLED]
    half = judged[len(judged) // 2 :]
    if not any(example.fraud for example in half) or all(example.fraud for example in half):
        return []
    rows = np.frombuffer(b"".join(example.features for example in latest), np.float32).reshape(len(latest), -1)
    whole = Ablation(group="", features=len(MODEL_NAMES), average_precision=_learned(latest, rows))
    found: list[Ablation] = []
    for group in sorted(set(MODEL_REASONS)):
        members = [i for i, reason in enumerate(MODEL_REASONS) if reason == group]
        if np.isnan(rows[:, members]).all():
            continue
        without = rows.copy()
        without[:, members] = np.nan
        found.append(Ablation(group=group, features=len(members), average_precision=_learned(latest, without)))
    return [whole, *sorted(found, key=lambda one: one.average_precision)]


def _learned(examples: Sequence[Example], rows: NDArray[np.float32]) -> float:
    learner = Learner(
        Settings(features=len(MODEL_NAMES), features_version=FEATURES_VERSION, pairs=pairs_of(MODEL_NAMES))
    )
    logits: list[float] = []
    frauds: list[bool] = []
    weights: list[float] = []
    # Bins first, and the same for all: few examples have few unlabelled ones among them.
    for unlabelled in (True, False):
        for example, row in zip(examples, rows, strict=True):
            if (example.kind == EXAMPLE_UNLABELLED) is not unlabelled:
                continue
            if not unlabelled:
                logits.append(learner.mean_logit(row))
                frauds.append(example.fraud)
                weights.append(example.weight)
            teach(learner, example, row)
    half = len(logits) // 2
    return weighted_average_precision(
        np.array(frauds[half:], np.bool_), np.array(logits[half:]), np.array(weights[half:])
    )


def weighted_average_precision(
    fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]
) -> float:
    """Average precision where a row stands for `weight` payments; ties count as the pessimist would.

    >>> weighted_average_precision(np.array([True, False]), np.array([0.2, 0.9]), np.array([1.0, 3.0]))
    0.25
    """
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(np.where(fraud, weight, 0.0)[order])
    seen = np.cumsum(weight[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found = hits[last]
    return float((found / seen[last] * np.diff(found, prepend=0.0)).sum() / hits[-1])
