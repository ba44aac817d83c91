"""Which rules speak on each payment of a batch: the numba kernel, beside it the plain Python that is its oracle.

A feature that is absent is NaN, which satisfies `absent` and no comparison. Only comparisons are made here,
no arithmetic: both forms agree to the bit.

The kernel works on blocks of `BLOCK_ROWS` payments, one condition after the other over all of the block:
without branches, so that the compiler can use vector units (1.1 µs a payment row by row with 64 rules of three
conditions, 0.17 to 0.25 µs so, on a machine that others used too).
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stream.bits import kernel

BLOCK_ROWS: Final = 128

GT, GE, LT, LE, EQ, ABSENT, PRESENT = range(7)
OP_CODES: Final[dict[str, int]] = {
    "gt": GT,
    "ge": GE,
    "lt": LT,
    "le": LE,
    "eq": EQ,
    "absent": ABSENT,
    "present": PRESENT,
}


@kernel
def narrow(speaks: npt.NDArray[np.bool_], xs: npt.NDArray[np.float32], op: int, limit: np.float32) -> None:
    """Clears `speaks[i]` where `xs[i] op limit` does not hold."""
    if op == GT:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] > limit
    elif op == GE:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] >= limit
    elif op == LT:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] < limit
    elif op == LE:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] <= limit
    elif op == EQ:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] == limit
    elif op == ABSENT:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] != xs[i]
    else:
        for i in range(len(speaks)):
            speaks[i] &= xs[i] == xs[i]


@kernel
def evaluate_kernel(
    rows: npt.NDArray[np.float32],
    used: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int32],
    bits: npt.NDArray[np.uint64],
    columns: npt.NDArray[np.int32],
    ops: npt.NDArray[np.uint8],
    limits: npt.NDArray[np.float32],
    relaxed: npt.NDArray[np.float32],
    hits: npt.NDArray[np.uint64],
    near: npt.NDArray[np.uint64],
) -> None:
    """Fills `hits[n]` and `near[n]` for `rows[n, F]`.

    `used`: the columns of `rows` that any condition names. Rule r is bit `bits[r]` and holds conditions
    `starts[r]` to `starts[r + 1]`: `columns` (a place in `used`), `ops`, limit and relaxed limit of each.
    """
    size = min(BLOCK_ROWS, rows.shape[0])
    block = np.empty(len(used) * size, dtype=np.float32)
    speaks_all = np.empty(size, dtype=np.bool_)
    close_all = np.empty(size, dtype=np.bool_)
    for first in range(0, rows.shape[0], BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows.shape[0] - first)
        for n in range(count):
            for u in range(len(used)):
                block[u * size + n] = rows[first + n, used[u]]
        speaks = speaks_all[:count]
        close = close_all[:count]
        block_hits = hits[first : first + count]
        block_near = near[first : first + count]
        block_hits[:] = 0
        block_near[:] = 0
        for r in range(len(bits)):
            speaks[:] = True
            close[:] = True
            for c in range(starts[r], starts[r + 1]):
                xs = block[columns[c] * size : columns[c] * size + count]
                narrow(speaks, xs, ops[c], limits[c])
                narrow(close, xs, ops[c], relaxed[c])
            bit = bits[r]
            for n in range(count):
                block_hits[n] |= bit * np.uint64(speaks[n])
                block_near[n] |= bit * np.uint64(close[n] & (speaks[n] ^ True))


def evaluate_plain(
    rows: Sequence[Sequence[float]],
    rules: Sequence[tuple[int, Sequence[tuple[int, str, float, float]]]],
) -> tuple[list[int], list[int]]:
    """The same in plain words: per payment the bits of the rules that speak, and of those that nearly do.

    `rules`: (bit, conditions) each; a condition is (column, op, limit, relaxed limit).
    """
    all_hits: list[int] = []
    all_near: list[int] = []
    for row in rows:
        hits = near = 0
        for bit, conditions in rules:
            if all(holds(row[column], op, limit) for column, op, limit, _ in conditions):
                hits |= bit
            elif all(holds(row[column], op, relaxed) for column, op, _, relaxed in conditions):
                near |= bit
        all_hits.append(hits)
        all_near.append(near)
    return all_hits, all_near


def holds(x: float, op: str, limit: float) -> bool:
    """Whether `x op limit`; a NaN is absent, and satisfies no comparison.

    >>> holds(5.0, "gt", 5.0), holds(5.5, "gt", 5.0), holds(float("nan"), "lt", 5.0)
    (False, True, False)
    """
    compare: dict[str, Any] = {
        "gt": x > limit,
        "ge": x >= limit,
        "lt": x < limit,
        "le": x <= limit,
        "eq": x == limit,
        "absent": x != x,
        "present": x == x,
    }
    return bool(compare[op])
