"""A claim on the wire, and the leader's answer to those who come with other claims or none."""

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from stream.worker.assignment import Claim
from stream.worker.assignor import NAME, StateAssignor, decode_claim, encode_claim
from stream.worker.fetch import TP

places = st.builds(TP, st.sampled_from(["a", "b"]), st.integers(0, 300))
TOPIC = frozenset({"t"})


class Cluster(ClusterMetadata):
    """What a broker would say of the topics."""

    def __init__(self, **partitions: int) -> None:
        super().__init__()
        self.counts = partitions

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(self.counts[topic])) if topic in self.counts else None


def over_the_wire(told: ConsumerProtocolMemberMetadata) -> ConsumerProtocolMemberMetadata:
    return ConsumerProtocolMemberMetadata.decode(told.encode())


def tps(answer: ConsumerProtocolMemberAssignment) -> set[tuple[str, int]]:
    found = ConsumerProtocolMemberAssignment.decode(answer.encode()).partitions()
    return {(tp.topic, tp.partition) for tp in found}


@given(st.integers(0, 1 << 40), st.frozensets(places), st.dictionaries(places, st.integers(0, 1 << 62)))
def test_a_claim_comes_back_as_it_was_and_equal_claims_are_equal_bytes(
    term: int, owned: frozenset[TP], held: dict[TP, int]
):
    claim = Claim(TOPIC, term, owned, held)
    assert decode_claim(TOPIC, encode_claim(claim)) == claim
    assert encode_claim(claim._replace(held=dict(reversed(held.items())))) == encode_claim(claim)


@given(st.binary(max_size=60))
def test_any_other_bytes_are_a_member_without_claims(user_data: bytes):
    found = decode_claim(TOPIC, user_data)
    assert found.topics == TOPIC
    if encode_claim(found) != user_data and found != Claim(TOPIC):
        assert decode_claim(TOPIC, encode_claim(found)) == found  # other bytes for the same: a map in another order


def test_another_layout_or_nothing_counts_as_no_claim():
    assert decode_claim(TOPIC, None) == decode_claim(TOPIC, b"") == Claim(TOPIC)
    assert decode_claim(TOPIC, b"\x94\x02\x07\x81\xa1t\x91\x00\x80") == Claim(TOPIC)
    assert decode_claim(TOPIC, b"\x94\x01\x07\x81\xa1t\x91\x00\x80") == Claim(TOPIC, 7, frozenset({TP("t", 0)}))


def test_twelve_partitions_of_three_topics_take_less_than_a_kilobyte():
    held = {
        TP(topic, p): 50_000_000 for topic in ("payments", "account-journal", "terminal-journal") for p in range(12)
    }
    assert len(encode_claim(Claim(TOPIC, 1_000, frozenset(held), held))) < 512


def test_the_leader_gives_terms_and_a_member_claims_what_it_was_given():
    first, second = StateAssignor(), StateAssignor()
    first.held = {TP("t", 1): 100}
    cluster = Cluster(t=2)
    answers = first.assign(
        cluster, {"x": over_the_wire(first.metadata({"t"})), "y": over_the_wire(second.metadata({"t"}))}
    )
    assert (tps(answers["x"]), tps(answers["y"])) == ({("t", 1)}, {("t", 0)})
    second.on_assignment(ConsumerProtocolMemberAssignment.decode(answers["y"].encode()))
    told = over_the_wire(second.metadata({"t"}))
    assert decode_claim(told.subscription, told.user_data) == Claim(TOPIC, 1, frozenset({TP("t", 0)}))
    # The next leader may be another, and its terms go on from the highest that it hears of.
    again = first.assign(cluster, {"y": told})
    assert tps(again["y"]) == {("t", 0), ("t", 1)}
    assert decode_claim((), again["y"].user_data).term == 2


def test_a_topic_that_is_not_there_is_given_to_nobody():
    member = StateAssignor()
    answers = member.assign(Cluster(t=1), {"x": over_the_wire(member.metadata({"t", "gone"}))})
    assert tps(answers["x"]) == {("t", 0)}


def test_the_name_is_not_faust_s():
    """Members of both kinds in one group would each compute what the other cannot read: the broker refuses them."""
    assert StateAssignor.name == NAME != "faust"
