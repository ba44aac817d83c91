"""The first rule set: for the time before the model has a say, and for what a model learns too late.

Amounts are minor units of the base currency. Names and units are those of `stream.features`. The limits are round
numbers that hold for cards in euros or dollars; a deployment with other amounts publishes a set of its own.
"""

from typing import Final

from stream.rules.ruleset import Condition, Op, Rule, RuleSet

DAY_S: Final = 86_400.0


def _when(feature: str, op: Op, value: float) -> Condition:
    return Condition(feature=feature, op=op, value=value)


DEFAULT_RULES: Final = RuleSet(
    rules=(
        Rule(
            code="account_at_risk_amount",
            title="Account with several known frauds pays far above its habit",
            when=(
                _when("account_frauds_known_30d_count", "ge", 2.0),
                _when("account_amount_ratio", "gt", 4.0),
                _when("account_amount_z", "gt", 4.0),
            ),
            action="decline",
        ),
        Rule(
            code="account_at_risk",
            title="Account with several known frauds pays above its habit",
            when=(
                _when("account_frauds_known_30d_count", "ge", 2.0),
                _when("account_amount_ratio", "gt", 2.5),
            ),
            action="review",
        ),
        Rule(
            code="terminal_fraud_run",
            title="The terminal's latest matured payments were all fraud",
            when=(_when("terminal_fraud_run_count", "ge", 3.0),),
            action="review",
        ),
        Rule(
            code="terminal_fraud_share",
            title="A large share of the terminal's matured payments was fraud, lately too",
            when=(
                _when("terminal_fraud_28d_share", "gt", 0.3),
                _when("terminal_frauds_last_5_count", "ge", 2.0),
            ),
            action="challenge",
        ),
        Rule(
            code="amount_above_habit",
            title="Amount far above the account's habit",
            when=(
                _when("account_amount_ratio", "gt", 4.0),
                _when("account_amount_z", "gt", 4.0),
                _when("amount", "gt", 10_000.0),
            ),
            action="review",
        ),
        Rule(
            code="new_account_large_amount",
            title="Large amount on an account that is younger than a week",
            # Just after the first start every account looks new; half of 30 d must have been seen.
            when=(
                _when("account_age_s", "lt", 7 * DAY_S),
                _when("amount", "gt", 50_000.0),
                _when("account_coverage_30d_share", "ge", 0.5),
            ),
            action="review",
        ),
        Rule(
            code="velocity_1h",
            title="Many payments of the account within an hour",
            when=(_when("account_payments_1h_count", "gt", 10.0),),
            action="review",
        ),
        Rule(
            code="velocity_5m",
            title="Many payments of the account within five minutes",
            when=(_when("account_payments_5m_count", "gt", 5.0),),
            action="challenge",
        ),
        Rule(
            code="impossible_travel",
            title="Further from the account's last position than an aeroplane flies in that time",
            # Below 300 km a position may be that of a head office or of a mast, and the speed says little.
            when=(
                _when("account_speed_kmh", "gt", 1_000.0),
                _when("account_distance_km", "gt", 300.0),
            ),
            action="review",
        ),
    )
)
