"""A rule set bound to the columns of the feature row."""

import difflib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from stream.rules.errors import RulesRefused
from stream.rules.kernel import OP_CODES, evaluate_kernel, evaluate_plain
from stream.rules.ruleset import Action, Condition, Rule, RuleSet, check_ruleset, ruleset_version

NAMES_SUGGESTED_MAX: Final = 3


class RuleHit(Struct, frozen=True, kw_only=True):
    """One condition of a rule that spoke, or nearly did.

    `value`: the payment's feature, None if absent. `limit`: None for `absent` and `present`.
    Both are float32 values, as they were compared.
    """

    code: str
    feature: str
    value: float | None
    limit: float | None


class CompiledRules:
    """Read-only; evaluates batches of feature rows. Rule i of the rule set is bit i of the masks."""

    def __init__(self, ruleset: RuleSet, names: Sequence[str]) -> None:
        check_ruleset(ruleset)
        column_of = {name: column for column, name in enumerate(names)}
        if len(column_of) != len(names):
            raise ValueError("the names of the feature row are not unique")
        self.ruleset: Final = ruleset
        self.version: Final = ruleset_version(ruleset)
        self.names: Final = tuple(names)
        self.codes: Final = tuple(rule.code for rule in ruleset.rules)
        self._mask_of: dict[Action, int] = {"challenge": 0, "review": 0, "decline": 0}
        for index, rule in enumerate(ruleset.rules):
            self._mask_of[rule.action] |= 1 << index
        self._columns_of_rule = [
            [_column(condition, column_of, f"$.rules[{i}].when[{j}].feature") for j, condition in enumerate(rule.when)]
            for i, rule in enumerate(ruleset.rules)
        ]
        enabled = [index for index, rule in enumerate(ruleset.rules) if rule.enabled]
        self._plain = [(1 << index, self._conditions(index)) for index in enabled]
        conditions = [condition for _, of_rule in self._plain for condition in of_rule]
        counts = [len(of_rule) for _, of_rule in self._plain]
        self._starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int32)
        self._bits = np.array([bit for bit, _ in self._plain], dtype=np.uint64)
        self._used = np.array(sorted({column for column, _, _, _ in conditions}), dtype=np.int32)
        self._columns = np.searchsorted(self._used, [column for column, _, _, _ in conditions]).astype(np.int32)
        self._ops = np.array([OP_CODES[op] for _, op, _, _ in conditions], dtype=np.uint8)
        self._limits = np.array([limit for _, _, limit, _ in conditions], dtype=np.float32)
        self._relaxed = np.array([relaxed for _, _, _, relaxed in conditions], dtype=np.float32)

    def evaluate(self, rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """(hits, near), uint64[n] each, of the feature rows float32[n, F]; NaN is absent.

        A near hit is no hit: the two masks share no bit. Raises `ValueError` on another shape or type.
        """
        self._check_rows(rows)
        hits = np.empty(len(rows), dtype=np.uint64)
        near = np.empty(len(rows), dtype=np.uint64)
        evaluate_kernel(
            np.ascontiguousarray(rows),
            self._used,
            self._starts,
            self._bits,
            self._columns,
            self._ops,
            self._limits,
            self._relaxed,
            hits,
            near,
        )
        return hits, near

    def evaluate_plain(self, rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """The same as `evaluate`, in plain Python."""
        self._check_rows(rows)
        hits, near = evaluate_plain(rows.tolist(), self._plain)
        return np.array(hits, dtype=np.uint64), np.array(near, dtype=np.uint64)

    def describe(self, mask: int, row: npt.NDArray[np.float32]) -> list[RuleHit]:
        """What each rule in `mask` (a payment's hits, or its near hits) compared in its feature row float32[F].

        In the order of the rules, and of their conditions.
        """
        hits: list[RuleHit] = []
        for index, rule in enumerate(self.ruleset.rules):
            if not mask >> index & 1:
                continue
            for column, condition in zip(self._columns_of_rule[index], rule.when, strict=True):
                value = float(row[column])
                hits.append(
                    RuleHit(
                        code=rule.code,
                        feature=condition.feature,
                        value=None if value != value else value,
                        limit=None if condition.op in ("absent", "present") else _float32(condition.value),
                    )
                )
        return hits

    def mask_of(self, action: Action) -> int:
        """The bits of all rules, enabled or not, that ask for this action."""
        return self._mask_of[action]

    def _conditions(self, index: int) -> list[tuple[int, str, float, float]]:
        rule: Rule = self.ruleset.rules[index]
        return [
            (column, condition.op, _float32(condition.value), _relaxed(condition, rule.near))
            for column, condition in zip(self._columns_of_rule[index], rule.when, strict=True)
        ]

    def _check_rows(self, rows: npt.NDArray[np.float32]) -> None:
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise ValueError(f"expected float32[n, {len(self.names)}], got {rows.dtype}{list(rows.shape)}")


def compile_rules(ruleset: RuleSet, names: Sequence[str]) -> CompiledRules:
    """Binds the rules to the columns `names`. Raises `RulesRefused`, for an unknown name with the nearest ones."""
    return CompiledRules(ruleset, names)


def _column(condition: Condition, column_of: dict[str, int], path: str) -> int:
    column = column_of.get(condition.feature)
    if column is None:
        nearest = difflib.get_close_matches(condition.feature, list(column_of), n=NAMES_SUGGESTED_MAX)
        suggestion = f"; nearest are {', '.join(nearest)}" if nearest else ""
        raise RulesRefused(f"unknown feature {condition.feature!r}{suggestion}", path)
    return column


def _float32(value: float) -> float:
    return float(np.float32(value))


def _relaxed(condition: Condition, near: float) -> float:
    """The limit, `1 - near` of itself further towards silence; equality, absence and presence can't be relaxed."""
    limit = condition.value
    down = condition.op in ("gt", "ge")
    if not down and condition.op not in ("lt", "le"):
        return _float32(limit)
    towards_zero = down == (limit > 0.0)
    relaxed = limit * (near if towards_zero else 2.0 - near)
    # A limit near the end of float32 would become infinite, and `x < inf` holds for everything; so it stays.
    return _float32(relaxed) if abs(relaxed) < 3.4e38 else _float32(limit)
