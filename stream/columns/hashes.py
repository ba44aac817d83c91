"""BLAKE2b with 128 bits of digest (RFC 7693, no key) of many short texts in one call.

`hashlib` makes an object for each, which for an id of forty bytes takes longer than the hash itself.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream.bits import kernel

DIGEST_BYTES: Final = 16
BLOCK_BYTES: Final = 128

IV: Final = np.array(
    [
        0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
        0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
    ],
    np.uint64,
)  # fmt: skip
PARAMETERS: Final = np.uint64(0x01010000 | DIGEST_BYTES)  # fan-out and depth 1: one hash by itself

# RFC 7693, 2.7: in which order a round takes the words of a block; the last two rounds begin anew.
SIGMA: Final = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    ],
    np.uint64,
)  # fmt: skip


def digests(texts: NDArray[np.uint8], starts: NDArray[np.int32], ends: NDArray[np.int32]) -> NDArray[np.uint64]:
    """uint64 (n, 2), little-endian: the digest of each `texts[start:end]`. Raises ValueError for one outside.

    >>> abc = np.frombuffer(bytearray(b"abc"), np.uint8)
    >>> digests(abc, np.array([0], np.int32), np.array([3], np.int32)).tobytes().hex()
    'cf4ab791c62b8d2b2109c90275287816'
    """
    if len(starts) and (starts.min() < 0 or ends.max() > len(texts) or (ends < starts).any()):
        raise ValueError("a text lies outside of them")
    found = np.empty((len(starts), 2), np.uint64)
    _digests(texts, np.ascontiguousarray(starts), np.ascontiguousarray(ends), found)
    return found


@kernel
def _turned(word: Any, right: int) -> Any:
    return word >> np.uint64(right) | word << np.uint64(64 - right)


@kernel
def _mix(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    a = a + b + x
    d = _turned(d ^ a, 32)
    c = c + d
    b = _turned(b ^ c, 24)
    a = a + b + y
    d = _turned(d ^ a, 16)
    c = c + d
    b = _turned(b ^ c, 63)
    return a, b, c, d


@kernel
def _digests(
    texts: NDArray[np.uint8], starts: NDArray[np.int32], ends: NDArray[np.int32], found: NDArray[np.uint64]
) -> None:
    h, m = np.empty(8, np.uint64), np.empty(16, np.uint64)
    block = m.view(np.uint8)
    for i in range(starts.shape[0]):
        size, done = int(ends[i]) - int(starts[i]), 0
        h[:] = IV
        h[0] ^= PARAMETERS
        while True:
            some = min(size - done, BLOCK_BYTES)
            text = texts[starts[i] + done : starts[i] + done + some]
            m[:] = np.uint64(0)
            for j in range(some):
                block[j] = text[j]
            done += some
            v0, v1, v2, v3, v4, v5, v6, v7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
            v8, v9, v10, v11, v12, v13, v14, v15 = IV[0], IV[1], IV[2], IV[3], IV[4], IV[5], IV[6], IV[7]
            v12 ^= np.uint64(done)
            if done == size:
                v14 = ~v14
            for turn in range(12):
                s = SIGMA[turn]
                v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[s[0]], m[s[1]])
                v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[s[2]], m[s[3]])
                v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[s[4]], m[s[5]])
                v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[s[6]], m[s[7]])
                v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[s[8]], m[s[9]])
                v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[s[10]], m[s[11]])
                v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[s[12]], m[s[13]])
                v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[s[14]], m[s[15]])
            h[0], h[1], h[2], h[3] = h[0] ^ v0 ^ v8, h[1] ^ v1 ^ v9, h[2] ^ v2 ^ v10, h[3] ^ v3 ^ v11
            h[4], h[5], h[6], h[7] = h[4] ^ v4 ^ v12, h[5] ^ v5 ^ v13, h[6] ^ v6 ^ v14, h[7] ^ v7 ^ v15
            if done == size:
                break
        found[i, 0], found[i, 1] = h[0], h[1]
