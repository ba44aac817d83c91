"""Crossed features: which cell of a coarse grid over two features' bins a payment lies in.

Coarse levels are at fixed quantiles, so a cell keeps its meaning when the bins below it are renewed. Of a code, as the
merchant category, neighbours have nothing in common: all of its bins are levels. So the cells of (amount, category) and
(hour, category) are a table of risk by category, which travels with the version.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel
from stream.model.bins import QUANTILES, STRIDE, bin_of

LEVEL_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.975, 0.995)
LEVELS = len(LEVEL_QUANTILES) + 2  # and the absent one
PAIR_STRIDE = LEVELS * STRIDE  # room for a second feature whose every bin is a level

FINE = 1 << 16  # added to the second feature of a pair: all of its bins are levels
CODED = frozenset({"mcc"})

assert set(LEVEL_QUANTILES) <= set(QUANTILES), "a level's end is a bin's end"

# By what frauds are, not by what one data set showed: too much for this payer, again and again, at an odd hour, of an
# odd kind, or at a place whose frauds are already known.
CROSSED = (
    ("account_amount_ratio", "account_outliers_14d_count"),
    ("amount", "account_outliers_14d_count"),
    ("account_amount_z", "account_outliers_14d_count"),
    ("account_amount_ratio", "account_payments_1d_count"),
    ("account_since_last_s", "account_amount_ratio"),
    ("amount", "local_hour"),
    ("amount", "mcc"),
    ("local_hour", "mcc"),
    ("account_category_amount_ratio", "local_hour"),
    ("account_category_amount_ratio", "mcc"),
    ("terminal_fraud_run_count", "terminal_fraud_28d_share"),
    ("terminal_fraud_run_count", "terminal_fraud_run_age_s"),
    ("terminal_frauds_last_5_count", "terminal_frauds_ordinary_28d_count"),
)


def pairs_of(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """CROSSED as places in `names`, the model's features; a pair with a feature that is not there is left out.

    >>> pairs_of(["amount", "other", "local_hour", "mcc"])
    ((0, 2), (0, 65539), (2, 65539))
    """
    place = {name: i for i, name in enumerate(names)}
    return tuple((place[a], place[b] + FINE * (b in CODED)) for a, b in CROSSED if a in place and b in place)


COARSE = np.zeros(STRIDE, np.int32)  # level of a bin; 0 = absent
for _bin in range(1, STRIDE):
    _cuts_below = min(_bin - 1, len(QUANTILES))
    COARSE[_bin] = 1 + sum(1 for q in LEVEL_QUANTILES if QUANTILES.index(q) < _cuts_below)


@kernel
def second_of(pair: NDArray[np.int32]) -> int:
    """The second feature of a pair, by its place."""
    return int(pair[1]) & (FINE - 1)


@kernel
def cell_of(pair: NDArray[np.int32], bins: NDArray[np.int32], coarse: NDArray[np.int32]) -> int:
    """Index in 0..PAIR_STRIDE-1 of a payment's cell, from the bins of all features."""
    b = int(bins[second_of(pair)])
    return int(coarse[bins[pair[0]]]) * STRIDE + (b if pair[1] >= FINE else int(coarse[b]))


@kernel
def keys_of(
    x: NDArray[np.float32],
    cuts: NDArray[np.float32],
    pairs: NDArray[np.int32],
    coarse: NDArray[np.int32],
    keys: NDArray[np.int32],
) -> None:
    """Fill `keys` [features + pairs] with the weights' indices of one row: first the bins', then the cells'."""
    features = x.shape[0]
    for f in range(features):
        keys[f] = bin_of(cuts[f], x[f])
    for j in range(pairs.shape[0]):
        keys[features + j] = features * STRIDE + j * PAIR_STRIDE + cell_of(pairs[j], keys, coarse)
    for f in range(features):
        keys[f] += f * STRIDE


@kernel
def mean_contributions(
    x: NDArray[np.float32],
    cuts: NDArray[np.float32],
    pairs: NDArray[np.int32],
    coarse: NDArray[np.int32],
    weights: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Add to `out` [features] the mean weight that each feature has over the rows `x`; half a cell's to either of two.

    Row by row, so that no library decides how the sum is split.
    """
    rows, features = x.shape
    keys = np.empty(features + pairs.shape[0], np.int32)
    for i in range(rows):
        keys_of(x[i], cuts, pairs, coarse, keys)
        for f in range(features):
            out[f] += weights[keys[f]] / rows
        for j in range(pairs.shape[0]):
            half = weights[keys[features + j]] / 2.0 / rows
            out[pairs[j, 0]] += half
            out[second_of(pairs[j])] += half
