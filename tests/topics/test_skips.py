from stream.replay.log import local_topic_id
from topics.control import Skip
from topics.skips import Skips, record_of

TOPIC_ID = local_topic_id("terminal-journal")


def place(offset: int, partition: int = 0) -> Skip:
    return Skip(topic_id=TOPIC_ID.hex(), partition=partition, offset=offset)


def test_a_skip_counts_only_after_a_partition_has_stopped_at_that_very_record():
    skips = Skips()
    assert skips.take(record_of("skip", place(7))) is None, "somebody may have answered from it"
    assert skips.take(record_of("stopped", place(7, partition=1))) is None
    assert skips.take(record_of("stopped", place(8))) is None
    assert skips.take(record_of("skip", place(7))) is None
    assert skips.of(TOPIC_ID, 0) == set()
    skips.take(record_of("stopped", place(7)))
    assert skips.of(TOPIC_ID, 0) == set(), "the skip came before: it was about a record that could be applied"
    assert skips.take(record_of("skip", place(7))) == place(7)
    assert skips.of(TOPIC_ID, 0) == {7}
    assert skips.has_stopped(TOPIC_ID, 0, 8)
    assert not skips.has_stopped(TOPIC_ID, 0, 9)


def test_a_topic_id_may_be_spelt_as_brokers_spell_it():
    spelt = f"{TOPIC_ID.hex()[:8]}-{TOPIC_ID.hex()[8:]}"
    skips = Skips()
    for kind in ("stopped", "skip"):
        skips.take(record_of(kind, Skip(topic_id=spelt, partition=0, offset=3)))
    assert skips.of(TOPIC_ID, 0) == {3}
