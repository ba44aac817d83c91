"""Why a payment was answered as it was, for us: topic `decision-details`, key as `decisions`."""

from msgspec import Struct

from topics.decision import Origin, Outcome, PolicyMode, Position, Versions
from topics.payment import Mode


class RuleHit(Struct, frozen=True, gc=False):
    """One rule that spoke, or nearly. `seen` against `limit`, in the unit of the rule's feature."""

    rule: str
    reason: str
    seen: float | None
    limit: float | None
    verdict: Outcome


class DecisionDetails(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """All that a decision stood on. Identity and position are those of its `Decision`.

    `feature_set`: version of the names and order in `features`.
    `features`: float32 values in that order; None is absent, which is not zero.
    `coverage`: by feature, the share of its window in [0, 1] that the state covers.
    `logit`: the model's score before the logistic function. `contributions`: by feature, what each added to it.
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
    features: list[float | None] = []
    coverage: list[float | None] = []
    logit: float | None = None
    contributions: list[float] = []
    limits: dict[str, float] = {}
    reasons: list[str] = []
    hits: list[RuleHit] = []
    near_hits: list[RuleHit] = []
    late: bool = False
    schema_version: int = 1
