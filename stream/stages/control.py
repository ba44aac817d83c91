"""Control records: what they set in a stage from their marker on, and the stage that copies them there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from stream.errors import OperatorError
from stream.features import ENTITY_FEATURES, FEATURES_VERSION, PAYMENT_FEATURES
from stream.model.compiled import Compiled, Corrupt
from stream.rules.compiled import compile_rules
from stream.rules.errors import RulesRefused
from stream.rules.policy import decode_policy
from stream.rules.ruleset import decode_ruleset
from stream.stages import keys
from stream.stages.stage import Outbox, Record, Step
from stream.stages.state import State
from stream.version import ENGINE_FIRST, ENGINE_OLDEST, ENGINE_VERSION
from topics.catalogue import JOURNALS_OF_KIND
from topics.control import Control, ControlKind, Engine, Init, Rates, Skip, encode_control, parse_control, payload_as
from topics.journal import OUTPUTS_PER_ITEM_MAX, Marker
from topics.limits import LIMITS_DEFAULT, Limits, contradictions
from topics.payment import Payment
from topics.refusals import Refusal

CONTROL = "control"
FULL_NAMES = (
    *(f"account_{feature.name}" for feature in ENTITY_FEATURES),
    *(f"terminal_{feature.name}" for feature in ENTITY_FEATURES),
    *(feature.name for feature in PAYMENT_FEATURES),
)
"""The columns that a rule may name."""

RATE_UNIT = 10**9
BASE_AMOUNT_MAX = (
    10**15
)  # of the base currency's minor units: as much as any `amount_max` allows, and sums stay below 2**63
BASE_DEFAULT = Rates(base="EUR", nano_base_per_minor={})


class OtherEngine(OperatorError):
    """The journal is decided by an engine that this release does not hold."""

    def __init__(self, engine: int) -> None:
        held = f"{ENGINE_OLDEST} to {ENGINE_VERSION}"
        super().__init__(
            f"engine {engine} is in force here, and this release holds {held}. Operator: run a release that holds it; "
            f"skip nothing"
        )


class Meaning:
    """The settings in force at this place of a journal: the engine, limits, and the rates by which amounts compare.

    Raises `OtherEngine` where an engine is in force, or set, that this release does not hold.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        kinds = (b"settings", b"rates", b"engine")
        limits, rates, engine = state.get_many([keys.TABLE_MARKER + kind for kind in kinds])
        self.limits = LIMITS_DEFAULT if limits is None else msgspec.json.decode(limits, type=Limits)
        self._rates = BASE_DEFAULT if rates is None else msgspec.json.decode(rates, type=Rates)
        self.engine = _held(ENGINE_FIRST if engine is None else int(engine))

    def apply(self, marker: Marker) -> None:
        """Take what a record sets. Raises if it cannot be read: it stops the partition, as every such marker does."""
        if marker.kind == "settings":
            self.limits = payload_as(control_of(marker), Limits)
            self._state.put(keys.TABLE_MARKER + b"settings", msgspec.json.encode(self.limits))
        elif marker.kind == "rates":
            self._rates = payload_as(control_of(marker), Rates)
            self._state.put(keys.TABLE_MARKER + b"rates", msgspec.json.encode(self._rates))
        elif marker.kind == "engine":
            self.engine = _held(payload_as(control_of(marker), Engine).engine)
            self._state.put(keys.TABLE_MARKER + b"engine", b"%d" % self.engine)

    def base_amount(self, payment: Payment) -> int:
        """The amount in minor units of the base currency; -1 where no rate is known, or it would be more than
        BASE_AMOUNT_MAX: nothing is guessed."""
        billed = -1 if payment.billing_amount is None else payment.billing_amount
        return self._in_base(payment.amount, payment.currency, billed, payment.billing_currency)

    def base_amounts(
        self, amounts: NDArray[np.int64], billed: NDArray[np.int64], currencies: Sequence[tuple[str, str | None]]
    ) -> NDArray[np.int64]:
        """`base_amount` of each. `billed`: -1: absent; `currencies`: of the amount and of what is billed."""
        base = self._rates.base
        if all(currency == base for currency, _ in currencies):
            return amounts
        columns = zip(amounts.tolist(), billed.tolist(), currencies, strict=True)
        return np.array([self._in_base(amount, one, other, two) for amount, other, (one, two) in columns], np.int64)

    def _in_base(self, amount: int, currency: str, billed: int, billing_currency: str | None) -> int:
        rates = self._rates
        if currency == rates.base:
            return amount
        if billed >= 0 and billing_currency == rates.base:
            return billed
        rate = rates.nano_base_per_minor.get(currency)
        converted = -1 if rate is None else amount * rate // RATE_UNIT
        return converted if converted <= BASE_AMOUNT_MAX else -1


