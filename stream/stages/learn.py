"""The learner's stage: one partition of examples, so one total order; a version at each tick, if something was learned.

State: the learner's arrays, written whole when they changed (about 2 MB).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from stream.errors import InternalError
from stream.features import FEATURES_VERSION, MODEL_FEATURES, MODEL_NAMES
from stream.model.learner import MATURITY_SOURCE, PROVISIONAL_WEIGHT, Broken, Held, Learner, Published, Taught
from stream.model.learner import Settings as LearnerSettings
from stream.model.pairs import pairs_of
from stream.stages.control import CONTROL, model_record
from stream.stages.stage import Outbox, Record, Step, runs_of
from stream.stages.state import State
from topics.journal import EXAMPLE_CORRECTED, EXAMPLE_MATURED, EXAMPLE_UNLABELLED, Example, Item, Marker, Tick
from topics.limits import DAY_MS

KEY = b"Nlearner"
UNNAMED_SOURCE = "unnamed"


def fresh_learner() -> Learner:
    """The learner of a deployment that has none yet."""
    return Learner(
        LearnerSettings(features=len(MODEL_FEATURES), features_version=FEATURES_VERSION, pairs=pairs_of(MODEL_NAMES))
    )


def teach(learner: Learner, example: Example, features: NDArray[np.float32]) -> None:
    """What an example of the journal means to the learner. `features`: float32 of the model's, as a rule its own.

    A correction says what should have been taught before; the learner knows better where a cap stood in the way.
    """
    if example.kind == EXAMPLE_UNLABELLED:
        learner.unlabelled(features)
        return
    kind = "fraud_report" if example.provisional else "chargeback"
    asked = Taught(example.fraud, example.weight * (PROVISIONAL_WEIGHT if example.provisional else 1.0))
    label = (example.fraud, example.weight, _source(example), kind)
    day = example.observed_ms // DAY_MS
    if example.kind == EXAMPLE_CORRECTED:
        share = PROVISIONAL_WEIGHT if example.was_provisional else 1.0
        was = learner.taught(example.pid, Taught(example.was_fraud, example.was_weight * share))
        known = learner.correct(features, *was, *label, day=day)
    else:
        known = Taught(example.fraud, learner.example(features, *label, day=day))
    learner.note(example.pid, asked, known)


def _source(example: Example) -> str:
    """Who said so. Silence alone has no cap, whatever a feed calls itself."""
    if example.kind == EXAMPLE_MATURED:
        return MATURITY_SOURCE
    return example.source if example.source and example.source != MATURITY_SOURCE else UNNAMED_SOURCE


def _is_silence(item: Item | Record) -> bool:
    return isinstance(item, Example) and item.kind == EXAMPLE_MATURED and not item.fraud and not item.provisional


def teach_silences(learner: Learner, run: Sequence[Example]) -> None:
    """`teach` of each, of examples that silence gave; all have their own features."""
    rows = [example.features for example in run]
    if len(set(map(len, rows))) > 1:
        raise ValueError(f"rows of different lengths: {sorted(set(map(len, rows)))} bytes")
    features = np.frombuffer(bytearray(b"".join(rows)), np.float32).reshape(len(rows), -1)
    learner.silences(features, np.array([example.weight for example in run]))


class LearnStage:
    """Learns what comes, publishes at ticks. `fresh`: the learner of a partition that has no state yet.

    `broken`: why what was learned since the version before was thrown away, until there is a version again. Else empty.
    """

    def __init__(self, state: State, fresh: Callable[[], Learner]) -> None:
        self._state = state
        kept = state.get(KEY)
        self.learner = fresh() if kept is None else Learner.from_bytes(kept)
        self.counts: Counter[str] = Counter()
        self._changed = False
        self.broken = ""
        self.active_version = "" if self.learner.active is None else self.learner.active.version

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        for silent, start, end in runs_of([_is_silence(step.item) for step in steps]):
            if silent:
                self._learn_silences(cast("list[Example]", [step.item for step in steps[start:end]]))
                continue
            for step in steps[start:end]:
                item = step.item
                if isinstance(item, Example):
                    self._learn(item)
                elif isinstance(item, Tick):
                    self._publish(step, out)
                elif not isinstance(item, Marker):
                    raise InternalError(f"a {type(item).__name__} does not belong on examples")

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        """A skipped block teaches nothing."""

    def settle(self) -> None:
        if self._changed:
            self._state.put(KEY, self.learner.to_bytes())
            self._changed = False

    def _learn(self, example: Example) -> None:
        self._changed = True
        teach(self.learner, example, np.frombuffer(example.features, np.float32))
        unlabelled = example.kind == EXAMPLE_UNLABELLED
        self.counts["unlabelled" if unlabelled else "frauds" if example.fraud else "legitimate"] += 1

    def _learn_silences(self, run: Sequence[Example]) -> None:
        self._changed = True
        teach_silences(self.learner, run)
        self.counts["legitimate"] += len(run)

    def _publish(self, step: Step, out: Outbox) -> None:
        result = self.learner.tick(step.offset)
        if result is None:
            return
        self._changed = True
        if isinstance(result, Broken):
            self.counts["broken"] += 1
            self.broken = result.why
            return
        self.broken = ""
        if isinstance(result, Published):
            self.active_version = result.compiled.version
            self.counts["published"] += 1
        else:
            self.counts["held"] += 1
        held = result.verdict.why if isinstance(result, Held) else None
        out.records([step], CONTROL, [(0, b"model", model_record(result.compiled, held), [])])
