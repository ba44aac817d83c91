"""The reason codes of an answer: at most five, always in the same order."""

from collections.abc import Sequence
from typing import Final

from stream.rules.compiled import CompiledRules
from stream.rules.ruleset import Action
from topics.decision import REASONS_MAX

_BY_SEVERITY: Final[tuple[Action, ...]] = ("decline", "review", "challenge")


def reason_codes(
    hits: int,
    rules: CompiledRules,
    contributions: Sequence[float] | None,
    groups: Sequence[str],
) -> tuple[str, ...]:
    """Codes of the rules that hit, by severity and then in the order of the rules; then the model's.

    `contributions`: what each model feature added to the logit; None: the model has no say.
    `groups`: the reason code of each of these features. Only positive contributions count, the largest
    first; of two equal ones the feature that comes first. A code that is already given is not given twice.
    Raises `ValueError` if the two differ in length.
    """
    codes = [
        rule.code
        for action in _BY_SEVERITY
        for index, rule in enumerate(rules.ruleset.rules)
        if rule.action == action and hits >> index & 1
    ]
    if contributions is not None:
        if len(contributions) != len(groups):
            raise ValueError(f"{len(contributions)} contributions, but {len(groups)} groups")
        # NaN > 0 is false: a contribution that is no number is no reason.
        positive = [feature for feature in range(len(groups)) if contributions[feature] > 0.0]
        positive.sort(key=lambda feature: (-contributions[feature], feature))
        codes.extend(groups[feature] for feature in positive)
    return tuple(dict.fromkeys(codes))[:REASONS_MAX]
