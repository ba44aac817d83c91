"""Which reason code a feature of the model stands for when it weighed most."""

from typing import Final

from stream.features import MODEL_NAMES
from topics.reasons import REASONS

_BY_PREFIX: Final = (
    ("account_frauds", "account_at_risk"),
    ("account_fraud_", "account_at_risk"),
    ("account_since_fraud", "account_at_risk"),
    ("account_outliers", "amount_unusual"),
    ("account_since_outlier", "amount_unusual"),
    ("account_amount_14d_max_ratio", "amount_unusual"),
    ("account_amount_ratio", "amount_unusual"),
    ("account_amount_z", "amount_unusual"),
    ("account_category_amount_ratio", "amount_unusual"),
    ("account_amount", "account_spend"),
    ("account_payments", "account_velocity"),
    ("account_since_last", "account_velocity"),
    ("account_others", "terminals_many"),
    ("account_categor", "merchant_category"),
    ("account_pair", "terminal_new_to_account"),
    ("account_hour", "time_unusual"),
    ("account_weekend", "time_unusual"),
    ("account_distance", "place_unusual"),
    ("account_speed", "place_unusual"),
    ("account_coverage", "history_short"),
    ("account_age", "account_new_amount_high"),
    ("terminal_payments", "terminal_velocity"),
    ("terminal_others", "terminal_velocity"),
    ("terminal_amount", "amount_unusual"),
    ("terminal_", "terminal_at_risk"),
    ("local_hour", "time_unusual"),
    ("is_weekend", "time_unusual"),
    ("mcc", "merchant_category"),
    ("amount", "amount_high"),
    ("cross_border", "place_unusual"),
)


def reason_of(feature: str) -> str:
    """The code of a model feature; `model_score` for those that have none of their own."""
    return next((code for prefix, code in _BY_PREFIX if feature.startswith(prefix)), "model_score")


MODEL_REASONS: Final = tuple(reason_of(name) for name in MODEL_NAMES)
assert set(MODEL_REASONS) <= set(REASONS), "every reason that an answer carries is in the catalogue"