def _held(engine: int) -> int:
    if not ENGINE_OLDEST <= engine <= ENGINE_VERSION:
        raise OtherEngine(engine)
    return engine


class ModelPayload(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of kind `model`. `offset`: of `examples`, up to which it learned. `compiled`: `Compiled.encode()`.
    `held`: why the gate did not let it pass; such a version is on record and never decides."""

    version: str
    offset: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    features: str
    compiled: bytes
    held: str | None = None


def model_record(compiled: Compiled, held: str | None) -> bytes:
    """The control record of a version that the learner made."""
    payload = ModelPayload(
        version=compiled.version,
        offset=compiled.offset,
        features=compiled.features_version,
        compiled=compiled.encode(),
        held=held,
    )
    why = "learned" if held is None else f"held: {held}"[:1000]
    return encode_control(kind="model", by="learner", why=why, version=compiled.version, payload=payload)


def control_of(marker: Marker) -> Control:
    """The record that a marker carries. Raises `Corrupt` if it is none."""
    record = parse_control(marker.body)
    if isinstance(record, Refusal):
        raise Corrupt(f"a marker of kind {marker.kind} is no control record: {record.message}")
    return record


def refused_because(record: Control) -> str | None:
    """Why a control record must not be passed on; None: it may. One bad record would stop every partition.

    A model's hash is left to the stage that would score with it: a damaged one must stop that stage, loudly.
    """
    try:
        if record.kind == "model":
            payload_as(record, ModelPayload)
        elif record.kind == "rules":
            compile_rules(decode_ruleset(bytes(record.payload)), FULL_NAMES)
        elif record.kind == "policy":
            decode_policy(bytes(record.payload))
        elif record.kind == "settings":
            found = contradictions(payload_as(record, Limits))
            return found[0] if found else None
        elif record.kind == "rates":
            payload_as(record, Rates)
        elif record.kind in ("skip", "stopped"):
            payload_as(record, Skip)
        elif record.kind == "init":
            payload_as(record, Init)
        elif record.kind == "engine":
            _held(payload_as(record, Engine).engine)
    except (msgspec.MsgspecError, RulesRefused, OtherEngine) as error:
        return str(error)
    return None


# ---- the control stage ----


class PassedOn:
    """Which records of `control` are passed on, asked in their order.

    Of two model versions learned from the same place of `examples` the first holds: a learner that restarts may
    write one again. `model_offset`: the place of the last one, -1 before any.
    """

    def __init__(self, model_offset: int = -1) -> None:
        self.model_offset = model_offset

    def takes(self, record: Control) -> bool:
        if refused_because(record) is not None:
            return False
        if record.kind == "model":
            payload = payload_as(record, ModelPayload)
            if payload.held is not None or payload.offset <= self.model_offset or payload.features != FEATURES_VERSION:
                return False
            self.model_offset = payload.offset
        return True


class ControlStage:
    """Copies each control record into every partition of the journals whose stage reads its kind.

    `destinations`: journal → its number of partitions.
    """

    def __init__(self, state: State, *, destinations: Mapping[str, int]) -> None:
        assert sum(destinations.values()) < OUTPUTS_PER_ITEM_MAX, "one step reaches every partition"
        self._state = state
        self._destinations = dict(destinations)
        self.counts: Counter[str] = Counter()
        kept = state.get(keys.TABLE_GLOBALS)
        self._passed_on = PassedOn(-1 if kept is None else int.from_bytes(kept, "big", signed=True))

    def apply(self, steps: Sequence[Step], out: Outbox) -> None:
        for step in steps:
            record = step.item
            assert isinstance(record, Record)
            kind = self._accepted(record.value)
            self.counts[kind or "refused"] += 1
            j = 0
            for journal in JOURNALS_OF_KIND.get(kind, ()) if kind is not None else ():
                for partition in range(self._destinations.get(journal, 0)):
                    out.journal(step, journal, partition, Marker(step.offset, j, kind or "", record.value or b""))
                    j += 1

    def _accepted(self, value: bytes | None) -> ControlKind | None:
        """The kind of a record that is passed on."""
        record = parse_control(value)
        return None if isinstance(record, Refusal) or not self._passed_on.takes(record) else record.kind

    def skip(self, steps: Sequence[Step], out: Outbox) -> None:
        """A skipped control record is not passed on."""

    def settle(self) -> None:
        self._state.put(keys.TABLE_GLOBALS, self._passed_on.model_offset.to_bytes(8, "big", signed=True))
