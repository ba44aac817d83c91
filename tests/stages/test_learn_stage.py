"""A learner whose weights are no numbers: it says so, and no version of it comes into force."""

import numpy as np
from stage_bench import NOW_MS, SENDER, Collected

from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.learner import Learner, Settings
from stream.stages.control import CONTROL, ControlStage, ModelPayload
from stream.stages.learn import LearnStage
from stream.stages.stage import Record, Step
from stream.stages.state import MemoryStore, State
from topics.control import parse_control, payload_as
from topics.journal import EXAMPLE_LABELLED, EXAMPLE_MATURED, EXAMPLE_UNLABELLED, Example, Item, Marker, Tick
from topics.refusals import Refusal


def fresh() -> Learner:
    return Learner(Settings(features=len(MODEL_FEATURES), features_version=FEATURES_VERSION))


class Bench:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.state = State(store)
        self.stage = LearnStage(self.state, fresh)
        self.offset = 0

    def feed(self, *items: Item) -> list[bytes]:
        out = Collected()
        self.stage.apply([Step(self.offset + i, 0, NOW_MS, SENDER, item) for i, item in enumerate(items)], out)
        self.offset += len(items)
        return [value for topic, _, _, value, _ in out.kept if topic == CONTROL]

    def again(self) -> "Bench":
        self.stage.settle()
        self.store.write(self.state.freeze())
        self.state.written()
        other = Bench(self.store)
        other.offset = self.offset
        return other


def examples(kind: int, count: int, *, seed: int) -> list[Item]:
    rows = np.random.default_rng(seed).random((count, len(MODEL_FEATURES))).astype(np.float32)
    pids = [i.to_bytes(16, "big") for i in range(count)]
    return [
        Example(i, 0, kind, pids[i], NOW_MS, NOW_MS, i % 3 == 0, 1.0, rows[i].tobytes(), False, "bank")
        for i in range(count)
    ]


def passed_on(records: list[bytes]) -> list[Marker]:
    out = Collected()
    stage = ControlStage(State(MemoryStore()), destinations={"terminal-journal": 1})
    for i, value in enumerate(records):
        stage.apply([Step(i, 0, NOW_MS, SENDER, Record(i, NOW_MS, b"model", value))], out)
    return out.of(Marker)


def why_held(value: bytes) -> str | None:
    record = parse_control(value)
    assert not isinstance(record, Refusal)
    return payload_as(record, ModelPayload).held


def test_weights_that_are_no_numbers_are_said_and_never_published():
    bench = Bench(MemoryStore())
    bench.feed(*examples(EXAMPLE_UNLABELLED, 1_200, seed=1))
    good = bench.feed(*examples(EXAMPLE_LABELLED, 60, seed=2), Tick(bench.offset, 0, NOW_MS))
    assert [why_held(value) for value in good] == [None]
    assert bench.stage.broken == ""
    version = bench.stage.active_version

    bench.stage.learner.gam.weights[:] = bench.stage.learner.gam.mean[:] = np.nan
    bench = bench.again()  # the damage is in the state, too
    bad = bench.feed(*examples(EXAMPLE_LABELLED, 60, seed=3), Tick(bench.offset, 0, NOW_MS))
    assert bad == []
    assert "not a finite number" in bench.stage.broken
    assert bench.stage.active_version == version

    anew = bench.feed(*examples(EXAMPLE_LABELLED, 60, seed=4), Tick(bench.offset, 0, NOW_MS))
    assert len(anew) == 1, "it is learned anew"
    assert bench.stage.broken == ""
    assert len(passed_on(good + anew)) == sum(why_held(value) is None for value in good + anew)


def test_a_run_of_silences_teaches_what_each_of_them_would():
    """Frauds among them, and examples without a label, cut the run."""
    first = [*examples(EXAMPLE_UNLABELLED, 600, seed=1), *examples(EXAMPLE_LABELLED, 60, seed=2)]
    then = examples(EXAMPLE_MATURED, 90, seed=3)
    whole, one_by_one = Bench(MemoryStore()), Bench(MemoryStore())
    whole.feed(*first, *then)
    for item in [*first, *then]:
        one_by_one.feed(item)
    assert whole.stage.learner.cuts is not None
    assert whole.stage.learner.to_bytes() == one_by_one.stage.learner.to_bytes()
    assert whole.stage.counts == one_by_one.stage.counts
