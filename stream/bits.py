"""Exponential, logarithm and sigmoid whose bits are the same everywhere.

Scores are compared byte by byte between machines, batch sizes, and with numba off. libm, BLAS and vector units each
round differently in the last place; IEEE 754 `+ - * /` and the exact `frexp`/`ldexp` do not. So these use nothing else.

Each function is one source, compiled by numba unless `NUMBA_DISABLE_JIT=1`, when the same text runs as plain Python.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

# fastmath off: no reordering and no fused multiply-add, whose bits depend on the processor.
_njit = cast(Callable[[Any], Any], numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy"))


def kernel(function: F) -> F:
    """Compile `function` without anything that could change a bit. Its plain form is `plain(function)`."""
    return cast(F, _njit(function))


def plain(function: F) -> F:
    """The Python text of a kernel, to compare with. Kernels that it calls stay compiled, but see NUMBA_DISABLE_JIT."""
    return cast(F, getattr(function, "py_func", function))


INV_LN2 = 1.4426950408889634
LN2_HI = 0.693147180369123816490  # the first 33 bits: k * LN2_HI is exact for |k| < 2**20
LN2_LO = 1.90821492927058770002e-10
EXP_MAX = 709.0  # e**709 is finite
EXP_MIN = -708.0  # below lies the subnormal range, of no use to a probability
SQRT_HALF = 0.7071067811865476

INV_FACTORIAL = tuple(1.0 / math.factorial(n) for n in range(14))
(C0, C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13) = INV_FACTORIAL


@kernel
def exp(x: float) -> float:
    """e**x within 1 ulp or so; x is clipped to [-708, 709]; NaN stays NaN.

    >>> exp(0.0), round(exp(1.0), 12)
    (1.0, 2.718281828459)
    """
    if x != x:
        return x
    if x > EXP_MAX:
        x = EXP_MAX
    elif x < EXP_MIN:
        x = EXP_MIN
    k = int(x * INV_LN2 + 0.5) if x >= 0.0 else int(x * INV_LN2 - 0.5)
    r = (x - k * LN2_HI) - k * LN2_LO  # |r| <= ln(2) / 2, where Taylor's 14 terms leave 4e-18
    s = C13
    s = s * r + C12
    s = s * r + C11
    s = s * r + C10
    s = s * r + C9
    s = s * r + C8
    s = s * r + C7
    s = s * r + C6
    s = s * r + C5
    s = s * r + C4
    s = s * r + C3
    s = s * r + C2
    s = s * r + C1
    s = s * r + C0
    return math.ldexp(s, k)


@kernel
def log(x: float) -> float:
    """Natural logarithm of a positive finite number, within 2 ulp or so. 0 gives -inf, anything below gives NaN.

    >>> log(1.0), round(log(10.0), 12)
    (0.0, 2.302585092994)
    """
    if x != x or x < 0.0:
        return math.nan
    if x == 0.0:
        return -math.inf
    if x == math.inf:
        return x
    m, k = math.frexp(x)
    if m < SQRT_HALF:
        m = m + m
        k -= 1
    s = (m - 1.0) / (m + 1.0)  # log(m) = 2 atanh(s), |s| <= 0.1716
    z = s * s
    t = 1.0 / 23.0
    t = t * z + 1.0 / 21.0
    t = t * z + 1.0 / 19.0
    t = t * z + 1.0 / 17.0
    t = t * z + 1.0 / 15.0
    t = t * z + 1.0 / 13.0
    t = t * z + 1.0 / 11.0
    t = t * z + 1.0 / 9.0
    t = t * z + 1.0 / 7.0
    t = t * z + 1.0 / 5.0
    t = t * z + 1.0 / 3.0
    t = t * z
    return k * LN2_HI + (k * LN2_LO + (2.0 * s + 2.0 * s * t))


@kernel
def sigmoid(x: float) -> float:
    """1 / (1 + e**-x), without overflow at either end.

    >>> sigmoid(0.0), sigmoid(800.0), 0 < sigmoid(-700.0) < 1e-300
    (0.5, 1.0, True)
    """
    if x >= 0.0:
        return 1.0 / (1.0 + exp(-x))
    e = exp(x)
    return e / (1.0 + e)


@kernel
def softplus(x: float) -> float:
    """log(1 + e**x): the log loss of a legitimate payment with logit x (of a fraud: softplus(-x))."""
    if x > 0.0:
        return x + log(1.0 + exp(-x))
    return log(1.0 + exp(x))


@kernel
def mix(x: int) -> int:
    """A 32-bit hash of a non-negative integer below 2**32 (two rounds of multiply and xor-shift).

    32 bits, because plain Python and numba agree on int64 only while nothing overflows.
    """
    x = (x ^ (x >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return x ^ (x >> 16)


@kernel
def _all(x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    for i in range(x.shape[0]):
        out[i, 0] = exp(x[i])
        out[i, 1] = log(abs(x[i]))
        out[i, 2] = sigmoid(x[i])
        out[i, 3] = softplus(x[i])


def fixed_vectors(n: int, width: int, *, seed: int = 1) -> NDArray[np.float64]:
    """[n, width] numbers over many magnitudes that no library's generator decides; for self checks."""
    state = mix(seed)
    out = np.empty((n, width))
    for i in range(n):
        for j in range(width):
            state = mix(state + 1 + j & 0xFFFFFFFF)
            unit = state / 4294967296.0 - 0.5
            out[i, j] = unit * math.ldexp(1.0, (i + j) % 21 - 9)
    return out


def kernel_hash() -> str:
    """Hex of the four functions' bits on 10,000 fixed numbers: what a worker compares at start."""
    x = np.ascontiguousarray(fixed_vectors(10_000, 1)[:, 0])
    out = np.empty((x.shape[0], 4))
    _all(x, out)
    return hashlib.blake2b(out.tobytes(), digest_size=16).hexdigest()
