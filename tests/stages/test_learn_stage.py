"""A learner whose weights are no numbers: it says so, and no version of it comes into force."""

import msgspec
import numpy as np
import pytest
from stage_bench import NOW_MS, SENDER, Collected

from stream.features import FEATURES_VERSION, MODEL_FEATURES
from stream.model.learner import MATURITY_SOURCE, RENEWAL_ROWS, SOURCE_DAY_WEIGHT_MIN, Learner, Settings
from stream.stages.control import CONTROL, ControlStage, ModelPayload
from stream.stages.learn import LearnStage
from stream.stages.stage import Record, Step
from stream.stages.state import MemoryStore, State
from topics.control import parse_control, payload_as
from topics.journal import (
    EXAMPLE_CORRECTED,
    EXAMPLE_LABELLED,
    EXAMPLE_MATURED,
    EXAMPLE_UNLABELLED,
    Example,
    Item,
    Marker,
    Tick,
)
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


def labelled(number: int, fraud: bool, *, source: str = "bank", day: int = 0) -> Example:
    row = np.random.default_rng(number).random(len(MODEL_FEATURES)).astype(np.float32).tobytes()
    at_ms = NOW_MS + day * 86_400_000
    pid = number.to_bytes(16, "big")
    return Example(number, 0, EXAMPLE_LABELLED, pid, NOW_MS, at_ms, fraud, 1.0, row, False, source)


def with_bins() -> Bench:
    bench = Bench(MemoryStore())
    bench.feed(*examples(EXAMPLE_UNLABELLED, RENEWAL_ROWS[0], seed=1))
    return bench


def test_a_feed_that_calls_itself_silence_has_a_cap_as_all_have() -> None:
    bench = with_bins()
    bench.feed(*[labelled(number, True, source=MATURITY_SOURCE) for number in range(2_000)])
    assert bench.stage.learner.counts.capped == 2_000 - SOURCE_DAY_WEIGHT_MIN


@pytest.mark.parametrize("restarted", [False, True])
def test_a_correction_of_what_a_cap_kept_from_being_learned_takes_nothing_back(restarted: bool) -> None:
    """Else a payment that nobody would take for fraud is taught as fraud's opposite with all the weight of one."""
    full = [labelled(number, True) for number in range(int(SOURCE_DAY_WEIGHT_MIN))]
    capped = labelled(1_000, True)
    legitimate = labelled(1_000, False, day=1)
    correction = msgspec.structs.replace(legitimate, kind=EXAMPLE_CORRECTED, was_fraud=True, was_weight=1.0)
    corrected, plain = with_bins(), with_bins()
    corrected.feed(*full, capped)
    plain.feed(*full)
    if restarted:
        corrected = corrected.again()
    corrected.feed(correction)
    plain.feed(legitimate)
    assert corrected.stage.learner.counts.capped == 1
    assert corrected.stage.learner.gam.weights.tobytes() == plain.stage.learner.gam.weights.tobytes()
    assert corrected.stage.learner.calibration.state() == plain.stage.learner.calibration.state()


def test_a_correction_that_a_cap_holds_back_leaves_what_was_taught_for_the_next_one() -> None:
    bench, plain = with_bins(), with_bins()
    first = labelled(5_000, True, source="other")
    full = [labelled(number, True) for number in range(int(SOURCE_DAY_WEIGHT_MIN))]
    held_back = msgspec.structs.replace(labelled(5_000, False), kind=EXAMPLE_CORRECTED, was_fraud=True, was_weight=1.0)
    back_again = msgspec.structs.replace(
        labelled(5_000, True, day=1), kind=EXAMPLE_CORRECTED, was_fraud=False, was_weight=1.0
    )
    bench.feed(first, *full, held_back, back_again)
    plain.feed(first, *full, msgspec.structs.replace(back_again, was_fraud=True))
    assert bench.stage.learner.gam.weights.tobytes() == plain.stage.learner.gam.weights.tobytes()
