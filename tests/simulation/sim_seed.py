"""One seed: a world, a workload, faults, and the checks after it."""

from collections import Counter
from random import Random
from typing import NamedTuple

from sim_checks import check
from sim_small import NEVER, BreakingGam, small_bounds
from sim_workload import workload
from sim_world import World

from stream.stages.wiring import Partitions

PAYMENTS = 120


class Ran(NamedTuple):
    seed: int
    digest: str
    fired: Counter[str]
    happened: Counter[str]


def run_seed(seed: int, *, payments: int = PAYMENTS) -> Ran:
    """Raises what went wrong."""
    rng = Random(seed)
    partitions = Partitions(payments=2, account=rng.choice((1, 2, 3)), terminal=rng.choice((1, 2)), decisions=2)
    breaks_at = rng.randrange(2, 40) if rng.random() < 0.15 else NEVER
    few_entries = rng.random() < 0.15
    late_bins = rng.random() < 0.3
    with small_bounds(breaks_at, few_entries=few_entries, late_bins=late_bins):
        load = workload(rng, payments, partitions.payments)
        world = World(rng, load, partitions, faults=seed % 8 != 0)
        world.run()
        check(world, load.forgetful, Random(seed), exact_windows=not few_entries)
        models = {record.value for _, record in world.log.of("control") if record.key == b"model"}
        held = [value for value in models if b'"why":"held: ' in (value or b"")]
        world.happened["version held"] += len(held)
        world.happened["weights became NaN"] += BreakingGam.broken
        world.happened["model versions"] += len(models)
        world.happened["examples"] += world.log.end(("examples", 0))
        world.happened["decisions"] += len(world.log.of("decisions"))
        return Ran(seed, world.log.digest(), world.fired, world.happened)
