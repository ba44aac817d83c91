import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the suite's modules lie beside their tests

from chaos_deployment import Deployment, Watcher
from chaos_report import evidence_of, table


def watched() -> Watcher:
    watcher = Watcher({}, "", bytes(16))
    watcher.expected[0] = [0, 1]
    return watcher


def answer(watcher: Watcher, *offsets: int) -> None:
    watcher._answered[0].update(offsets)
    watcher._advance()


def test_a_moment_is_over_when_all_that_was_sent_by_then_is_answered():
    watcher = watched()
    moment = watcher.mark("killed", since_s=time.monotonic() - 5.0)
    watcher.expected[0].append(2)  # sent later: not waited for
    answer(watcher, 0, 2)
    assert moment.answered_s is None
    answer(watcher, 1)
    assert moment.answered_s is not None
    assert 5.0 <= moment.answered_s - moment.at_s < 6.0


def test_recovery_is_never_negative_even_when_all_was_answered_already():
    watcher = watched()
    answer(watcher, 0, 1)
    moment = watcher.mark("nothing waits")
    answer(watcher)
    assert moment.answered_s is not None
    assert moment.answered_s >= moment.at_s
    deployment = object.__new__(Deployment)
    deployment.watcher = watcher
    assert deployment.recovery_seconds() >= 0.0


def test_a_run_whose_recovery_was_measured_wrongly_counts_without_it():
    run = {"fault": "kill", "seed": 1, "payments": 10, "missing": 0, "conflicting": 0, "failed": []}
    runs = [{**run, "recovery_seconds": 7.5}, {**run, "recovery_seconds": None}]
    row = next(line for line in table(runs).splitlines() if line.startswith("| kill |"))
    assert row.startswith("| kill | 2 | 0 | 20 | 10 | 0 | 0 |")
    assert row.endswith("| 7.5 |")


def test_a_process_that_stood_still_has_not_waited():
    watcher = watched()
    moment = watcher.mark("killed")
    watcher._looked_s -= 300.0  # as if it had been stopped
    watcher.look()
    answer(watcher, 0, 1)
    assert moment.answered_s is not None
    assert moment.answered_s - moment.at_s <= 2.0


def test_it_goes_on_when_each_partition_has_a_new_answer_by_the_brokers_clock():
    watcher = watched()
    watcher.take(0, 0, 0, 1)
    watcher.take(1, 0, 1, 1)
    moment = watcher.mark("the broker is back")
    watcher.take(0, 1, 0, moment.at_ms)  # on the topic since before, and read only now
    watcher.take(1, 0, 1, moment.at_ms + 100)  # answered before, and once more
    assert moment.silent == {("payments", 0), ("decisions", 0), ("payments", 1), ("decisions", 1)}
    watcher.take(0, 2, 0, moment.at_ms + 1_000)
    watcher.take(1, 1, 0, moment.at_ms + 2_000)
    assert moment.went_on_after_s is None  # not one partition of `decisions`
    watcher.take(0, 3, 1, moment.at_ms + 7_500)
    assert moment.went_on_after_s == 7.5
    watcher.take(0, 4, 1, moment.at_ms + 9_000)
    assert moment.went_on_after_s == 7.5


def test_of_several_runs_counts_are_added_and_the_longest_time_is_told():
    runs = [
        {"evidence": {"kills": 2, "goes_on_after_s_max": 7.5}},
        {"evidence": {"kills": 3, "goes_on_after_s_max": 1}},
    ]
    assert evidence_of(runs) == "kills 5, goes on after s max 7.5"
