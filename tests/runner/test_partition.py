"""The runner by itself, over a toy stage that remembers what it was given and sends each item on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.runner.errors import ForeignState, GapInJournal, StateAheadOfLog, StateBehindLog, StepFailed, Unreadable
from stream.runner.partition import (
    PartitionRunner,
    Reseek,
    Send,
    commit_metadata,
    suppress_below,
)
from stream.stages.stage import Journal, Outbox, Record, Step, origin_n
from stream.stages.state import Changes, MemoryStore, State
from topics.journal import FIRST_PREV, Block, Raw, decode_block, encode_block, tick_block

SENDER = b"s" * 16
JOURNAL = Journal("account-journal", b"j" * 16, 0)
POISON = b"poison"


@dataclass
class Toy:
    """Appends each item's value to the state, sends it on to a journal, and answers it."""

    state: State
    skipped: list[int] = field(default_factory=list)
    calls: int = 0

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        self.calls += 1
        for step in steps:
            item = step.item
            value = item.value if isinstance(item, Raw | Record) else b"tick"
            if value == POISON:
                raise RuntimeError("a bug")
            self._append(value or b"")
            out.journal(step, "terminal-journal", 0, Raw(step.offset, origin_n(step, 0), 0, 0, value or b""))
            out.records([step], "decisions", [(0, None, value or b"", [])])

    def _append(self, value: bytes) -> None:
        self.state.put(b"K", (self.state.get(b"K") or b"") + value + b",")

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        for step in steps:
            self.skipped.append(step.offset)
            out.records([step], "decisions", [(0, None, b"refused", [])])

    def settle(self) -> None:
        pass


def build(store: MemoryStore | None = None, **options: object) -> tuple[PartitionRunner, Toy]:
    state = State(store or MemoryStore())
    toy = Toy(state)
    return PartitionRunner(JOURNAL, toy, state, start_offset=0, **options), toy  # type: ignore[arg-type]


def seen(toy: Toy) -> list[bytes]:
    return (toy.state.get(b"K") or b"").split(b",")[:-1]


def raw(offset: int, n: int = 0) -> Raw:
    return Raw(offset, n, 0, 0, b"%d.%d" % (offset, n))


def block(items: list[Raw], prev: tuple[int, int]) -> bytes:
    return encode_block(Block(sender=SENDER, partition=0, prev=prev, items=list(items)))


def records(values: Sequence[bytes], first: int = 0) -> list[Record]:
    return [Record(first + i, 0, None, value) for i, value in enumerate(values)]


def applied(runner: PartitionRunner, batch: Sequence[Record]) -> list[Send]:
    sends = runner.step(batch)
    assert not isinstance(sends, Reseek)
    return sends


def acknowledge(runner: PartitionRunner, sends: Sequence[Send]) -> None:
    for send in sends:
        runner.acknowledged(send.generation)


# ---- origins and the chain ----


def test_104_and_105_without_103_are_dropped_and_counted_and_a_resend_applies_once() -> None:
    runner, toy = build()
    applied(runner, records([block([raw(102)], FIRST_PREV), block([raw(104)], (103, 0)), block([raw(105)], (104, 0))]))
    assert seen(toy) == [b"102.0"]
    assert runner.gap_items == 2
    assert runner.open_gaps == {(SENDER, 0): (102, 0)}
    resent = [block([raw(103), raw(104)], (102, 0)), block([raw(105)], (104, 0)), block([raw(105)], (104, 0))]
    applied(runner, records(resent, 3))
    assert seen(toy) == [b"102.0", b"103.0", b"104.0", b"105.0"]
    assert runner.open_gaps == {}
    assert runner.dropped_items == 1


def test_outputs_of_one_step_are_told_apart_by_n() -> None:
    runner, toy = build()
    applied(runner, records([block([raw(7, 0), raw(7, 1), raw(7, 256)], FIRST_PREV), block([raw(7, 1)], (7, 0))]))
    assert seen(toy) == [b"7.0", b"7.1", b"7.256"]


def test_ticks_have_no_chain() -> None:
    runner, toy = build()
    applied(runner, records([tick_block(1), tick_block(1)]))
    assert seen(toy) == [b"tick", b"tick"]


