"""Who works on what: each partition once, evenly, near its state, and as before."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.worker.assignment import Claim, assign, cheapest
from stream.worker.fetch import TP

TOPICS = {"payments": 6, "account": 6, "terminal": 4, "labels": 1, "control": 1}
ALL = frozenset(TOPICS)
PLACES = [TP(topic, partition) for topic, count in TOPICS.items() for partition in range(count)]

claims = st.builds(
    Claim,
    st.just(ALL),
    st.integers(0, 3),
    st.frozensets(st.sampled_from(PLACES)),
    st.dictionaries(st.sampled_from(PLACES), st.integers(0, 1_000)),
)
groups = st.dictionaries(st.sampled_from("abcdefgh"), claims, min_size=1)


def per_topic(tps: set[TP]) -> Counter[str]:
    return Counter(tp.topic for tp in tps)


def of_payments(tps: set[TP]) -> set[int]:
    return {tp.partition for tp in tps if tp.topic == "payments"}


@given(groups)
def test_each_partition_goes_to_one_member_and_none_has_two_more_than_another(members: dict[str, Claim]):
    assigned = assign(members, TOPICS)
    assert sorted(tp for tps in assigned.values() for tp in tps) == sorted(PLACES)
    for topic in TOPICS:
        counts = [per_topic(assigned[member])[topic] for member in members]
        assert max(counts) - min(counts) <= 1


@given(groups)
def test_topics_with_as_many_partitions_are_shared_alike(members: dict[str, Claim]):
    for tps in assign(members, TOPICS).values():
        assert {tp.partition for tp in tps if tp.topic == "account"} == of_payments(tps)
        assert (TP("labels", 0) in tps) == (TP("control", 0) in tps)


@given(groups)
def test_who_has_a_fair_share_keeps_it_whatever_the_others_hold(members: dict[str, Claim]):
    first = assign(members, TOPICS)
    owning = {
        member: claim._replace(term=9, owned=frozenset(first[member]), held={}) for member, claim in members.items()
    }
    assert assign(owning, TOPICS) == first
    # Nor does what is on the disks make it flap.
    told = {member: claim._replace(held=members[member].held) for member, claim in owning.items()}
    assert assign(told, TOPICS) == first


@given(groups)
def test_the_order_in_which_members_are_heard_does_not_matter(members: dict[str, Claim]):
    assert assign(dict(reversed(members.items())), TOPICS) == assign(members, TOPICS)


@given(groups, claims)
def test_of_a_joiner_nobody_gets_what_was_another_member_s(members: dict[str, Claim], joiner: Claim):
    before = assign(members, TOPICS)
    owning = {m: claim._replace(term=9, owned=frozenset(before[m])) for m, claim in members.items()}
    after = assign({**owning, "z": joiner._replace(term=0)}, TOPICS)
    for member in members:
        assert after[member] <= before[member]


@given(groups.filter(lambda members: len(members) > 1))
def test_of_a_leaver_the_others_keep_theirs(members: dict[str, Claim]):
    before = assign(members, TOPICS)
    leaver, *rest = sorted(members)
    owning = {m: members[m]._replace(term=9, owned=frozenset(before[m])) for m in rest}
    after = assign(owning, TOPICS)
    moved = [tp for member in rest for tp in before[member] - after[member]]
    # Balance asks for nothing of those who stay: all get more.
    assert not moved, (leaver, moved)


@given(st.permutations(range(6)), st.permutations("abc"))
def test_with_no_owners_state_goes_home(order: list[int], names: list[str]):
    home = {name: set(order[2 * at : 2 * at + 2]) for at, name in enumerate(names)}
    members = {
        name: Claim(frozenset({"payments"}), held={TP("payments", p): 10 for p in home[name]}) for name in sorted(names)
    }
    assert {name: of_payments(tps) for name, tps in assign(members, TOPICS).items()} == home


@given(st.frozensets(st.sampled_from(range(6)), min_size=3, max_size=3))
def test_a_killed_worker_gets_back_what_it_holds(mine: frozenset[int]):
    """The one that took over has begun all from 0; the killed one comes back under a new name."""
    everything = frozenset(TP("payments", p) for p in range(6))
    survivor = Claim(
        frozenset({"payments"}), 5, everything, {tp: 900 if tp.partition not in mine else 20 for tp in everything}
    )
    killed = Claim(frozenset({"payments"}), held={TP("payments", p): 850 for p in mine})
    for name in ("a", "z"):
        assert of_payments(assign({"m": survivor, name: killed}, TOPICS)[name]) == mine


def test_state_is_weighed_over_all_topics_of_a_group():
    held_a = {TP("payments", 0): 100, TP("account", 1): 500}
    held_b = {TP("payments", 0): 110, TP("payments", 1): 10}
    partitions = {"payments": 2, "account": 2}
    subscribed = frozenset(partitions)
    assigned = assign({"a": Claim(subscribed, held=held_a), "b": Claim(subscribed, held=held_b)}, partitions)
    assert of_payments(assigned["a"]) == {1}


def test_of_two_who_claim_a_partition_the_later_term_is_right():
    one = frozenset({TP("labels", 0)})
    zombie = Claim(frozenset({"labels"}), 4, one, {TP("labels", 0): 100})
    owner = Claim(frozenset({"labels"}), 5, one)
    assert assign({"a": zombie, "b": owner}, TOPICS) == {"a": set(), "b": set(one)}
    # Of one term: whose state is further; then by name.
    assert assign({"a": owner, "b": zombie._replace(term=5)}, TOPICS) == {"a": set(), "b": set(one)}
    assert assign({"a": owner, "b": owner}, TOPICS) == {"a": set(one), "b": set()}


def test_what_is_over_goes_to_those_who_have_less_of_other_groups():
    members = {name: Claim(ALL) for name in "abcde"}
    sizes = sorted(len(tps) for tps in assign(members, {"payments": 6, "terminal": 3, "labels": 1}).values())
    assert sizes == [2, 2, 2, 2, 2]


def test_only_subscribers_get_a_topic_and_a_topic_that_is_not_there_goes_to_nobody():
    members = {"a": Claim(frozenset({"payments", "gone"})), "b": Claim(frozenset({"payments", "labels"}))}
    assigned = assign(members, TOPICS)
    assert per_topic(assigned["a"]) == {"payments": 3}
    assert per_topic(assigned["b"]) == {"payments": 3, "labels": 1}


@given(st.data())
def test_the_cheapest_is_thecheapest(data: st.DataObject):
    rows, members = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    costs = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=members, max_size=members), min_size=rows, max_size=rows)
    )
    seat = st.lists(st.sampled_from([0, 0, 3, 20]), min_size=rows, max_size=rows).map(sorted)
    seats = data.draw(st.lists(seat, min_size=members, max_size=members))

    def cost(places: tuple[int, ...]) -> int:
        counts = Counter(places)
        taken = sum(sum(seats[at][:count]) for at, count in counts.items())
        return taken + sum(costs[row][at] for row, at in enumerate(places))

    best = min(cost(places) for places in itertools.product(range(members), repeat=rows))
    assert cost(tuple(cheapest(costs, seats))) == best


@pytest.mark.timeout(20)
def test_a_large_group_is_assigned_while_it_waits():
    partitions = {"payments": 256, "account": 256}
    held = {f"m{at}": {TP("payments", (7 * at + p) % 256): p * p for p in range(100)} for at in range(32)}
    members = {name: Claim(frozenset(partitions), held=offsets) for name, offsets in held.items()}
    assert {len(tps) for tps in assign(members, partitions).values()} == {16}
