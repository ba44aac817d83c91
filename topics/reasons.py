"""Why: the codes that an answer may carry, with what to tell whom."""

from types import MappingProxyType
from typing import Final

from msgspec import Struct


class Reason(Struct, frozen=True):
    """One code. `may_be_told`: whether `customer` may be shown to the payer; else it helps a fraudster."""

    code: str
    analyst: str
    customer: str
    may_be_told: bool


_QUIET = "We could not confirm this payment. Please contact us."


def _told(code: str, analyst: str, customer: str) -> Reason:
    return Reason(code, analyst, customer, may_be_told=True)


def _quiet(code: str, analyst: str) -> Reason:
    return Reason(code, analyst, _QUIET, may_be_told=False)


_ALL = (
    _told(
        "account_velocity", "More payments of the account in a short time than the limit.", "Many payments in a row."
    ),
    _told("account_spend", "The account spent more in the window than the limit.", "A spending limit was reached."),
    _told("amount_high", "The amount is above the limit for one payment.", "The amount is above a limit."),
    _told("amount_unusual", "The amount is far from what the account usually pays.", "The amount is unusual for you."),
    _told(
        "account_new_amount_high",
        "An account with little history pays a large amount.",
        "A large amount for a new account.",
    ),
    _told("velocity_5m", "More payments of the account within 5 minutes than the limit.", "Many payments in a row."),
    _told("velocity_1h", "More payments of the account within an hour than the limit.", "Many payments in a row."),
    _told("amount_above_habit", "The amount is far above the account's habit.", "The amount is unusual for you."),
    _told("new_account_large_amount", "A large amount on a young account.", "A large amount for a new account."),
    _quiet("account_at_risk_amount", "An account with several known frauds pays far above its habit."),
    _quiet("terminal_fraud_run", "The terminal's latest matured payments were all fraud."),
    _quiet("terminal_fraud_share", "A large share of the terminal's matured payments was fraud."),
    _quiet("impossible_travel", "Further from the last position than one can travel in that time."),
    _quiet("account_at_risk", "Recent fraud was reported on the account."),
    _quiet("terminal_at_risk", "Recent fraud was reported at the terminal."),
    _quiet("terminal_velocity", "More payments at the terminal in a short time than is usual."),
    _quiet("terminal_new_to_account", "The account never paid at this terminal."),
    _quiet("terminals_many", "The account paid at many terminals in a short time."),
    _quiet("account_dormant", "The account pays after a long silence."),
    _quiet("merchant_category", "The merchant's category carries risk."),
    _quiet("time_unusual", "The hour is unusual."),
    _quiet("place_unusual", "The place is far from where the account usually pays, or abroad."),
    _quiet("model_score", "The model's probability is above the threshold; no single feature stands out."),
    _quiet("model_absent", "No model scored the payment; rules alone decided."),
    _quiet("history_short", "The state does not cover the windows yet (a cold start)."),
    _quiet("amount_not_converted", "No exchange rate: the features of amounts are absent."),
    _quiet("late_event", "The payment came late; it was placed where it belongs."),
)

REASONS: Final = MappingProxyType({reason.code: reason for reason in _ALL})

assert len(REASONS) == len(_ALL), "a code means one thing"
