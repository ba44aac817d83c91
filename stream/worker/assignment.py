"""Who works on which partitions: where their state is, evenly, and as before unless something speaks against it.

A function of what the members say of themselves, and of nothing else: who computes it does not matter.

Topics with the same number of partitions and the same subscribers make a *group*: partition p of all of them goes to
one member. Of all assignments in which no member has more than one partition of a group above another, the cheapest
is taken, in this order:

1. as few partitions as possible leave the member that owns them;
2. what moves, or has no owner, goes to those whose state on disk is furthest: the fewest records to apply again;
3. members that have more of other groups get less of this one;
4. else by the members' names.

So the same members with the same state get what they have: the only assignment that moves nothing is that one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stream.worker.fetch import TP


class Claim(NamedTuple):
    """What one member says of itself. It may be stale, or empty: that costs time, and nothing else.

    `term`: of the assignment in which it was given `owned`. Of two who claim one partition the later term is right.
    `held`: up to which offset its disk has the state of a partition; none, or 0: it has nothing.
    """

    topics: frozenset[str]
    term: int = 0
    owned: frozenset[TP] = frozenset()
    held: Mapping[TP, int] = {}


def assign(claims: Mapping[str, Claim], partitions: Mapping[str, int]) -> dict[str, set[TP]]:
    """Each member's partitions, by its name. `partitions`: how many each topic has; a topic without any is left out."""
    assigned: dict[str, set[TP]] = {member: set() for member in claims}
    for topics, members, count in _groups(claims, partitions):
        rows = [_Row(claims, members, [TP(topic, partition) for topic in topics]) for partition in range(count)]
        load = [len(assigned[member]) for member in members]
        for row, at in zip(rows, _place(rows, load), strict=True):
            assigned[members[at]].update(row.tps)
    return assigned


def _groups(claims: Mapping[str, Claim], partitions: Mapping[str, int]) -> Iterable[tuple[list[str], list[str], int]]:
    """Topics, subscribers and number of partitions of each group, the largest first."""
    subscribers: dict[str, list[str]] = defaultdict(list)
    for member in sorted(claims):
        for topic in claims[member].topics:
            subscribers[topic].append(member)
    groups: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for topic in sorted(subscribers):
        if partitions.get(topic, 0) > 0:
            groups[-partitions[topic], tuple(subscribers[topic])].append(topic)
    for (minus_count, members), topics in sorted(groups.items()):
        yield topics, list(members), -minus_count


class _Row:
    """One partition of a group: who owns it, and how far each of `members` is behind the furthest of them."""

    def __init__(self, claims: Mapping[str, Claim], members: Sequence[str], tps: Sequence[TP]) -> None:
        self.tps = tps
        held = [sum(claims[member].held.get(tp, 0) for tp in tps) for member in members]
        self.behind = [max(held) - has for has in held]
        owners = [at for at, member in enumerate(members) if not claims[member].owned.isdisjoint(tps)]
        # A zombie claims what was given to another meanwhile.
        self.owner = max(owners, key=lambda at: (claims[members[at]].term, held[at], -at), default=None)


def _place(rows: Sequence[_Row], load: Sequence[int]) -> list[int]:
    """The member of each row, as its place. `load`: the partitions that each member has of other groups."""
    least, over = divmod(len(rows), len(load))
    # One of a lower kind weighs more than all of the kinds behind it together.
    per_record = 1 + len(rows) * max(load)
    per_move = per_record * (1 + sum(max(row.behind) for row in rows))
    per_extra = per_move * (1 + len(rows))
    costs = [
        [
            per_move * (row.owner is not None and row.owner != at) + per_record * behind
            for at, behind in enumerate(row.behind)
        ]
        for row in rows
    ]
    seats = [[0] * least + [per_extra + has] * (over > 0) for has in load]
    return cheapest(costs, seats)


def cheapest(costs: Sequence[Sequence[int]], seats: Sequence[Sequence[int]]) -> list[int]:
    """For each row a member, so that the sum is smallest: `costs[row][member]`, and `seats[member][k]` for its k-th.

    `seats` ascend, and there are enough of them. By successive shortest paths: each row enters by the cheapest chain
    of rows that give way to one another (Ahuja, Magnanti, Orlin: Network Flows, 1993, ch. 9.7). O(rows² · members)
    with short chains: 256 rows and 32 members take 0.4 s.
    """
    seated: list[list[int]] = [[] for _ in seats]
    for entering, cost in enumerate(costs):
        # price[m]: of having one row more at m; came[m]: which row that would be, and from which member.
        price = list(cost)
        came: list[tuple[int, int]] = [(entering, -1)] * len(seats)
        cheaper = True
        while cheaper:
            cheaper = False
            for giver, given in enumerate(seated):
                if len(given) < len(seats[giver]) and seats[giver][len(given)] == 0:
                    continue  # with a seat that costs nothing nobody needs to give way
                for row in given:
                    moving = price[giver] - costs[row][giver]
                    for taker, there in enumerate(costs[row]):
                        if moving + there < price[taker]:
                            price[taker], came[taker] = moving + there, (row, giver)
                            cheaper = True
        ends = [
            (price[at] + seats[at][len(given)], at) for at, given in enumerate(seated) if len(given) < len(seats[at])
        ]
        at = min(ends)[1]
        while at >= 0:
            row, giver = came[at]
            seated[at].append(row)
            if giver >= 0:
                seated[giver].remove(row)
            at = giver
    places = {row: at for at, given in enumerate(seated) for row in given}
    return [places[row] for row in range(len(costs))]
