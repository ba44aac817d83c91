"""What a processor asks us about: one attempt to move money."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Mode = Literal["live", "test", "backfill"]
Operation = Literal["authorisation", "verification", "incremental", "refund", "payout"]
Channel = Literal["ecom", "pos", "atm", "transfer", "mobile_money"]
CheckResult = Literal["match", "partial", "no_match", "not_checked", "unavailable"]

SCHEMA_VERSION = 1
TENANT_DEFAULT = "default"

ID_LENGTH_MAX = 128
AMOUNT_BOUND = 10**15
TIME_MS_BOUND = 253_402_300_799_999  # the last millisecond of the year 9999
ATTRIBUTES_MAX = 32
INT64_MAX = 2**63 - 1

assert AMOUNT_BOUND < 2**53, "readers in JavaScript must hold an amount exactly"

TenantId = Annotated[str, Meta(min_length=1, max_length=64)]
Id = Annotated[str, Meta(min_length=1, max_length=ID_LENGTH_MAX)]
ShortText = Annotated[str, Meta(min_length=1, max_length=32)]
Country = Annotated[str, Meta(min_length=2, max_length=2, description="ISO 3166-1 alpha-2")]
Currency = Annotated[str, Meta(min_length=3, max_length=3, description="ISO 4217 alphabetic")]
Amount = Annotated[int, Meta(ge=0, le=AMOUNT_BOUND, description="minor units of the currency")]
TimeMs = Annotated[int, Meta(ge=0, le=TIME_MS_BOUND, description="UTC epoch, milliseconds")]
AttributeName = Annotated[str, Meta(min_length=1, max_length=64)]
AttributeText = Annotated[str, Meta(max_length=256)]
AttributeInt = Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)]
Attributes = Annotated[dict[AttributeName, AttributeText | AttributeInt | float | bool | None], Meta(max_length=32)]


class References(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Numbers under which others know the payment. Carried, never looked up."""

    arn: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    rrn: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    network_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


# Declared in this order for the codec: what a processor may change when it sends the same payment
# again comes last, so that a fingerprint is a prefix of the canonical bytes.
class Payment(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One payment to be judged. Topic `payments`, key `account_id`.

    `amount`: minor units of `currency` (1 EUR = 100, 1 JPY = 1); 0 is an account verification.
    `event_time`: UTC epoch in ms, by the acquirer's clock, never ours.
    `account_id`: the account that pays, as a token; never a card number.
    `respond_by`: UTC epoch in ms after which the answer is of no use to the sender.
    `mode`: `test` is answered and touches nothing; `backfill` builds state and is not answered.
    `cvv`, `avs`: the result of the check, never what was checked.
    `utc_offset_min`: local time of the payer minus UTC, in minutes.
    `attributes`: at most 32 scalars, carried through to rules.
    A field that is absent and one that is null are the same.
    """

    payment_id: Id
    event_time: TimeMs
    account_id: Id
    amount: Amount
    currency: Currency

    tenant_id: TenantId = TENANT_DEFAULT
    mode: Mode = "live"
    operation: Operation = "authorisation"
    parent_payment_id: Id | None = None
    order_id: Id | None = None
    customer_id: Id | None = None
    direction: Literal["outbound", "inbound"] | None = None
    initiator: Literal["customer", "merchant"] | None = None
    stored_credential: Literal["none", "first", "recurring", "installment", "unscheduled"] | None = None

    terminal_id: Id | None = None
    merchant_id: Id | None = None
    mcc: Annotated[str, Meta(min_length=4, max_length=4, description="ISO 18245")] | None = None
    merchant_country: Country | None = None
    issuer_country: Country | None = None
    channel: Channel | None = None
    scheme: ShortText | None = None
    entry_mode: (
        Literal["chip", "contactless", "magstripe", "fallback", "manual", "credential_on_file", "wallet", "qr"] | None
    ) = None
    funding: Literal["credit", "debit", "prepaid", "charge", "account", "wallet"] | None = None
    billing_amount: Amount | None = None
    billing_currency: Currency | None = None

    three_ds: Literal["frictionless", "challenged", "attempted", "failed", "none"] | None = None
    eci: Annotated[str, Meta(min_length=1, max_length=2)] | None = None
    liability_shift: bool | None = None
    avs: CheckResult | None = None
    cvv: CheckResult | None = None

    counterparty_id: Id | None = None
    counterparty_bank: ShortText | None = None
    payee_check: Literal["match", "close_match", "no_match", "unavailable"] | None = None

    device_id: Id | None = None
    ip: Annotated[str, Meta(min_length=2, max_length=45)] | None = None
    latitude: Annotated[float, Meta(ge=-90.0, le=90.0)] | None = None
    longitude: Annotated[float, Meta(ge=-180.0, le=180.0)] | None = None
    utc_offset_min: Annotated[int, Meta(ge=-1440, le=1440)] | None = None

    references: References | None = None
    attributes: Attributes | None = None

    respond_by: TimeMs | None = None
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION


assert Payment.__struct_fields__[-3:] == ("respond_by", "attempt", "schema_version"), "the codec cuts this tail"
