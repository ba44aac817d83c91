"""One simulated world, from a seed to its four tables."""

from typing import Any, TypeAlias

import msgspec
import numpy as np

from stream.simulate.frauds import with_frauds
from stream.simulate.habits import legitimate
from stream.simulate.outcomes import make_labels, make_updates
from stream.simulate.population import make_accounts, make_terminals
from stream.simulate.settings import DAY_MS, SHORT_DELAY, SimulationSettings
from stream.simulate.tables import labels_table, payment_ids, payments_table, truth_table, updates_table

Table: TypeAlias = Any  # pyarrow ships no types


class Simulation(msgspec.Struct, frozen=True):
    """pyarrow tables in the dataset format; `truth` holds the frauds, also those that nobody ever reports."""

    payments: Table
    labels: Table
    updates: Table
    truth: Table

    def tables(self) -> dict[str, Table]:
        """The tables by name, as `stream.dataset.write_dataset` takes them."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def simulate(settings: SimulationSettings) -> Simulation:
    """Payments of accounts with habits, frauds among them, and what becomes of both. Seeded: no clock, no other source.

    The same settings give the same tables on one platform with one numpy; `exp` and `log` may differ elsewhere in the
    last bit. All payments are held in memory, about 1 kB each.

    >>> world = simulate(SimulationSettings(accounts=50, terminals=40, days=7, payments_per_day=100))
    >>> world.payments.num_rows > 600
    True
    """
    # A stream of its own for each part, so that a change to one leaves the others' draws as they were.
    places, people, life, crime, updates, labels = (
        np.random.Generator(np.random.PCG64(seed)) for seed in np.random.SeedSequence(settings.seed).spawn(6)
    )
    terminals = make_terminals(settings, places)
    accounts = make_accounts(settings, terminals, people)
    expected = settings.payments_per_day * settings.days * (1.0 - settings.fraud_rate)
    count = int(life.poisson(expected))
    rows = with_frauds(settings, accounts, terminals, legitimate(settings, accounts, terminals, count, life), crime)
    happened, stopped = make_updates(rows, updates)
    observed = make_labels(rows, accounts, stopped, settings.label_delay, labels)
    ids = payment_ids(settings, len(rows))
    return Simulation(
        payments=payments_table(settings, rows, accounts, terminals, ids),
        labels=labels_table(rows, observed, ids),
        updates=updates_table(rows, happened, ids),
        truth=truth_table(rows, ids),
    )


def demo_settings(payments: int, *, seed: int = 1) -> SimulationSettings:
    """About `payments` payments over 75 days, with chargebacks after 1 to 14 days: the truth comes out within them.

    The default horizon of maturity (45 d) would leave most of them unlearned: set it to `DEMO_MATURITY_MS`.
    """
    days = 75
    return SimulationSettings(
        seed=seed,
        accounts=max(20, payments // 50),
        terminals=max(20, payments // 100),
        days=days,
        payments_per_day=payments / days,
        fraud_rate=0.02,
        label_delay=SHORT_DELAY,
    )


# Every short label has come by then.
DEMO_MATURITY_MS = int(SHORT_DELAY.max_days) * DAY_MS
