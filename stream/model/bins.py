"""Quantile bins: which of 26 intervals a feature's value lies in, learned on-line from unlabelled payments.

Cuts are at fixed quantiles, dense in the upper tail where fraud lives. They come from a relative-error quantile sketch
in the manner of Cormode, Karnin, Liberty, Thaler, Vesely, "Relative Error Streaming Quantiles" (PODS 2021): a stack of
compactors that keep the upper half of what they hold and halve the lower. Its arrays are its whole state.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel, mix

QUANTILES = (*(q / 100 for q in range(5, 100, 5)), 0.975, 0.99, 0.995, 0.998, 0.999, 0.9995)
CUTS = 31  # the 25 above, padded with +inf, so that a search takes five steps without a branch
STRIDE = 32  # weights per feature: one for absent, then one per bin
ABSENT = 0

LEVELS = 12
BUFFER = 128
# After so many rows the bins are renewed and the sketch begins anew (the last number holds for good), so that cuts come
# from the latest half of all rows: not from the first days, when windows were still empty, and not from years ago.
RENEWAL_ROWS = (100, 400, 1_500, 2_000, 4_000, 8_000, 16_000, 32_000)

assert len(QUANTILES) < CUTS < STRIDE, "every bin and the absent one have a weight of their own"
assert max(RENEWAL_ROWS) <= BUFFER // 2 * 2 ** (LEVELS - 1), "the sketch restarts before its last compactor is full"


@kernel
def bin_of(cuts: NDArray[np.float32], x: float) -> int:
    """Index in 0..STRIDE-1: 0 if `x` is NaN, else 1 + the number of cuts below `x`. `cuts`: CUTS ascending numbers."""
    # Sums of comparisons, not branches: which way they go is anyone's guess, and each wrong one costs 5 ns.
    b = 16 * int(cuts[15] < x)
    b += 8 * int(cuts[b + 7] < x)
    b += 4 * int(cuts[b + 3] < x)
    b += 2 * int(cuts[b + 1] < x)
    b += int(cuts[b] < x)
    return b + 1 if x == x else 0


@kernel
def _insert(
    row: NDArray[np.float32],
    values: NDArray[np.float32],
    sizes: NDArray[np.int32],
    compactions: NDArray[np.int32],
    present: NDArray[np.int64],
    seed: int,
) -> None:
    for f in range(row.shape[0]):
        x = row[f]
        if x != x:
            continue
        present[f] += 1
        values[f, 0, sizes[f, 0]] = x + np.float32(0.0)  # -0.0 becomes 0.0: sorts differ in how they order the two
        sizes[f, 0] += 1
        h = 0
        while sizes[f, h] == BUFFER and h < LEVELS - 1:
            ordered = np.sort(values[f, h])
            coin = mix(seed * 1_000_003 + f * 4_099 + h * 257 + compactions[f, h] * 65_537 & 0xFFFFFFFF) & 1
            compactions[f, h] += 1
            for i in range(BUFFER // 4):  # of the lower half every other one moves up, and stands for two
                values[f, h + 1, sizes[f, h + 1]] = ordered[2 * i + coin]
                sizes[f, h + 1] += 1
                if sizes[f, h + 1] == BUFFER:
                    break
            for i in range(BUFFER // 2):
                values[f, h, i] = ordered[BUFFER // 2 + i]
            sizes[f, h] = BUFFER // 2
            h += 1


class SketchState(msgspec.Struct, frozen=True, array_like=True):
    """The sketch as plain bytes (little-endian arrays in C order)."""

    features: int
    seed: int
    rows: int
    values: bytes
    sizes: bytes
    compactions: bytes
    present: bytes


class Sketch:
    """Quantiles of each feature over the unlabelled rows that it was given. Bounded: 6 kB a feature.

    The rank error at quantile q stays below a tenth of the mass above q: the 99.95 % cut is as good as the median.
    """

    def __init__(self, features: int, *, seed: int = 1) -> None:
        self.features = features
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """Forget every row."""
        self.rows = 0
        self.values = np.zeros((self.features, LEVELS, BUFFER), np.float32)
        self.sizes = np.zeros((self.features, LEVELS), np.int32)
        self.compactions = np.zeros((self.features, LEVELS), np.int32)
        self.present = np.zeros(self.features, np.int64)

    def add(self, row: NDArray[np.float32]) -> None:
        """Count one row: float32[features], NaN = absent. A row of another width raises ValueError."""
        if row.shape != (self.features,):
            raise ValueError(f"a row of {self.features} features, got shape {row.shape}")
        _insert(row, self.values, self.sizes, self.compactions, self.present, self.seed)
        self.rows += 1

    def items(self, feature: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The kept values of a feature in ascending order, and how many rows each stands for."""
        sizes = self.sizes[feature]
        value = np.concatenate([self.values[feature, h, : sizes[h]] for h in range(LEVELS)])
        mass = np.repeat(np.left_shift(1, np.arange(LEVELS, dtype=np.int64)), sizes)
        order = np.argsort(value, kind="stable")
        return value[order], mass[order]

    def quantile(self, feature: int, q: float) -> float:
        """The smallest kept value that at least a share `q` of the present values do not exceed; NaN if none."""
        value, mass = self.items(feature)
        if not len(value):
            return math.nan
        rank = np.searchsorted(np.cumsum(mass), q * float(mass.sum()), side="left")
        return float(value[min(int(rank), len(value) - 1)])

    def cuts(self) -> NDArray[np.float32]:
        """Cuts [features, CUTS] at QUANTILES, padded with +inf. A feature that was never present has none."""
        out = np.full((self.features, CUTS), np.inf, np.float32)
        at = np.array(QUANTILES)
        for f in range(self.features):
            value, mass = self.items(f)
            if len(value):
                rank = np.searchsorted(np.cumsum(mass), at * float(mass.sum()), side="left")
                out[f, : len(QUANTILES)] = value[np.minimum(rank, len(value) - 1)]
        return out

    def state(self) -> SketchState:
        """All there is to it."""
        return SketchState(
            self.features,
            self.seed,
            self.rows,
            self.values.tobytes(),
            self.sizes.tobytes(),
            self.compactions.tobytes(),
            self.present.tobytes(),
        )

    @classmethod
    def restore(cls, state: SketchState) -> "Sketch":
        """A sketch that goes on where `state` was taken, to the bit."""
        sketch = cls(state.features, seed=state.seed)
        sketch.rows = state.rows
        sketch.values = np.frombuffer(state.values, np.float32).reshape(sketch.values.shape).copy()
        sketch.sizes = np.frombuffer(state.sizes, np.int32).reshape(sketch.sizes.shape).copy()
        sketch.compactions = np.frombuffer(state.compactions, np.int32).reshape(sketch.sizes.shape).copy()
        sketch.present = np.frombuffer(state.present, np.int64).copy()
        return sketch


