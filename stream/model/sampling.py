"""Which legitimate payments are learned from: all that looked like fraud when they were decided, and of the rest a
share chosen by hash, with a weight that makes up for the others.

The choice depends on what the payment was given then, never on what came later, so the weights leave probabilities as
they are. The many that nobody would take for fraud hardly move a weight; the few that somebody would, do.
"""

import numpy as np
from numpy.typing import NDArray

NOTABLE_PROBABILITY = 0.01  # from here on a legitimate payment always teaches: it is from these that frauds are told
LEGITIMATE_ONE_IN = 4  # one in 10 costs .003 of average precision on the Handbook data, and .02 on rarer frauds


def keep_legitimate(payment_hash: int, *, one_in: int = LEGITIMATE_ONE_IN) -> float:
    """The weight of a legitimate example, 0 if it is left out. `payment_hash`: any 64-bit hash of the payment's id.

    >>> sum(keep_legitimate(h * 0x9E3779B97F4A7C15 % 2**64) for h in range(100_000))
    100004.0
    """
    # The hash's low bits choose partitions and the unlabelled hundredth; its high bits are independent of them.
    return float(one_in) if (payment_hash >> 32) * one_in >> 32 == 0 else 0.0


def kept_legitimate(payment_hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of which of them `keep_legitimate` is not 0.

    >>> kept_legitimate(np.array([2**62 - 1, 2**62], np.uint64))
    array([ True, False])
    """
    return (payment_hashes >> np.uint64(32)) * np.uint64(LEGITIMATE_ONE_IN) >> np.uint64(32) == 0


def percent_known(soon: int, told: int) -> int:
    """In hundredths, how many frauds are told soon, when `soon` of the `told` ones were; at first a fifth.

    >>> percent_known(0, 0), percent_known(0, 990), percent_known(990, 990)
    (20, 0, 99)
    """
    return 100 * (soon + 2) // (told + 10)
