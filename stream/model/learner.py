"""The learner: a state machine over examples that publishes model versions.

Pure: what it learns depends on the calls and their order, and on nothing else. `to_bytes` is the whole state, and a
learner restored from it goes on to the same bits.

Corrections. Online learning cannot forget exactly. What an example taught is taken back to first order: in one step the
same example is learned with the negative of its weight, and with its new truth. At a confident prediction that step has
the size of one full error, where learning the opposite alone would be a step of almost nothing.
"""

from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.model.bins import CUTS, RENEWAL_ROWS, STRIDE, Sketch, SketchState, carried_over
from stream.model.calibration import Calibration, CalibrationState
from stream.model.compiled import Compiled, Unsound, build
from stream.model.gam import Gam, GamState
from stream.model.gate import Verdict, judge
from stream.model.pairs import COARSE, FINE, PAIR_STRIDE, keys_of, mean_contributions
from stream.model.ring import Ring, RingState

PROVISIONAL_KINDS: Final = frozenset({"fraud_report"})
PROVISIONAL_WEIGHT = 0.5  # an early report is right more often than not; the chargeback that follows replaces it
MATURITY_SOURCE = "maturity"  # our own conclusion from silence; it has no cap

FRAUDS_MIN = 50  # matured frauds before the model's word counts
SOURCE_DAY_WEIGHT_MIN = 500.0  # a source may always teach this much a day,
SOURCE_DAY_FACTOR = 3.0  # or this many times what it taught on an average day,
SOURCE_DAY_MEMORY = 0.1  # where a day has this weight in the average
SOURCES_MAX = 256  # further sources share one cap

WAITING_MAX = 1_000  # examples that came before there were bins
OTHERWISE_MAX = 65_536  # payments that were learned otherwise than asked, for a cap
GATE_FRAUDS = 512
GATE_LEGITIMATE = 2_048
RECENT_UNLABELLED = 1_024
SHARE_MEMORY = 1e-4  # a fraud's weight in the running shares of truth


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a learner is for. `pairs`: features by index that are crossed, see pairs.py."""

    features: int
    features_version: str
    pairs: tuple[tuple[int, int], ...] = ()
    frauds_min: int = FRAUDS_MIN
    seed: int = 1


class Published(msgspec.Struct, frozen=True):
    """A version that may decide from now on."""

    compiled: Compiled
    verdict: Verdict


class Held(msgspec.Struct, frozen=True):
    """A version that the gate did not let pass; `verdict.why` says why. The active one stays."""

    compiled: Compiled
    verdict: Verdict


class Broken(msgspec.Struct, frozen=True):
    """What was learned cannot score, and was thrown away. The active version stays."""

    why: str


class Source(msgspec.Struct, array_like=True):
    """What a source of labels taught: on its latest day, and on an average day before."""

    day: int
    weight: float = 0.0
    mean: float = 0.0


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """An example that came before there were bins."""

    features: bytes
    fraud: bool
    weight: float


class Taught(NamedTuple):
    """What a payment has been learned as, and with which weight; 0: it has not."""

    fraud: bool
    weight: float


class Counts(msgspec.Struct, kw_only=True):
    """Counted since the first example."""

    frauds: int = 0
    legitimate: int = 0
    corrections: int = 0
    capped: int = 0
    lost: int = 0  # came before there were bins, and too many were waiting
    published: int = 0
    held: int = 0
    renewals: int = 0
    broken: int = 0  # times that weights were no finite numbers


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, as plain bytes and numbers."""

    settings: Settings
    sketch: SketchState
    gam: GamState
    calibration: CalibrationState
    cuts: bytes
    has_cuts: bool
    gate_frauds: RingState
    gate_legitimate: RingState
    gate_fraud_weights: RingState
    gate_legitimate_weights: RingState
    recent: RingState
    shares: tuple[float, float]
    sources: dict[str, Source]
    waiting: list[Waiting]
    counts: Counts
    active: bytes
    ticked_steps: int
    otherwise: list[tuple[bytes, bool, float]] = []  # by payment hash, the oldest first; see `Learner.note`


