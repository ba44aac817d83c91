"""What a demonstration sends: simulated payments, bad ones and repeats among them, their labels and updates."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from stream.dataset import HOUR_MS, Dataset, Event, write_dataset
from stream.demo.plan import BAD_RATE, OPENING, REPEAT_RATE, Plan
from stream.simulate import Simulation, demo_settings, inject, simulate
from topics.refusals import Cause

SPARE_SHARE = 0.04  # simulated beyond what is sent: their number is random
CLOCK_EVERY_MS = 6 * HOUR_MS


class Feed(Struct, frozen=True):
    """Events in the order in which they are sent.

    `opening`: the first payments. `course`: what follows, updates to the end. `held`: labels and clock records that
    wait until the last payment is sent. `frauds`: ids of all fraudulent payments, reported or not. `bad`: records that
    must be refused, each with its cause.
    """

    opening: list[Event]
    course: list[Event]
    held: list[Event]
    frauds: frozenset[str]
    bad: dict[bytes, Cause]
    repeats: int

    @property
    def labels(self) -> int:
        """Labels in all, without clock records."""
        return sum(event.kind == "label" for part in (self.opening, self.course, self.held) for event in part)


def build_feed(plan: Plan) -> Feed:
    """Simulates, spoils and cuts. The same plan gives the same feed."""
    world = simulate(demo_settings(int(plan.payments * (1.0 + SPARE_SHARE)), seed=plan.seed))
    tables = {name: table for name, table in world.tables().items() if name != "truth"}
    with tempfile.TemporaryDirectory(prefix="fraudstream-demo-data-") as directory:
        paths = write_dataset(Path(directory), tables)
        dataset = Dataset(paths["payments"], paths["labels"], paths["updates"])
        return _arrange(plan, world, dataset.events(clock_every_ms=CLOCK_EVERY_MS))


def _arrange(plan: Plan, world: Simulation, events: Iterator[Event]) -> Feed:
    ids: dict[str, Iterator[str]] = {
        "payment": iter(world.payments["payment_id"].to_pylist()),
        "label": iter(world.labels["payment_id"].to_pylist()),
        "update": iter(world.updates["payment_id"].to_pylist()),
    }
    opening: list[Event] = []
    course: list[Event] = []
    held: list[Event] = []
    bad: dict[bytes, Cause] = {}
    sent: set[str] = set()
    counts: Counter[str] = Counter()
    for injected in inject(events, bad_rate=BAD_RATE, repeat_rate=REPEAT_RATE, seed=plan.seed):
        event = injected.event
        if event.kind == "payment":
            added = injected.cause is not None or injected.repeat
            payment_id = "" if added else next(ids["payment"])
            if counts["payment"] == plan.payments:
                continue
            counts["payment"] += 1
            counts["repeat"] += injected.repeat
            if injected.cause is not None:
                bad[event.value] = injected.cause
            elif not injected.repeat:
                sent.add(payment_id)
        elif event.kind != "clock" and next(ids[event.kind]) not in sent:
            continue
        waits = counts["payment"] >= plan.tail_from and event.kind in ("label", "clock")
        (held if waits else course if counts["payment"] > OPENING else opening).append(event)
    assert counts["payment"] == plan.payments, "more is simulated than is sent"
    return Feed(opening, course, held, frozenset(world.truth["payment_id"].to_pylist()) & sent, bad, counts["repeat"])