@settings(deadline=None, max_examples=200)
@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=12), st.randoms())
def test_regrouped_resends_and_lost_blocks_are_harmless(chosen: set[tuple[int, int]], rng: Random) -> None:
    """A sender starts again and again from somewhere below what it knows to have arrived, with other groups."""
    origins = sorted(chosen)
    log: list[bytes] = []
    arrived = 0
    while arrived < len(origins):
        at = rng.randint(0, arrived)  # a restart repeats what was acknowledged since its checkpoint
        contiguous = True
        while at < len(origins):
            group = [raw(*origin) for origin in origins[at : at + rng.randint(1, 4)]]
            if len(log) > 12 or rng.random() < 0.5:
                log.append(block(group, origins[at - 1] if at else FIRST_PREV))
                if contiguous:
                    arrived = max(arrived, at + len(group))
            elif at + len(group) > arrived:
                contiguous = False
            at += len(group)
    runner, toy = build()
    start = 0
    while start < len(log):
        size = rng.randint(1, 5)
        applied(runner, records(log[start : start + size], start))
        start += size
    assert seen(toy) == [b"%d.%d" % origin for origin in origins]
    assert not runner.open_gaps


def test_a_receiver_finds_its_own_chain_in_what_it_sends() -> None:
    runner, _ = build()
    sends = applied(runner, records([block([raw(1), raw(2)], FIRST_PREV), block([raw(3)], (2, 0))]))
    blocks = [decode_block(send.value) for send in sends if send.topic == "terminal-journal"]
    assert [b.prev for b in blocks] == [FIRST_PREV, (0, 256)]
    assert [[(i.offset, i.n) for i in b.items] for b in blocks] == [[(0, 0), (0, 256)], [(1, 0)]]


# ---- what is fetched ----


def test_fetches_of_another_epoch_and_records_below_the_next_are_dropped() -> None:
    runner, toy = build()
    log = records([block([raw(i)], (i - 1, 0) if i else FIRST_PREV) for i in range(4)])
    applied(runner, log[:2])
    runner.epoch = 1
    assert runner.step(log[2:], 0) == []
    assert runner.next_offset == 2
    assert runner.step(log, 1)
    assert runner.step(log, 1) == []
    assert seen(toy) == [b"0.0", b"1.0", b"2.0", b"3.0"]


@pytest.mark.parametrize("fetched", [[2, 3], [0, 2, 3]])
def test_a_gap_in_a_journal_is_looked_at_twice_and_then_stops_the_partition(fetched: list[int]) -> None:
    runner, toy = build()
    log = records([block([raw(i)], (i - 1, 0) if i else FIRST_PREV) for i in range(4)])
    holed = [log[i] for i in fetched]
    assert runner.step(holed) == Reseek(0)
    with pytest.raises(GapInJournal):
        runner.step(holed)
    assert seen(toy) == []
    assert runner.next_offset == 0


def test_a_gap_that_was_a_stale_fetch_is_filled_by_the_second_look() -> None:
    runner, toy = build()
    log = records([block([raw(i)], (i - 1, 0) if i else FIRST_PREV) for i in range(4)])
    assert runner.step(log[2:]) == Reseek(0)
    assert runner.step(log[3:]) == Reseek(0)  # another gap: it is looked at twice as well
    assert runner.step(log)
    assert len(seen(toy)) == 4


def test_a_foreign_topic_may_have_holes() -> None:
    runner, toy = build(internal=False)
    log = [Record(offset, 0, None, b"v%d" % offset) for offset in (2, 3, 5)]
    assert runner.step(log) == Reseek(0)
    assert runner.step(log[1:]) == Reseek(0)  # not the same gap: the fetch was stale, nothing is missing
    assert applied(runner, [Record(0, 0, None, b"v0"), *log])
    assert seen(toy) == [b"v0", b"v2", b"v3", b"v5"]
    assert runner.next_offset == 6


def test_foreign_steps_share_blocks_only_where_they_gather() -> None:
    log = [Record(offset, 0, None, b"v") for offset in range(3)]
    apart, _ = build(internal=False)
    together, _ = build(internal=False, gather=True)
    assert [send.topic for send in applied(apart, log)].count("terminal-journal") == 3
    assert [send.topic for send in applied(together, log)].count("terminal-journal") == 1


