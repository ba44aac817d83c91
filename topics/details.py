"""Why a payment was answered as it was, for us: topic `decision-details`, key as `decisions`."""

from msgspec import Struct

from topics.decision import Decision


class RuleHit(Struct, frozen=True, gc=False):
    """One rule that spoke, or nearly. `seen` against `limit`, in the unit of the rule's feature."""

    rule: str
    feature: str
    seen: float | None
    limit: float | None


class DecisionDetails(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """All that a decision stood on.

    `decision`: as it stands on `decisions`.
    `feature_set`: version of the names and order in `features`.
    `features`: float32, little-endian, in that order, as base64 in JSON; NaN is absent, which is not zero.
    `logit`: the model's score before the logistic function.
    `contributions`: by feature, what each added to it; given when the verdict is not `approve`.
    `limits`: thresholds on the probability by verdict, as they were.
    `hits`: rules that spoke. `near_hits`: rules that nearly did.
    `late`: behind the watermark of its own partition of `payments`.
    """

    decision: Decision
    feature_set: str
    features: bytes = b""
    logit: float | None = None
    contributions: list[float] = []
    limits: dict[str, float] = {}
    hits: list[RuleHit] = []
    near_hits: list[RuleHit] = []
    late: bool = False
    schema_version: int = 1
