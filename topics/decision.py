"""The answer to one record of `payments`, for those who act on it."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from topics.payment import Mode

Outcome = Literal["approve", "challenge", "review", "decline", "refused"]
PolicyMode = Literal["shadow", "enforce"]

REASONS_MAX = 5


class Origin(Struct, frozen=True, gc=False):
    """The record on a public topic that is answered. `topic`: its name."""

    topic: str
    partition: int
    offset: int


class Position(Struct, frozen=True, gc=False):
    """Where in the last stage's journal the answer was decided; `n` numbers the outputs of a step."""

    partition: int
    offset: int
    n: int


class Versions(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What decided. `model`, `rules` and `policy` are absent while none is active, and when refused."""

    engine: int
    features: str
    model: str | None = None
    rules: str | None = None
    policy: str | None = None


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What to do with one payment. Topic `decisions`, key: the account's.

    `outcome`: what to do. A reader that does not know the value acts as if no answer had come.
    `verdict`: what the system thinks; equal to `outcome` unless `policy_mode` is `shadow`,
        where `outcome` is `approve`.
    `probability`: of fraud, in [0, 1]; absent when no model scored it.
    `reasons`: at most five codes of `topics.reasons`, in the order in which they weigh.
    `cause`, `path`, `message`: of `topics.refusals`, with outcome `refused` only. Such an answer
        concerns its one record and claims no payment id: `payment_id` is then a hint at most.
    `origin`: the record that is answered first. `position`: where it was decided. Both are the
        first's in every answer to one (tenant, account, payment id).
    `respond_by`, `event_time`: UTC epoch in ms, echoed.

    Nothing here depends on a clock or on a worker. When no answer comes by `respond_by`, a blocker
    does what its own fallback says, and may ignore an answer that comes later.
    """

    outcome: Outcome
    verdict: Outcome
    origin: Origin
    versions: Versions
    position: Position | None = None
    tenant_id: str | None = None
    payment_id: str | None = None
    account_id: str | None = None
    mode: Mode = "live"
    policy_mode: PolicyMode = "shadow"
    probability: float | None = None
    reasons: Annotated[list[str], Meta(max_length=REASONS_MAX)] = []
    cause: str | None = None
    path: str | None = None
    message: str | None = None
    event_time: int | None = None
    respond_by: int | None = None
    schema_version: int = 1
