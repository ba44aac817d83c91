"""The rules beside the model, as data that travels in a control record."""

import math
import re
from typing import Final, Literal

import msgspec
from msgspec import Struct

from stream.rules.canonical import canonical_json, version_of
from stream.rules.errors import RulesRefused

Op = Literal["gt", "ge", "lt", "le", "eq", "absent", "present"]
Action = Literal["challenge", "review", "decline"]

RULES_MAX: Final = 64
CONDITIONS_PER_RULE_MAX: Final = 8
RULESET_BYTES_MAX: Final = 65_536
TITLE_CHARS_MAX: Final = 120
FEATURE_CHARS_MAX: Final = 64
CODE_PATTERN: Final = r"^[a-z][a-z0-9_]{0,47}$"
FLOAT32_MAX: Final = 3.4028234663852886e38

assert RULES_MAX <= 64, "the hits of one payment are one uint64"

_CODE = re.compile(CODE_PATTERN)


class Condition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison of a feature with a limit.

    `feature`: the name of a column of the feature row; its unit is the unit of `value`.
    `value`: the limit. It is rounded to float32, like the features, before anything is compared:
    so a limit of 0.1 equals a feature of 0.1. `absent` and `present` take none (0).
    """

    feature: str
    op: Op
    value: float = 0.0


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: speaks when *all* of its conditions hold.

    `near`: a fraction in (0, 1]. The rule is a near hit when it is silent, but would speak if every
    limit were relaxed to this fraction of itself (0.9: a limit of 10 is near from 9 on). 1: never near.
    A rule that is not `enabled` keeps its place in the bit mask, and is always silent.
    """

    code: str
    title: str
    when: tuple[Condition, ...]
    action: Action
    near: float = 0.9
    enabled: bool = True


class RuleSet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All rules that are active at once; rule i is bit i of a payment's hits.

    `layout` is the version of this layout. Fields that equal their default are left out of the canonical
    bytes, so a later field with a default changes no version: therefore no default may ever change.
    """

    rules: tuple[Rule, ...]
    layout: Literal[1] = 1


_decoder = msgspec.json.Decoder(RuleSet)


def _as_decoded(ruleset: RuleSet) -> RuleSet:
    # A rule set made in Python may hold the int 5 as a limit; it is the same limit as 5.0.
    return msgspec.convert(msgspec.to_builtins(ruleset), RuleSet)


def decode_ruleset(body: bytes | str) -> RuleSet:
    """The rule set in this JSON, validated. Raises `RulesRefused` with a path."""
    if len(body) > RULESET_BYTES_MAX:
        raise RulesRefused(f"rule set has {len(body)} bytes, at most {RULESET_BYTES_MAX} are allowed")
    try:
        ruleset = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what, _, path = str(error).partition(" - at `")
        raise RulesRefused(what, path.rstrip("`") or "$") from error
    check_ruleset(ruleset)
    return ruleset


def canonical_bytes(ruleset: RuleSet) -> bytes:
    """The one spelling of this rule set; equal rule sets have equal bytes."""
    return canonical_json(_as_decoded(ruleset))


def ruleset_version(ruleset: RuleSet) -> str:
    """16 hex digits of the BLAKE2b hash of the canonical bytes."""
    return version_of(_as_decoded(ruleset))


def check_ruleset(ruleset: RuleSet) -> None:
    """Raises `RulesRefused` at the first thing that can't be meant. Feature names are checked on compiling."""
    if len(ruleset.rules) > RULES_MAX:
        raise RulesRefused(f"{len(ruleset.rules)} rules, at most {RULES_MAX} are allowed", "$.rules")
    first_with_code: dict[str, int] = {}
    for index, rule in enumerate(ruleset.rules):
        path = f"$.rules[{index}]"
        _check_rule(rule, path)
        first = first_with_code.setdefault(rule.code, index)
        if first != index:
            raise RulesRefused(f"code {rule.code!r} is already that of $.rules[{first}]", f"{path}.code")


def _check_rule(rule: Rule, path: str) -> None:
    if not _CODE.fullmatch(rule.code):
        raise RulesRefused(f"code {rule.code!r} does not match {CODE_PATTERN}", f"{path}.code")
    if not 1 <= len(rule.title) <= TITLE_CHARS_MAX:
        raise RulesRefused(f"title has {len(rule.title)} characters, not 1 to {TITLE_CHARS_MAX}", f"{path}.title")
    if not 0.0 < rule.near <= 1.0:
        raise RulesRefused(f"near is {rule.near}, not within (0, 1]", f"{path}.near")
    if not rule.when:
        raise RulesRefused("a rule without a condition would speak on every payment", f"{path}.when")
    if len(rule.when) > CONDITIONS_PER_RULE_MAX:
        raise RulesRefused(
            f"{len(rule.when)} conditions, at most {CONDITIONS_PER_RULE_MAX} are allowed", f"{path}.when"
        )
    for index, condition in enumerate(rule.when):
        _check_condition(condition, f"{path}.when[{index}]")


def _check_condition(condition: Condition, path: str) -> None:
    if not 1 <= len(condition.feature) <= FEATURE_CHARS_MAX:
        raise RulesRefused(
            f"feature name has {len(condition.feature)} characters, not 1 to {FEATURE_CHARS_MAX}", f"{path}.feature"
        )
    if condition.op in ("absent", "present"):
        if condition.value != 0.0:
            raise RulesRefused(f"{condition.op!r} takes no value, got {condition.value}", f"{path}.value")
    elif not math.isfinite(condition.value) or abs(condition.value) > FLOAT32_MAX:
        raise RulesRefused(f"limit {condition.value} is not a finite float32", f"{path}.value")
