"""What was learned about a payment later: the material that the model learns from."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from topics.payment import TENANT_DEFAULT, Amount, Currency, Id, References, ShortText, TenantId, TimeMs

LabelKind = Literal[
    "fraud_report",
    "chargeback",
    "chargeback_reversed",
    "confirmed_fraud",
    "confirmed_legit",
    "dispute_other",
    "clock",
]
DisputeStage = Literal["inquiry", "first", "representment", "pre_arbitration", "arbitration"]
DisputeResult = Literal["upheld", "evidence", "liability", "withdrawn", "expired"]
FraudType = Literal["stolen", "counterfeit", "takeover", "first_party", "app_scam", "mule", "merchant"]


class Label(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One thing that was observed about a payment. Topic `labels` (one partition).

    `observed_at`: UTC epoch in ms at which the sender knew it. It drives the clock of maturity.
    `kind` `clock`: no payment; it says that all labels observed before `observed_at` have been sent.
        Every other kind needs `payment_id` and `account_id`.
    `amount`: minor units of `currency` in dispute; absent: all of the payment.
    `result`: how a dispute ended. `evidence`: the merchant showed that the cardholder took part.
        `liability`: the loss moved, and nothing was said about fraud.
    `references`: carried, not looked up.
    """

    kind: LabelKind
    observed_at: TimeMs
    payment_id: Id | None = None
    account_id: Id | None = None
    tenant_id: TenantId = TENANT_DEFAULT
    reason_code: Annotated[str, Meta(min_length=1, max_length=16)] | None = None
    dispute_id: Id | None = None
    stage: DisputeStage | None = None
    result: DisputeResult | None = None
    amount: Amount | None = None
    currency: Currency | None = None
    fraud_type: FraudType | None = None
    source: ShortText | None = None
    references: References | None = None
    schema_version: Annotated[int, Meta(ge=1)] = 1
