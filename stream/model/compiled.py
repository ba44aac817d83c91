"""A model version in its compiled form: read-only, canonical bytes, scored by a kernel.

The marker that activates a version carries these bytes, so a journal needs nothing else to reproduce its answers.
"""

import hashlib
import math
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.bits import fixed_vectors, kernel, sigmoid
from stream.model.bend import BEND_KNOTS, bent
from stream.model.bins import CUTS, QUANTILES, STRIDE, bin_of
from stream.model.pairs import COARSE, FINE, PAIR_STRIDE, cell_of, keys_of, second_of
from topics.undecodable import UNDECODABLE

FORMAT = 3
ENCODED_BYTES_MAX = 65_536
NUMBER_MAX = 1e9  # of weights and scalars: so no sum of them overflows, and no score is NaN
LOGIT_MAX = 30.0  # beyond it a float64 probability says no more, and its complement loses its digits


class Corrupt(Exception):
    """These bytes are no model version. The operator must look: a marker was damaged, or written by other code."""


class Unsound(Corrupt):
    """The version is whole, and cannot score: its maker wrote it so. Whoever scores stays with the version before."""


@kernel
def _score(
    x: NDArray[np.float32],
    cuts: NDArray[np.float32],
    weights: NDArray[np.float64],
    pairs: NDArray[np.int32],
    coarse: NDArray[np.int32],
    scalars: NDArray[np.float64],
    bend: NDArray[np.float64],
    p: NDArray[np.float64],
    logit: NDArray[np.float64],
) -> None:
    rows, features = x.shape
    bins = np.empty(features, np.int32)
    for i in range(rows):
        total = 0.0
        for f in range(features):
            b = bin_of(cuts[f], x[i, f])
            bins[f] = b
            total += weights[f * STRIDE + b]
        for j in range(pairs.shape[0]):
            total += weights[features * STRIDE + j * PAIR_STRIDE + cell_of(pairs[j], bins, coarse)]
        z = bent(total + scalars[0], scalars[1], scalars[2], bend)
        if z > LOGIT_MAX:
            z = LOGIT_MAX
        elif z < -LOGIT_MAX:
            z = -LOGIT_MAX
        logit[i] = z
        p[i] = sigmoid(z)


