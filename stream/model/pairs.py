"""Crossed features: which cell of a coarse grid over two features' bins a payment lies in.

Coarse levels are at fixed quantiles, so a cell keeps its meaning when the bins below it are renewed.
"""

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel
from stream.model.bins import QUANTILES, STRIDE, bin_of

LEVEL_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.975, 0.995)
LEVELS = len(LEVEL_QUANTILES) + 2  # and the absent one
PAIR_STRIDE = LEVELS * LEVELS

assert set(LEVEL_QUANTILES) <= set(QUANTILES), "a level's end is a bin's end"

COARSE = np.zeros(STRIDE, np.int32)  # level of a bin; 0 = absent
for _bin in range(1, STRIDE):
    _cuts_below = min(_bin - 1, len(QUANTILES))
    COARSE[_bin] = 1 + sum(1 for q in LEVEL_QUANTILES if QUANTILES.index(q) < _cuts_below)


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
        cell = coarse[keys[pairs[j, 0]]] * LEVELS + coarse[keys[pairs[j, 1]]]
        keys[features + j] = features * STRIDE + j * PAIR_STRIDE + cell
    for f in range(features):
        keys[f] += f * STRIDE