class Learner:
    """See the module. One writer; bounded: about 20 kB a feature, and 1 MB."""

    def __init__(self, settings: Settings) -> None:
        n = settings.features
        if any(not 0 <= f < n for a, b in settings.pairs for f in (a, b - FINE if b >= FINE else b)):
            raise ValueError(f"a pair of {settings.pairs} names none of the {n} features")
        self.settings = settings
        self.pairs = np.array(settings.pairs, np.int32).reshape(-1, 2)
        self.sketch = Sketch(n, seed=settings.seed)
        self.cuts: NDArray[np.float32] | None = None
        self.gam = self._new_gam()
        self.calibration = Calibration()
        self.gate_frauds = Ring(GATE_FRAUDS, n)
        self.gate_legitimate = Ring(GATE_LEGITIMATE, n)
        self.gate_fraud_weights = Ring(GATE_FRAUDS, 1)
        self.gate_legitimate_weights = Ring(GATE_LEGITIMATE, 1)
        self.recent = Ring(RECENT_UNLABELLED, n)
        self.shares = (0.0, 0.0)  # running weight of legitimate payments, of frauds
        self.sources: dict[str, Source] = {}
        self.waiting: list[Waiting] = []
        self.counts = Counts()
        self.active: Compiled | None = None
        self._ticked_steps = 0
        self._otherwise: dict[bytes, Taught] = {}
        self._keys = np.empty(n + len(self.pairs), np.int32)

    def unlabelled(self, features: NDArray[np.float32]) -> None:
        """One of the unlabelled hundredth: float32 [features], NaN = absent. Renews the bins when enough have come."""
        self.sketch.add(features)
        self.recent.add(features)
        if self.sketch.rows >= RENEWAL_ROWS[min(self.counts.renewals, len(RENEWAL_ROWS) - 1)]:
            self._renew_bins()

    def example(
        self, features: NDArray[np.float32], fraud: bool, weight: float, source: str, kind: str, *, day: int = 0
    ) -> float:
        """Learn one label with the features as they were at the decision. Returns the weight that it was given.

        `weight` > 0: how many payments it stands for. `source`: who said so; `day`: of `observed_at`, in days since
        1970, for the source's cap. `kind`: of the label; provisional kinds weigh less. To undo it later, `correct`
        with the weight that was returned.
        """
        if not weight > 0.0:
            raise ValueError(f"a weight above 0, got {weight}")
        if kind in PROVISIONAL_KINDS:
            weight *= PROVISIONAL_WEIGHT
        weight = self._allowed(source, weight, day)
        return weight if weight > 0.0 and self._learn(features, fraud, weight) else 0.0

    def silences(self, features: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        """`example` of each row of float32 [n, features], legitimate by MATURITY_SOURCE, with its weight > 0. In one
        call, for nearly all that is learned is of this kind."""
        if not (weights > 0.0).all():
            raise ValueError("weights above 0 are needed")
        if self.cuts is None or features.shape[1:] != (self.settings.features,):
            for row, weight in zip(features, weights.tolist(), strict=True):
                self._learn(row, False, weight)
            return
        self.gam.learn_legitimate(features, weights, self.cuts, self.pairs, self.calibration)
        self._met_legitimate(features, weights)

    def correct(
        self,
        features: NDArray[np.float32],
        was_fraud: bool,
        was_weight: float,
        fraud: bool,
        weight: float,
        source: str,
        kind: str,
        *,
        day: int = 0,
    ) -> Taught:
        """A label that came later, or was reversed: take back what was taught, teach what is known now.

        `was_fraud` and `was_weight` are what `example` or `correct` returned (weight 0: it was never learned). Returns
        what is known from now on: the same, if the source's cap stands in the way.
        """
        if kind in PROVISIONAL_KINDS:
            weight *= PROVISIONAL_WEIGHT
        weight = self._allowed(source, weight, day)
        if weight <= 0.0:
            return Taught(was_fraud, was_weight)
        self.counts.corrections += 1
        return Taught(fraud, weight if self._learn(features, fraud, weight, was_fraud, was_weight) else 0.0)

    def taught(self, pid: bytes, asked: Taught) -> Taught:
        """What has been learned of a payment, if `asked` is what should have been."""
        return self._otherwise.get(pid, asked)

    def note(self, pid: bytes, asked: Taught, known: Taught) -> None:
        """Remember what has been learned of a payment where it is not what was asked: of the latest OTHERWISE_MAX."""
        self._otherwise.pop(pid, None)
        if known != asked:
            self._otherwise[pid] = known
            if len(self._otherwise) > OTHERWISE_MAX:
                del self._otherwise[next(iter(self._otherwise))]

    def tick(self, offset: int) -> Published | Held | Broken | None:
        """A version of what was learned up to `offset` of `examples`; None if nothing was since the last tick.

        Weights that are no finite numbers give none: they are thrown away, and the next example is learned from zero.
        The active version stays, and the gate lets another pass when that is not worse.
        """
        if self.cuts is None or self.gam.steps == self._ticked_steps:
            return None
        self._ticked_steps = self.gam.steps
        try:
            compiled = self._compile(offset)
        except Unsound as error:
            self._learn_anew()
            return Broken(str(error))
        legitimate, frauds = self.shares
        verdict = judge(
            compiled,
            self.active,
            frauds=self.gate_frauds.rows,
            legitimate=self.gate_legitimate.rows,
            unlabelled=self.recent.rows,
            fraud_share=frauds / (frauds + legitimate) if frauds + legitimate > 0.0 else 0.0,
            fraud_weights=self.gate_fraud_weights.rows[:, 0].astype(np.float64),
            legitimate_weights=self.gate_legitimate_weights.rows[:, 0].astype(np.float64),
        )
        if verdict.why:
            self.counts.held += 1
            return Held(compiled, verdict)
        self.counts.published += 1
        self.active = compiled
        return Published(compiled, verdict)

    def logit(self, features: NDArray[np.float32]) -> float:
        """The uncalibrated logit of one row by what was learned so far; 0 while there are no bins."""
        if self.cuts is None:
            return 0.0
        keys_of(features, self.cuts, self.pairs, COARSE, self._keys)
        return self.gam.logit(self._keys)

    def mean_logit(self, features: NDArray[np.float32]) -> float:
        """The uncalibrated logit of the version that a tick would publish now; 0 while there are no bins."""
        if self.cuts is None:
            return 0.0
        keys_of(features, self.cuts, self.pairs, COARSE, self._keys)
        return self.gam.mean_logit(self._keys)

    def expected_over_observed(self) -> float:
        """Frauds that the calibrated model expected over those that came, on recent examples. NaN without frauds."""
        return self.calibration.expected_over_observed()

    def _allowed(self, source: str, weight: float, day: int) -> float:
        """What is left of the source's cap of that day. An older day counts as the latest."""
        if source == MATURITY_SOURCE:
            return weight
        if source not in self.sources and len(self.sources) >= SOURCES_MAX:
            source = ""
        known = self.sources.setdefault(source, Source(day))
        if day > known.day:
            known.mean += SOURCE_DAY_MEMORY * (known.weight - known.mean)
            for _ in range(min(day - known.day - 1, 365)):
                known.mean -= SOURCE_DAY_MEMORY * known.mean
            known.day, known.weight = day, 0.0
        cap = max(SOURCE_DAY_WEIGHT_MIN, SOURCE_DAY_FACTOR * known.mean)
        allowed = min(weight, cap - known.weight)
        if allowed <= 0.0:
            self.counts.capped += 1
            return 0.0
        known.weight += allowed
        return allowed

    def _learn(
        self,
        features: NDArray[np.float32],
        fraud: bool,
        weight: float,
        was_fraud: bool = False,
        was_weight: float = 0.0,
    ) -> bool:
        """Whether it is learned, now or when there are bins."""
        if features.shape != (self.settings.features,):
            raise ValueError(f"a row of {self.settings.features} features, got shape {features.shape}")
        if self.cuts is None:
            if len(self.waiting) < WAITING_MAX:
                encoded = features.astype(np.float32).tobytes()
                if was_weight > 0.0:
                    self.waiting.append(Waiting(encoded, was_fraud, -was_weight))
                self.waiting.append(Waiting(encoded, fraud, weight))
            else:
                self.counts.lost += 1
                return False
            return True
        keys_of(features, self.cuts, self.pairs, COARSE, self._keys)
        logit = self.gam.mean_logit(self._keys)
        if was_weight > 0.0:
            self.calibration.add(logit, was_fraud, -was_weight)
        self.calibration.add(logit, fraud, weight)
        self.gam.correct(self._keys, was_fraud, was_weight, fraud, weight)
        if weight <= 0.0:
            return True
        if fraud:
            legitimate, frauds = self.shares
            self.counts.frauds += 1
            self.gate_frauds.add(features)
            self.gate_fraud_weights.add(np.array([weight], np.float32))
            self.shares = (legitimate * (1.0 - SHARE_MEMORY), frauds * (1.0 - SHARE_MEMORY) + weight)
        else:
            self._met_legitimate(features.reshape(1, -1), np.array([weight]))
        return True

    def _met_legitimate(self, features: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        """Counts what was learned, one after the other, and keeps it for the gate."""
        self.counts.legitimate += len(features)
        self.gate_legitimate.add_all(features)
        self.gate_legitimate_weights.add_all(weights.astype(np.float32).reshape(-1, 1))
        legitimate, frauds = self.shares
        for weight in weights.tolist():
            legitimate += weight
        self.shares = (legitimate, frauds)

    def _renew_bins(self) -> None:
        cuts = self.sketch.cuts()
        if self.cuts is not None:
            bins = self.settings.features * STRIDE
            for per_bin in (self.gam.weights, self.gam.squares, self.gam.mean):
                per_bin[:bins] = carried_over(self.sketch, self.cuts, cuts, per_bin[:bins])
        self.cuts = cuts
        self.counts.renewals += 1
        self.sketch.restart()
        waiting, self.waiting = self.waiting, []
        for example in waiting:
            self._learn(np.frombuffer(example.features, np.float32), example.fraud, example.weight)

    def _new_gam(self) -> Gam:
        return Gam(self.settings.features * STRIDE + len(self.pairs) * PAIR_STRIDE)

    def _learn_anew(self) -> None:
        self.counts.broken += 1
        self.gam = self._new_gam()
        self.calibration = Calibration()
        self._ticked_steps = 0

    def _compile(self, offset: int) -> Compiled:
        assert self.cuts is not None
        n = self.settings.features
        baseline = np.zeros(n)
        mean_contributions(self.recent.rows, self.cuts, self.pairs, COARSE, self.gam.mean, baseline)
        slope, shift = self.calibration.fit()
        return build(
            offset=offset,
            features_version=self.settings.features_version,
            ready=self.counts.frauds >= self.settings.frauds_min and self.counts.legitimate > 0,
            frauds=self.counts.frauds,
            cuts=self.cuts,
            weights=self.gam.mean,
            intercept=float(self.gam.mean_intercept[0]),
            baseline=baseline,
            pairs=self.pairs,
            slope=slope,
            shift=shift,
            bend=self.calibration.bend,
        )

    def to_bytes(self) -> bytes:
        """The whole state. `Learner.from_bytes(b)` then learns as this one would, to the bit."""
        return msgspec.msgpack.encode(
            State(
                settings=self.settings,
                sketch=self.sketch.state(),
                gam=self.gam.state(),
                calibration=self.calibration.state(),
                cuts=b"" if self.cuts is None else self.cuts.tobytes(),
                has_cuts=self.cuts is not None,
                gate_frauds=self.gate_frauds.state(),
                gate_legitimate=self.gate_legitimate.state(),
                gate_fraud_weights=self.gate_fraud_weights.state(),
                gate_legitimate_weights=self.gate_legitimate_weights.state(),
                recent=self.recent.state(),
                shares=self.shares,
                sources=self.sources,
                waiting=self.waiting,
                counts=self.counts,
                active=b"" if self.active is None else self.active.encode(),
                ticked_steps=self._ticked_steps,
                otherwise=[(pid, known.fraud, known.weight) for pid, known in self._otherwise.items()],
            )
        )

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "Learner":
        """The learner of these bytes. msgspec.DecodeError or ValueError if they are not one's."""
        try:
            state = msgspec.msgpack.decode(encoded, type=State)
        except RecursionError as error:
            raise ValueError("nested deeper than any learner's state") from error
        learner = cls(state.settings)
        learner.sketch = Sketch.restore(state.sketch)
        learner.gam.resume(state.gam)
        learner.calibration.resume(state.calibration)
        if state.has_cuts:
            learner.cuts = np.frombuffer(state.cuts, np.float32).reshape(-1, CUTS).copy()
        learner.gate_frauds.resume(state.gate_frauds)
        learner.gate_legitimate.resume(state.gate_legitimate)
        learner.gate_fraud_weights.resume(state.gate_fraud_weights)
        learner.gate_legitimate_weights.resume(state.gate_legitimate_weights)
        learner.recent.resume(state.recent)
        learner.shares = state.shares
        learner.sources = state.sources
        learner.waiting = state.waiting
        learner.counts = state.counts
        learner.active = _sound(state.active) if state.active else None
        learner._ticked_steps = state.ticked_steps
        learner._otherwise = {pid: Taught(fraud, weight) for pid, fraud, weight in state.otherwise}
        return learner


def _sound(encoded: bytes) -> Compiled | None:
    """A version that was active; None if it cannot score: what decides has refused it, and any that can is better."""
    try:
        return Compiled.decode(encoded)
    except Unsound:
        return None