@kernel
def _contributions(
    x: NDArray[np.float32],
    cuts: NDArray[np.float32],
    weights: NDArray[np.float64],
    pairs: NDArray[np.int32],
    coarse: NDArray[np.int32],
    scalars: NDArray[np.float64],
    bend: NDArray[np.float64],
    baseline: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    rows, features = x.shape
    start, slope, shift = scalars[0], scalars[1], scalars[2]
    for f in range(features):
        start += baseline[f]
    base = bent(start, slope, shift, bend)
    keys = np.empty(features + pairs.shape[0], np.int32)
    for i in range(rows):
        keys_of(x[i], cuts, pairs, coarse, keys)
        for f in range(features):
            out[i, f] = weights[keys[f]] - baseline[f]
        for j in range(pairs.shape[0]):
            half = weights[keys[features + j]] / 2.0
            out[i, pairs[j, 0]] += half
            out[i, second_of(pairs[j])] += half
        total = start
        for f in range(features):
            total += out[i, f]
        # Each has the share of the bent logit that it has of the raw one (Aumann and Shapley, 1974).
        share = slope
        if total != start:
            share = (bent(total, slope, shift, bend) - base) / (total - start)
        for f in range(features):
            out[i, f] *= share


class _Arrays(NamedTuple):
    weights: NDArray[np.float64]
    pairs: NDArray[np.int32]
    scalars: NDArray[np.float64]  # intercept, slope, shift
    bend: NDArray[np.float64]
    baseline: NDArray[np.float64]


class Compiled(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that scoring needs. Arrays are little-endian bytes in C order.

    `cuts`: float32 [features, CUTS, finite ones only up to len(QUANTILES)]; `weights`: float64 [features * STRIDE +
    pairs * PAIR_STRIDE]; `pairs`: int32 [pairs, 2], see pairs.py; `baseline`: float64 [features], the mean contribution
    of each feature to the raw logit over unlabelled payments. The logit is `slope` * raw + `shift` and what `bend`,
    float64 [BEND_KNOTS], adds there (see bend.py), clipped to +-LOGIT_MAX. `ready`: enough matured frauds were seen;
    before that rules decide.
    """

    format: int = FORMAT
    offset: int  # of `examples`: what was learned up to and including it
    version: str  # offset-hash
    features_version: str
    features: int
    ready: bool
    frauds: int  # matured frauds learned so far
    intercept: float
    slope: float = 1.0
    shift: float = 0.0
    bend: bytes = bytes(8 * BEND_KNOTS)
    cuts: bytes
    weights: bytes
    pairs: bytes = b""
    baseline: bytes

    def encode(self) -> bytes:
        """Canonical msgpack bytes, at most ENCODED_BYTES_MAX (else ValueError)."""
        encoded = msgspec.msgpack.encode(self)
        if len(encoded) > ENCODED_BYTES_MAX:
            raise ValueError(f"a model version of {len(encoded)} bytes, more than {ENCODED_BYTES_MAX}")
        return encoded

    @staticmethod
    def decode(encoded: bytes) -> "Compiled":
        """The version of these bytes. Raises Corrupt: another format, wrong hash; Unsound: wrong sizes, NaN."""
        try:
            compiled = msgspec.msgpack.decode(encoded, type=Compiled)
        except UNDECODABLE as error:
            raise Corrupt(f"not a model version: {error}") from error
        compiled.check()
        return compiled

    def check(self) -> None:
        """Raise Corrupt unless the hash is that of the content, and Unsound unless it can score."""
        if self.format != FORMAT:
            raise Corrupt(f"format {self.format}, this code reads {FORMAT}")
        if self.version != self.expected_version():
            raise Corrupt(f"version {self.version}, but its content makes {self.expected_version()}")
        pairs = len(self.pairs) // 8
        sizes = (len(self.cuts), len(self.weights), len(self.pairs), len(self.baseline), len(self.bend))
        expected = (
            self.features * len(QUANTILES) * 4,
            (self.features * STRIDE + pairs * PAIR_STRIDE) * 8,
            pairs * 8,
            self.features * 8,
            BEND_KNOTS * 8,
        )
        if self.features < 1 or sizes != expected:
            raise Unsound(f"{self.features} features need arrays of {expected} bytes, got {sizes}")
        numbers = np.concatenate(
            [
                np.frombuffer(self.weights, np.float64),
                np.frombuffer(self.baseline, np.float64),
                np.frombuffer(self.bend, np.float64),
                np.array([self.intercept, self.slope, self.shift]),
            ]
        )
        if not (np.abs(numbers) <= NUMBER_MAX).all():  # NaN is not
            raise Unsound(f"a weight is not a finite number within {NUMBER_MAX:.0e}")
        cuts = self.cut_points
        if np.isnan(cuts).any() or (cuts[:, :-1] > cuts[:, 1:]).any():
            raise Unsound("cuts are not in ascending order")
        chosen = np.frombuffer(self.pairs, np.int32).reshape(-1, 2) - np.array([0, FINE])
        chosen[:, 1] += FINE * (chosen[:, 1] < 0)  # with or without the mark
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= self.features):
            raise Unsound("a pair names a feature that is not there")

    def expected_version(self) -> str:
        """`offset-hash`: the hash covers all that changes a score, and nothing else."""
        digest = hashlib.blake2b(digest_size=8)
        head = (self.format, self.features_version, self.features, self.ready)
        digest.update(msgspec.msgpack.encode((head, self.intercept, self.slope, self.shift)))
        for part in (self.cuts, self.weights, self.pairs, self.baseline, self.bend):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return f"{self.offset}-{digest.hexdigest()}"

    @property
    def cut_points(self) -> NDArray[np.float32]:
        """float32 [features, CUTS], padded with +inf."""
        cache = cast(dict[str, Any], self.__dict__)
        if "cut_points" not in cache:
            cuts = np.full((self.features, CUTS), np.inf, np.float32)
            cuts[:, : len(QUANTILES)] = np.frombuffer(self.cuts, np.float32).reshape(self.features, len(QUANTILES))
            cache["cut_points"] = cuts
        return cast(NDArray[np.float32], cache["cut_points"])

    @property
    def _arrays(self) -> _Arrays:
        cache = cast(dict[str, Any], self.__dict__)
        if "arrays" not in cache:
            cache["arrays"] = _Arrays(
                np.frombuffer(self.weights, np.float64).copy(),
                np.frombuffer(self.pairs, np.int32).reshape(-1, 2).copy(),
                np.array([self.intercept, self.slope, self.shift]),
                np.frombuffer(self.bend, np.float64).copy(),
                np.frombuffer(self.baseline, np.float64).copy(),
            )
        return cache["arrays"]

    def score(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Probability of fraud and its logit, float64 [n] each, of float32 [n, features]; NaN = absent.

        A row's bits do not depend on the rows beside it. ValueError for another width.
        """
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"rows of {self.features} features, got shape {x.shape}")
        p = np.empty(x.shape[0])
        logit = np.empty(x.shape[0])
        a = self._arrays
        rows = np.ascontiguousarray(x, np.float32)
        _score(rows, self.cut_points, a.weights, a.pairs, COARSE, a.scalars, a.bend, p, logit)
        return p, logit

    @property
    def baseline_logit(self) -> float:
        """The logit of a payment whose every feature contributes what it does on average."""
        a = self._arrays
        return float(bent(self.intercept + math.fsum(a.baseline), self.slope, self.shift, a.bend))

    def contributions(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """What each feature of one row, float32 [features], adds to `baseline_logit`; float64 [features].

        They sum to logit - `baseline_logit` (before the clip). Half of a pair's weight goes to each of its two.
        """
        if x.shape != (self.features,):
            raise ValueError(f"a row of {self.features} features, got shape {x.shape}")
        return self.contributions_of(x.reshape(1, -1))[0]

    def contributions_of(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """The same for many rows at once: float64 [n, features] of float32 [n, features]."""
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"rows of {self.features} features, got shape {x.shape}")
        a = self._arrays
        out = np.empty(x.shape)
        rows = np.ascontiguousarray(x, np.float32)
        _contributions(rows, self.cut_points, a.weights, a.pairs, COARSE, a.scalars, a.bend, a.baseline, out)
        return out


def build(
    *,
    offset: int,
    features_version: str,
    ready: bool,
    frauds: int,
    cuts: NDArray[np.float32],
    weights: NDArray[np.float64],
    intercept: float,
    baseline: NDArray[np.float64],
    pairs: NDArray[np.int32] | None = None,
    slope: float = 1.0,
    shift: float = 0.0,
    bend: NDArray[np.float64] | None = None,
) -> Compiled:
    """A version from arrays: `cuts` [features, CUTS]; without `bend` a straight one.

    Raises Unsound if a number is not finite or sizes disagree.
    """
    compiled = Compiled(
        offset=offset,
        version="",
        features_version=features_version,
        features=cuts.shape[0],
        ready=ready,
        frauds=frauds,
        intercept=float(intercept),
        slope=float(slope),
        shift=float(shift),
        bend=bytes(8 * BEND_KNOTS) if bend is None else np.ascontiguousarray(bend, np.float64).tobytes(),
        cuts=np.ascontiguousarray(cuts[:, : len(QUANTILES)], np.float32).tobytes(),
        weights=(np.ascontiguousarray(weights, np.float64) + 0.0).tobytes(),  # -0.0 and 0.0 are one weight
        pairs=b"" if pairs is None else np.ascontiguousarray(pairs, np.int32).tobytes(),
        baseline=(np.ascontiguousarray(baseline, np.float64) + 0.0).tobytes(),
    )
    compiled = msgspec.structs.replace(compiled, version=compiled.expected_version())
    compiled.check()
    return compiled


def kernel_hash() -> str:
    """Hex of 10,000 fixed rows' scores by a fixed model: the model's part of the self check at start."""
    features = 8
    cuts = np.full((features, CUTS), np.inf, np.float32)
    cuts[:, : len(QUANTILES)] = np.sort(fixed_vectors(features, len(QUANTILES), seed=2), axis=1)
    pairs = np.array([[0, 1], [2, 5 + FINE]], np.int32)
    model = build(
        offset=0,
        features_version="",
        ready=True,
        frauds=0,
        cuts=cuts,
        weights=fixed_vectors(1, features * STRIDE + len(pairs) * PAIR_STRIDE, seed=3)[0] / 64.0,
        intercept=-3.0,
        baseline=np.zeros(features),
        pairs=pairs,
        slope=0.9,
        shift=0.1,
        bend=fixed_vectors(1, BEND_KNOTS, seed=5)[0] / 64.0,
    )
    p, logit = model.score(fixed_vectors(10_000, features, seed=4).astype(np.float32))
    return hashlib.blake2b(p.tobytes() + logit.tobytes(), digest_size=16).hexdigest()