# ---- what stops a partition ----


def test_an_unreadable_block_names_itself_and_leaves_nothing_applied() -> None:
    runner, toy = build()
    log = records([block([raw(0)], FIRST_PREV), b"\xc1nonsense"])
    with pytest.raises(Unreadable) as caught:
        runner.step(log)
    assert (caught.value.first, caught.value.last, caught.value.offset) == (0, 1, 1)
    assert seen(toy) == []
    applied(runner, log[:1])
    with pytest.raises(Unreadable, match="fraud skip account-journal 0 1 --by WHO --why WHY"):
        runner.step(log[1:])


def test_a_block_of_a_later_layout_is_unreadable() -> None:
    later = encode_block(Block(layout=3, sender=SENDER, partition=0, prev=FIRST_PREV, items=[]))
    with pytest.raises(Unreadable, match="layout 3"):
        build()[0].step(records([later]))


def test_a_failed_step_is_named_and_spoils_the_runner_until_it_is_built_anew() -> None:
    store = MemoryStore()
    runner, _ = build(store)
    poisoned = Raw(1, 0, 0, 0, POISON)
    log = records([block([raw(0)], FIRST_PREV), block([poisoned], (0, 0)), block([raw(2)], (1, 0))])
    with pytest.raises(StepFailed) as caught:
        runner.step(log)
    assert (caught.value.first, caught.value.last) == (0, 2)
    with pytest.raises(AssertionError):
        runner.begin_checkpoint()
    careful, _ = build(store)
    applied(careful, log[:1])
    with pytest.raises(StepFailed) as caught:
        careful.step(log[1:2])
    assert (caught.value.first, caught.value.last) == (1, 1)


def test_a_skipped_record_advances_origins_and_is_answered_as_refused() -> None:
    runner, toy = build(skips={1})
    poisoned = Raw(1, 0, 0, 0, POISON)
    log = records([block([raw(0)], FIRST_PREV), block([poisoned], (0, 0)), block([raw(2)], (1, 0))])
    sends = applied(runner, log)
    assert seen(toy) == [b"0.0", b"2.0"]
    assert toy.skipped == [1]
    assert [send.value for send in sends if send.topic == "decisions"] == [b"0.0", b"refused", b"2.0"]
    assert runner.gap_items == 0


def test_an_unreadable_record_can_be_skipped() -> None:
    runner, toy = build(skips={0})
    applied(runner, records([b"nonsense", block([raw(0)], FIRST_PREV)]))
    assert seen(toy) == [b"0.0"]


# ---- checkpoints ----


def test_a_checkpoint_is_written_when_all_outputs_up_to_it_are_acknowledged_and_no_later_one_is_in_it() -> None:
    store = MemoryStore()
    runner, toy = build(store)
    log = records([block([raw(i)], (i - 1, 0) if i else FIRST_PREV) for i in range(3)])
    first = applied(runner, log[:1])
    checkpoint = runner.begin_checkpoint()
    later = applied(runner, log[1:])
    assert not runner.may_write(checkpoint)
    with pytest.raises(AssertionError):
        runner.write(checkpoint, store.write)
    acknowledge(runner, first)
    assert runner.may_write(checkpoint)
    assert runner.unacknowledged == len(later)
    runner.write(checkpoint, store.write)
    assert runner.commit_point(checkpoint) == (1, commit_metadata(JOURNAL.topic_id, 1))
    assert store.get_many([b"K"]) == [b"0.0,"]
    assert seen(toy) == [b"0.0", b"1.0", b"2.0"]
    again, other = build(store)
    assert again.next_offset == 1
    resent = applied(again, log[1:])
    assert [send[:5] for send in resent] == [send[:5] for send in later]
    assert seen(other) == seen(toy)