def carried_over(
    sketch: Sketch, old_cuts: NDArray[np.float32], new_cuts: NDArray[np.float32], per_bin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`per_bin` [features * STRIDE] for the old cuts, as it reads on the new ones.

    A new bin takes the mean of the old bins that its payments would have fallen into; one that no payment of the
    sketch falls into takes the old bin at its upper end (the last: beyond its lower end). Absent stays as it was.
    """
    old = per_bin.reshape(sketch.features, STRIDE)
    out = old.copy()
    bins = len(QUANTILES) + 1
    for f in range(sketch.features):
        value, mass = sketch.items(f)
        if not len(value):
            continue
        was = np.searchsorted(old_cuts[f, : len(QUANTILES)], value, side="left")
        now = np.searchsorted(new_cuts[f, : len(QUANTILES)], value, side="left")
        total = np.bincount(now, weights=mass.astype(np.float64), minlength=bins)
        moved = np.bincount(now, weights=mass * old[f, 1 + was], minlength=bins)
        edges = np.append(new_cuts[f, : len(QUANTILES)], np.float32(np.inf))
        edge_bins = np.searchsorted(old_cuts[f, : len(QUANTILES)], edges, side="left")
        out[f, 1 : 1 + bins] = np.where(total > 0, moved / np.maximum(total, 1.0), old[f, 1 + edge_bins])
    return out.reshape(-1)
