"""The settings that have meaning: they travel by `control`, so that a replay finds them."""

from typing import Annotated, Final

from msgspec import Meta, Struct

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

INTAKE_BYTES_MAX: Final = 65_536
"""A larger value is journaled as its length, SHA-256 and first kB. Not a setting: it bounds the journal."""

Duration = Annotated[int, Meta(ge=1, le=36_500 * DAY_MS)]


class Limits(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """What a record may be, and how long things are remembered. Times in ms.

    `payload_bytes_max`: of a record's value. `nesting_max`: of objects and arrays, the outermost included.
    `amount_max`: minor units of any currency.
    `skew_ms`: how far an event may be after the broker's time of its record.
    `lateness_ms`: how far behind its partition's watermark a payment is called late.
    `dedupe_horizon_ms`: a payment older than that is `too_old`; fingerprints are kept for it.
    `answer_ttl_ms`: whole answers are kept for it; a repeat later is `answer_expired`.
    `maturity_ms`: on the labels' clock; then a payment without a fraud label is legitimate.
    `orphan_ms`: how long a label waits for its payment.
    `road_ms`: how long a payment's way and its features are kept, on the labels' clock.
    `card_exempt_fields`: paths whose text may be an all-digit id of 13 to 19 digits, as in
        `payment_id`, `references.arn`, `attributes.order_no`, `attributes.*`.
    """

    payload_bytes_max: Annotated[int, Meta(ge=256, le=INTAKE_BYTES_MAX)] = INTAKE_BYTES_MAX
    nesting_max: Annotated[int, Meta(ge=2, le=64)] = 16
    amount_max: Annotated[int, Meta(ge=1, le=10**15)] = 10**12
    skew_ms: Duration = 5 * MINUTE_MS
    lateness_ms: Duration = 5 * MINUTE_MS
    dedupe_horizon_ms: Duration = 45 * DAY_MS
    answer_ttl_ms: Duration = 7 * DAY_MS
    maturity_ms: Duration = 45 * DAY_MS
    orphan_ms: Duration = 14 * DAY_MS
    road_ms: Duration = 180 * DAY_MS
    card_exempt_fields: tuple[str, ...] = ()


LIMITS_DEFAULT: Final = Limits()


def contradictions(limits: Limits) -> list[str]:
    """What in `limits` cannot hold together; empty when it may be published.

    >>> contradictions(Limits())
    []
    >>> contradictions(Limits(maturity_ms=181 * DAY_MS))
    ['maturity_ms must be below road_ms: features are dropped before they mature']
    """
    found: list[str] = []
    if limits.answer_ttl_ms > limits.dedupe_horizon_ms:
        found.append("answer_ttl_ms must not exceed dedupe_horizon_ms: an answer without its fingerprint is never sent")
    if limits.maturity_ms >= limits.road_ms:
        found.append("maturity_ms must be below road_ms: features are dropped before they mature")
    if limits.lateness_ms > limits.dedupe_horizon_ms:
        found.append("lateness_ms must not exceed dedupe_horizon_ms: too_old would come before late")
    return found


assert not contradictions(LIMITS_DEFAULT)
