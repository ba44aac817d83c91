"""Every cause for which a record is refused, and who must act on it."""

import enum
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

Actor = Literal["sender", "operator", "nobody"]


class Cause(enum.StrEnum):
    """The name under which a record is refused. A name never changes its meaning and is never reused."""

    EMPTY_VALUE = "empty_value"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    INVALID_UTF8 = "invalid_utf8"
    NUL_CHARACTER = "nul_character"
    NOT_JSON = "not_json"
    NESTING_TOO_DEEP = "nesting_too_deep"
    DUPLICATE_KEY = "duplicate_key"
    CARD_NUMBER = "card_number"
    SCHEMA_VERSION_TOO_NEW = "schema_version_too_new"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    AMOUNT_NEGATIVE = "amount_negative"
    AMOUNT_FLOAT = "amount_float"
    AMOUNT_TOO_LARGE = "amount_too_large"
    UNKNOWN_CURRENCY = "unknown_currency"
    UNKNOWN_VALUE = "unknown_value"
    OUT_OF_RANGE = "out_of_range"
    TEXT_TOO_LONG = "text_too_long"
    TEXT_TOO_SHORT = "text_too_short"
    TOO_MANY_ATTRIBUTES = "too_many_attributes"
    FUTURE_TIME = "future_time"
    TOO_OLD = "too_old"
    CONTRADICTION = "contradiction"
    ANSWER_EXPIRED = "answer_expired"
    ACCOUNT_MISMATCH = "account_mismatch"
    SOURCE_CAPPED = "source_capped"
    SKIPPED = "skipped"


class CauseText(Struct, frozen=True):
    """What a cause means, who must act, and what they should do."""

    meaning: str
    actor: Actor
    advice: str


CAUSES: Final = MappingProxyType(
    {
        Cause.EMPTY_VALUE: CauseText("The record has no value.", "sender", "Send no tombstones."),
        Cause.PAYLOAD_TOO_LARGE: CauseText("The value is larger than the limit.", "sender", "Drop what is not ours."),
        Cause.INVALID_UTF8: CauseText("The value is not UTF-8.", "sender", "Encode as UTF-8."),
        Cause.NUL_CHARACTER: CauseText("A NUL character is in the value.", "sender", "Trim padded fields."),
        Cause.NOT_JSON: CauseText("The value is not one JSON text (RFC 8259).", "sender", "Send JSON."),
        Cause.NESTING_TOO_DEEP: CauseText("Objects or arrays are nested too deeply.", "sender", "Flatten it."),
        Cause.DUPLICATE_KEY: CauseText("One object holds a key twice.", "sender", "Write each key once."),
        Cause.CARD_NUMBER: CauseText(
            "A text holds what is a card number by prefix, length and check digit.",
            "sender",
            "Send tokens. If it is an all-digit id, an operator can exempt the field (`card_exempt_fields`, by "
            "`fraud settings publish`).",
        ),
        Cause.SCHEMA_VERSION_TOO_NEW: CauseText(
            "`schema_version` is newer than this release.", "operator", "Upgrade the workers, then send again."
        ),
        Cause.WRONG_TYPE: CauseText("A field has another type than the contract's.", "sender", "See the schema."),
        Cause.MISSING_FIELD: CauseText("A required field is absent.", "sender", "See the schema."),
        Cause.AMOUNT_NEGATIVE: CauseText("An amount is below 0.", "sender", "Use `operation` for the direction."),
        Cause.AMOUNT_FLOAT: CauseText("An amount has a fraction or exponent.", "sender", "Send minor units."),
        Cause.AMOUNT_TOO_LARGE: CauseText("An amount is above the limit.", "sender", "Check the minor units."),
        Cause.UNKNOWN_CURRENCY: CauseText("A currency is not in ISO 4217.", "sender", "Send the alphabetic code."),
        Cause.UNKNOWN_VALUE: CauseText("A field holds a value that is not in its list.", "sender", "See the schema."),
        Cause.OUT_OF_RANGE: CauseText("A number is outside its range.", "sender", "See the schema."),
        Cause.TEXT_TOO_LONG: CauseText("A text is longer than its limit.", "sender", "See the schema."),
        Cause.TEXT_TOO_SHORT: CauseText("A text is empty or shorter than its limit.", "sender", "Leave it out."),
        Cause.TOO_MANY_ATTRIBUTES: CauseText("More than 32 attributes.", "sender", "Send fewer."),
        Cause.FUTURE_TIME: CauseText("A time is after the broker's, beyond the skew.", "sender", "Mend the clock."),
        Cause.TOO_OLD: CauseText("The event is beyond the horizon of deduplication.", "sender", "Use `backfill`."),
        Cause.CONTRADICTION: CauseText(
            "The payment id is known with other content.", "sender", "Use a new id, or `attempt` for a retry."
        ),
        Cause.ANSWER_EXPIRED: CauseText("A repeat after the answer was dropped.", "nobody", "It was answered then."),
        Cause.ACCOUNT_MISMATCH: CauseText("The account is not the one intake read.", "operator", "Report it."),
        Cause.SOURCE_CAPPED: CauseText(
            "Reserved: the source sends more than its cap. No release refuses for it yet.", "nobody", "None needed."
        ),
        Cause.SKIPPED: CauseText("An operator skipped this record.", "operator", "See the `control` record."),
    }
)

assert set(CAUSES) == set(Cause), "every cause says who must act"


class Refusal(Struct, frozen=True, gc=False):
    """This record can never pass; the next one may. `message` never holds anything of the record's values.

    `path`: JSON path of the field, or `$`. `message` reads `expected int, got str - at $.amount`.
    """

    cause: Cause
    path: str
    message: str
