"""Intake reads ids before anybody has looked at them."""

import msgspec
from stage_bench import NOW_MS, SENDER, Collected

from stream.stages.intake import Intake
from stream.stages.keys import partition_of
from stream.stages.stage import Record, Step
from topics.journal import PAYMENTS


def test_an_id_that_is_none_is_routed_as_ever_and_not_remembered() -> None:
    """A hundred thousand ids of 60 kB each would have filled the memory of the worker, and of whoever took over."""
    intake = Intake(source=PAYMENTS, topic_id=SENDER[0], partition=0, partitions=4)
    out = Collected()
    names = [f"{number}{'x' * 60_000}" for number in range(8)]
    before = partition_of.cache_info().currsize
    for offset, name in enumerate(names):
        record = Record(offset, NOW_MS, None, msgspec.json.encode({"account_id": name}), ())
        intake.apply([Step(offset, 0, NOW_MS, SENDER, record)], out)
    assert partition_of.cache_info().currsize == before
    assert [to for _, to, _ in out.items] == [partition_of("default", name, 4) for name in names]
    partition_of.cache_clear()
