"""Payments as columns of numbers, before they become text."""

from collections.abc import Sequence

import msgspec
import numpy as np

from stream.simulate.population import Floats, Ints


class Rows(msgspec.Struct, frozen=True):
    """One entry per payment; all arrays have one length. -1 means absent.

    `at_ms`: UTC epoch. `cents`: EUR. `city`: where the payer is. `device`, `ip`, `counterparty`: numbers of them.
    `kind`: of `world.Kind`. `episode`: number of the fraud episode that the payment belongs to.
    """

    at_ms: Ints
    account: Ints
    terminal: Ints
    category: Ints
    city: Ints
    cents: Ints
    entry: Ints
    three_ds: Ints
    device: Ints
    ip: Ints
    counterparty: Ints
    cvv: Ints
    kind: Ints
    episode: Ints

    def __len__(self) -> int:
        """Number of payments."""
        return len(self.at_ms)

    def take(self, index: Ints) -> "Rows":
        """These payments, in that order."""
        return Rows(**{name: getattr(self, name)[index] for name in Rows.__struct_fields__})

    def replace(self, **columns: Ints) -> "Rows":
        """The same payments with other columns."""
        return msgspec.structs.replace(self, **columns)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All payments of all parts, in order of time; ties keep the order of the parts."""
    joined = Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__struct_fields__})
    return joined.take(np.argsort(joined.at_ms, kind="stable"))


def cents_of(eur: Floats, factor: float = 1.0) -> Ints:
    """Whole cents, at least one.

    >>> cents_of(np.array([1.239, 0.0001]))
    array([124,   1])
    """
    return np.maximum(np.rint(eur * factor * 100.0).astype(np.int64), 1)
