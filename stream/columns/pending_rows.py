"""Pending rows of many payments in one call: `stream.stages.pending.pack_new`, to the byte."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel
from stream.columns.scan import copy
from stream.columns.text import Texts

HEAD_BYTES: Final = 8
LENGTH_MAX: Final = 2**16 - 1  # of an entity's key, and of the features


def pending_rows(
    flags: NDArray[np.uint8],
    texts: NDArray[np.uint8],
    entities: NDArray[np.int32],
    named: NDArray[np.bool_],
    features: NDArray[np.float32],
) -> list[bytes]:
    """Rows of payments of which nothing is known yet.

    `entities`: int32 (n, 2), start and end in `texts` of the key of each one's terminal; left out where not `named`.
    `features`: (n, F). Raises ValueError for a key outside of `texts`, or too long for its length's two bytes.
    """
    n, size = len(flags), features.shape[1] * features.itemsize
    lengths = np.where(named, entities[:, 1] - entities[:, 0], 0).astype(np.int64)
    if n and (lengths.min() < 0 or entities.min() < 0 or entities.max() > len(texts)):
        raise ValueError("an entity's key lies outside of the texts")
    if n and max(int(lengths.max()), size) > LENGTH_MAX:
        raise ValueError(f"a key of {lengths.max()} bytes or a row of {size}, at most {LENGTH_MAX}")
    bounds = np.zeros(n + 1, np.int64)
    np.cumsum(lengths + (HEAD_BYTES + size), out=bounds[1:])
    out = np.empty(int(bounds[-1]), np.uint8)
    _write(flags, texts, np.ascontiguousarray(entities), lengths, features.reshape(-1).view(np.uint8), size, out)
    return Texts(out.tobytes(), bounds).values()


@kernel
def _write(
    flags: NDArray[np.uint8],
    texts: NDArray[np.uint8],
    entities: NDArray[np.int32],
    lengths: NDArray[np.int64],
    features: NDArray[np.uint8],
    size: int,
    out: NDArray[np.uint8],
) -> None:
    at = 0
    for i in range(flags.shape[0]):
        out[at], out[at + 1], out[at + 2], out[at + 3] = flags[i], 0, 0, 0
        out[at + 4], out[at + 5] = lengths[i] & 255, lengths[i] >> 8
        out[at + 6], out[at + 7] = size & 255, size >> 8
        at += HEAD_BYTES
        if lengths[i] > 0:
            at = copy(out, at, texts, entities[i, 0], entities[i, 1])
        at = copy(out, at, features, i * size, (i + 1) * size)
