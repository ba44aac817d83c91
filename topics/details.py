"""Why a payment was answered as it was, for us: topic `decision-details`, key as `decisions`."""

from msgspec import Struct

from topics.decision import Origin, Outcome, PolicyMode, Position, Versions
from topics.payment import Mode


class RuleHit(Struct, frozen=True, gc=False):
    """One rule that spoke, or nearly. `seen` against `limit`, in the unit of the rule's feature."""

    rule: str
    feature: str
    seen: float | None
    limit: float | None


class DecisionDetails(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """All that a decision stood on. Identity and position are those of its `Decision`.

    `feature_set`: version of the names and order in `features`.
    `features`: float32, little-endian, in that order, as base64 in JSON; NaN is absent, which is not zero.
    `logit`: the model's score before the logistic function.
    `contributions`: by feature, what each added to it; given when the verdict is not `approve`.
    `limits`: thresholds on the probability by verdict, as they were.
    `hits`: rules that spoke. `near_hits`: rules that nearly did.
    """

    outcome: Outcome
    verdict: Outcome
    origin: Origin
    versions: Versions
    feature_set: str
    position: Position | None = None
    tenant_id: str | None = None
    payment_id: str | None = None
    account_id: str | None = None
    mode: Mode = "live"
    policy_mode: PolicyMode = "shadow"
    event_time: int | None = None
    probability: float | None = None
    features: bytes = b""
    logit: float | None = None
    contributions: list[float] = []
    limits: dict[str, float] = {}
    reasons: list[str] = []
    hits: list[RuleHit] = []
    near_hits: list[RuleHit] = []
    late: bool = False
    schema_version: int = 1