def test_a_checkpoint_that_is_not_written_yet_forbids_the_next() -> None:
    runner, _ = build()
    runner.begin_checkpoint()
    with pytest.raises(AssertionError):
        runner.begin_checkpoint()


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(["step", "begin", "ack", "write", "crash"]), max_size=60), st.randoms())
def test_any_order_of_steps_checkpoints_and_crashes_ends_in_one_state(moves: list[str], rng: Random) -> None:
    log = records([block([raw(i, 0), raw(i, 1)], (i - 1, 1) if i else FIRST_PREV) for i in range(12)])
    store = MemoryStore()
    runner, toy = build(store)
    waiting: list[Send] = []
    sent: dict[tuple[str, bytes], None] = {}
    checkpoint = None
    for move in [*moves, "crash", *["step"] * 12]:
        if move == "step" and runner.next_offset < len(log):
            size = rng.randint(1, 4)
            sends = applied(runner, log[runner.next_offset : runner.next_offset + size])
            waiting += sends
            sent.update(((send.topic, send.value), None) for send in sends)
        elif move == "begin" and checkpoint is None:
            checkpoint = runner.begin_checkpoint()
        elif move == "ack" and waiting:
            runner.acknowledged(waiting.pop(0).generation)
        elif move == "write" and checkpoint is not None and runner.may_write(checkpoint):
            runner.write(checkpoint, store.write)
            checkpoint = None
        elif move == "crash":
            runner, toy = build(store)
            waiting, checkpoint = [], None
    assert seen(toy) == [b"%d.%d" % (i, n) for i in range(12) for n in range(2)]
    assert len(sent) == 12 + 24  # a resend has the same bytes: a step's outputs never depend on where it was cut


def test_state_of_another_topic_or_partition_is_refused() -> None:
    store = MemoryStore()
    runner, _ = build(store)
    runner.write(runner.begin_checkpoint(), store.write)
    for other in (JOURNAL._replace(topic_id=b"x" * 16), JOURNAL._replace(partition=1)):
        state = State(store)
        with pytest.raises(ForeignState, match=r"another --prefix.*keep these topics as evidence"):
            PartitionRunner(other, Toy(state), state, start_offset=0)


def test_state_ahead_of_the_log_or_behind_it_is_refused() -> None:
    runner, _ = build()
    applied(runner, records([block([raw(i)], (i - 1, 0) if i else FIRST_PREV) for i in range(3)]))
    runner.check_log(0, 3)
    runner.check_log(3, 9)
    with pytest.raises(StateAheadOfLog):
        runner.check_log(0, 2)
    with pytest.raises(StateBehindLog, match=r"newer state directory or snapshot.*another --prefix"):
        runner.check_log(4, 9)


# ---- suppression ----


@pytest.mark.parametrize(
    ("metadata", "below"),
    [
        (commit_metadata(b"t" * 16, 7), 7),
        ("", 0),
        (commit_metadata(b"t" * 16, 6), 0),
        (commit_metadata(b"u" * 16, 7), 0),
        ("1::7", 0),
    ],
)
def test_answers_are_suppressed_on_our_own_word_only(metadata: str, below: int) -> None:
    assert suppress_below(b"t" * 16, 7, metadata) == below


def test_answers_below_the_groups_offset_are_not_sent_again_and_journal_records_are() -> None:
    runner, _ = build(suppress_below=2)
    log = records([block([raw(i)], (i - 1, 0) if i else FIRST_PREV) for i in range(3)])
    sends = applied(runner, log)
    assert [send.value for send in sends if send.topic == "decisions"] == [b"2.0"]
    assert len([send for send in sends if send.topic == "terminal-journal"]) == 3
    assert runner.suppressed == 2
    assert runner.unacknowledged == len(sends)


def test_the_writes_of_a_checkpoint_are_one_batch() -> None:
    store = MemoryStore()
    runner, _ = build(store)
    acknowledge(runner, applied(runner, records([block([raw(0)], FIRST_PREV)])))
    written: list[Changes] = []
    runner.write(runner.begin_checkpoint(), written.append)
    assert len(written) == 1
    assert set(written[0].writes) == {b"K", b"\x00meta"}


def test_a_block_holds_a_bounded_number_of_items() -> None:
    items = [raw(0, n) for n in range(1_001)]
    runner, _ = build()
    sends = applied(runner, records([block(items, FIRST_PREV)]))
    sizes = [len(decode_block(send.value).items) for send in sends if send.topic == "terminal-journal"]
    assert sizes == [500, 500, 1]
