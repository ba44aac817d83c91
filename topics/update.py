"""What became of a payment after it was answered."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from topics.payment import TENANT_DEFAULT, Amount, Attributes, Currency, Id, References, ShortText, TenantId, TimeMs

UpdateKind = Literal["authorised", "declined", "captured", "partially_captured", "voided", "refunded", "expired"]

NOT_THROUGH: frozenset[str] = frozenset({"declined", "voided", "expired"})
"""Kinds after which no money moved: such a payment never matures into a legitimate example."""


class Update(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One step in the life of a payment. Topic `updates`, key `account_id`.

    `observed_at`: UTC epoch in ms at which the sender knew it.
    `amount`: minor units of `currency` that this step concerns (captured, refunded); absent: all of it.
    `declined_by`: who said no; with kind `declined` only.
    """

    payment_id: Id
    account_id: Id
    kind: UpdateKind
    observed_at: TimeMs
    tenant_id: TenantId = TENANT_DEFAULT
    amount: Amount | None = None
    currency: Currency | None = None
    declined_by: Literal["issuer", "acquirer", "scheme", "merchant", "us", "customer"] | None = None
    reason_code: ShortText | None = None
    source: ShortText | None = None
    references: References | None = None
    attributes: Attributes | None = None
    schema_version: Annotated[int, Meta(ge=1)] = 1
