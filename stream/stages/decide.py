"""Decide: rules, model, thresholds, and what is said about it.

What decides is set by control records: the model's version, the rules, the policy. Each holds from its marker on.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.columns.runs import Columns
from stream.columns.text import Names, Texts, decision_texts, details_texts
from stream.features import (
    FEATURES_VERSION,
    MODEL_FEATURES,
    MODEL_NAMES,
    model_rows,
    payment_features,
    whole_rows,
)
from stream.model.compiled import Compiled, Unsound
from stream.rules.compiled import CompiledRules, compile_rules
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import (
    DECLINE,
    DEFAULT_POLICY,
    VERDICTS,
    Policy,
    decode_policy,
    model_ready,
    outcome,
    policy_bytes,
    policy_version,
    verdicts,
)
from stream.rules.reasons import reason_codes
from stream.rules.ruleset import canonical_bytes, decode_ruleset
from stream.stages import keys
from stream.stages.control import FULL_NAMES, Meaning, ModelPayload, control_of
from stream.stages.kept import Shared
from stream.stages.model_reasons import MODEL_REASONS
from stream.stages.stage import Step, origin_n
from stream.stages.state import State
from topics.control import payload_as
from topics.decision import Decision, Origin, Outcome, Position, Versions
from topics.details import DecisionDetails, RuleHit
from topics.journal import RUN_MODES, Marker, Placed
from topics.payment import Payment

_encode = msgspec.json.Encoder().encode


class Decided(NamedTuple):
    """A run of payments, decided: arrays of one length. `seen`: the model's float32 features; `rows`: of each, as
    bytes. `probabilities`: float64, NaN without a model."""

    rows: list[bytes]
    full: NDArray[np.float32]
    probability: list[float | None]
    logit: list[float | None]
    hits: list[int]
    near: list[int]
    verdict: list[int]
    mode: str
    seen: NDArray[np.float32]
    probabilities: NDArray[np.float64]

    @property
    def declines(self) -> list[bool]:
        """Which payments are answered `decline` in earnest."""
        earnest = self.mode == "enforce"
        return [earnest and code == DECLINE for code in self.verdict]


class Answers(NamedTuple):
    """`values`: decisions, in order. `contributions`: by payment of the run, where it was not approved; None: the model
    had no say. `reasons`: as JSON, by place in `values`, where there are any."""

    values: list[bytes]
    contributions: dict[int, list[float] | None]
    reasons: dict[int, bytes]


class Origins(NamedTuple):
    """Of a run in columns: each payment's partition of `payments`, the offset of its block, and its `n`."""

    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int64]


_HEAD = b'{"outcome":"%b","verdict":"%b","origin":{"topic":"payments","partition":%d,"offset":'
_RULED = b',"policy_mode":"%b"'
_MODE_TEXTS = tuple(b"" if mode == "live" else b',"mode":"%b"' % mode.encode() for mode in RUN_MODES)
_DETAILS_MIDDLE = b',"feature_set":"%b","features":"' % FEATURES_VERSION.encode()


def finite(numbers: Sequence[float | None], at: Sequence[int]) -> list[float] | None:
    """Those `at` some places; None where no model has made them."""
    return None if not numbers or numbers[0] is None else cast("list[float]", [numbers[row] for row in at])


class Decider:
    """The model, the rules and the policy in force at this place of the journal. One writer: the stage.

    `refused_model`: the latest version, if it cannot score, and why; the one before it decides on. Else empty.
    """

    def __init__(self, state: State, meaning: Meaning, *, partition: int) -> None:
        self._state = state
        self._meaning = meaning
        self._partition = partition
        self._payment_features = payment_features
        kinds = (b"model", b"rules", b"policy", b"refused model")
        model, rules, policy, refused = state.get_many([keys.TABLE_MARKER + kind for kind in kinds])
        self.refused_model = (refused or b"").decode()
        self.model: Compiled | None = None if model is None else Compiled.decode(model)
        self.rules: CompiledRules = compile_rules(DEFAULT_RULES if rules is None else decode_ruleset(rules), FULL_NAMES)
        self.policy: Policy = DEFAULT_POLICY if policy is None else decode_policy(policy)
        self._set_versions()

    def apply(self, marker: Marker) -> None:
        """Take what a control record sets. Raises if it cannot be read, or a model's hash does not match."""
        if marker.kind == "model":
            self._take_model(payload_as(control_of(marker), ModelPayload))
        elif marker.kind == "rules":
            ruleset = decode_ruleset(bytes(control_of(marker).payload))
            self.rules = compile_rules(ruleset, FULL_NAMES)
            self._state.put(keys.TABLE_MARKER + b"rules", canonical_bytes(ruleset))
        elif marker.kind == "policy":
            self.policy = decode_policy(bytes(control_of(marker).payload))
            self._state.put(keys.TABLE_MARKER + b"policy", policy_bytes(self.policy))
        elif marker.kind != "engine":
            return
        self._set_versions()

    def _take_model(self, payload: ModelPayload) -> None:
        refused = ""
        try:
            model = Compiled.decode(payload.compiled)
            if model.features != len(MODEL_FEATURES):
                raise Unsound(f"it scores rows of {model.features} features, and ours have {len(MODEL_FEATURES)}")
            self.model = model
            self._state.put(keys.TABLE_MARKER + b"model", payload.compiled)
        except Unsound as error:
            refused = f"{payload.version}: {error}"
        if refused != self.refused_model:
            self.refused_model = refused
            self._state.put(keys.TABLE_MARKER + b"refused model", refused.encode())

    @property
    def model_has_say(self) -> bool:
        """Whether the model's probability decides; else rules alone do."""
        return self._model_has_say

    def _set_versions(self) -> None:
        model = self.model
        self._model_has_say = model is not None and model.ready and model_ready(self.policy, model.frauds)
        thresholds = {
            "challenge": self.policy.challenge_from,
            "review": self.policy.review_from,
            "decline": self.policy.decline_from,
        }
        self._outcomes: list[Outcome] = [outcome(verdict, self.policy.mode) for verdict in VERDICTS]
        self._policy_text = b"" if self.policy.mode == "shadow" else _RULED % self.policy.mode.encode()
        self._heads: dict[int, list[bytes]] = {}
        limits = {verdict: value for verdict, value in thresholds.items() if value is not None}
        versions = Versions(
            engine=self._meaning.engine,
            features=FEATURES_VERSION,
            model=None if model is None else model.version,
            rules=self.rules.version,
            policy=policy_version(self.policy),
        )
        # The same in every answer until the next marker: encoded once.
        versions_text = _encode(versions)
        self._versions = cast(Versions, msgspec.Raw(versions_text))
        self.shared = Shared(
            self._partition, self.policy.mode, self._outcomes, cast("list[Outcome]", [*VERDICTS]), versions_text
        )
        self.shared_key = self.shared.key
        self._middle = b'},"versions":%b,"position":{"partition":%d,"offset":' % (versions_text, self._partition)
        self._limits_text = _encode(limits)
        self._limits = cast("dict[str, float]", msgspec.Raw(self._limits_text)) if limits else {}

    def decide(
        self,
        payments: Sequence[Payment],
        accounts: NDArray[np.float32],
        terminals: NDArray[np.float32],
        amounts: NDArray[np.int64],
        minutes: NDArray[np.int32],
    ) -> Decided:
        """`accounts`, `terminals`: float32 (n, ENTITY_FEATURES); `amounts`: base currency, -1 absent; `minutes`: of
        the local week."""
        return self.judge(accounts, terminals, self._payment_features(payments, amounts, minutes))

    def judge(self, accounts: NDArray[np.float32], terminals: NDArray[np.float32], own: NDArray[np.float32]) -> Decided:
        """`own`: float32 (n, PAYMENT_FEATURES)."""
        n = len(own)
        full = whole_rows(accounts, terminals, own)
        seen = model_rows(full)
        hits, near = self.rules.evaluate(full)
        if self.model is None:
            probability = np.full(n, np.nan)
            logit = probability
        else:
            probability, logit = self.model.score(seen)
        codes = verdicts(probability, hits, self.rules, self.policy, self._model_has_say)
        none: list[float | None] = [None] * n
        return Decided(
            keys.pieces(seen.tobytes(), 4 * len(MODEL_NAMES)),
            full,
            none if self.model is None else probability.tolist(),
            none if self.model is None else logit.tolist(),
            hits.tolist(),
            near.tolist(),
            codes.tolist(),
            self.policy.mode,
            seen,
            probability,
        )

    def _contributions(self, decided: Decided, i: int) -> list[float] | None:
        """What each feature added to the logit; None if the model has no say."""
        if self.model is None or not self._model_has_say:
            return None
        return self.model.contributions(np.frombuffer(decided.rows[i], np.float32)).tolist()

    def answers(self, steps: Sequence[Step], placed: Sequence[Placed], decided: Decided, at: Sequence[int]) -> Answers:
        """What is said of the payments `at` of a run: the same bytes in every delivery. `steps`, `placed`: the whole
        run."""
        contributions = {i: self._contributions(decided, i) for i in at if decided.verdict[i]}
        reasons = {
            i: list(reason_codes(decided.hits[i], self.rules, added, MODEL_REASONS))
            for i, added in contributions.items()
        }
        partition, policy_mode, versions = self._partition, self.policy.mode, self._versions
        outcomes = self._outcomes
        values: list[bytes] = []
        for i in at:
            step, item, code = steps[i], placed[i], decided.verdict[i]
            payment = item.payment
            values.append(
                _encode(
                    Decision(
                        outcome=outcomes[code],
                        verdict=VERDICTS[code],
                        origin=Origin("payments", item.partition, item.position),
                        versions=versions,
                        position=Position(partition, step.offset, origin_n(step, 0)),
                        tenant_id=payment.tenant_id,
                        payment_id=payment.payment_id,
                        account_id=payment.account_id,
                        mode=payment.mode,
                        policy_mode=policy_mode,
                        probability=decided.probability[i],
                        reasons=reasons[i] if code else [],
                        event_time=payment.event_time,
                        respond_by=payment.respond_by,
                    )
                )
            )
        said = {k: _encode(reasons[i]) for k, i in enumerate(at) if reasons.get(i)}
        return Answers(values, contributions, said)

    def details(self, placed: Sequence[Placed], decided: Decided, at: Sequence[int], answers: Answers) -> list[bytes]:
        """Why: of each of the answers to the payments `at`, for those who tune and those who audit."""
        return [
            _encode(
                DecisionDetails(
                    decision=cast(Decision, msgspec.Raw(decision)),  # as it is: not encoded again
                    feature_set=FEATURES_VERSION,
                    features=decided.rows[i],
                    logit=decided.logit[i],
                    contributions=answers.contributions.get(i) or [],
                    limits=self._limits,
                    hits=self._described(decided.hits[i], decided.full[i]) if decided.hits[i] else [],
                    near_hits=self._described(decided.near[i], decided.full[i]) if decided.near[i] else [],
                    late=placed[i].late,
                )
            )
            for i, decision in zip(at, answers.values, strict=True)
        ]

    def texts(
        self, columns: Columns, origins: Origins, decided: Decided, at: Sequence[int], *, details: bool
    ) -> tuple[Texts, Texts | None, dict[int, bytes]]:
        """`answers` and `details` to the payments `at` of columns: the same bytes; and `reasons`."""
        rows = slice(None) if len(at) == columns.size else np.array(at, np.int64)
        spoken = [(i, row) for i, row in enumerate(at) if decided.verdict[row]]
        contributions = {i: self._contributions(decided, row) for i, row in spoken}
        reasons = {
            i: _encode(list(codes))
            for i, row in spoken
            if (codes := reason_codes(decided.hits[row], self.rules, contributions[i], MODEL_REASONS))
        }
        senders = origins.partitions.tolist()
        partitions = sorted(set(senders))
        heads = [head for partition in partitions for head in self._heads_of(partition)]
        heads_at = [partitions.index(partition) * len(VERDICTS) for partition in senders]
        answers = decision_texts(
            heads=heads,
            positions=columns.positions[rows],
            middle=self._middle,
            step_offsets=origins.offsets[rows],
            numbers=origins.numbers[rows],
            names=Names(columns.blob, columns.names[rows]),
            modes=columns.modes[rows],
            mode_texts=_MODE_TEXTS,
            policy_text=self._policy_text,
            verdicts=np.array([heads_at[row] + decided.verdict[row] for row in at], np.int64),
            probabilities=finite(decided.probability, at),
            reasons=reasons,
            event_ms=columns.event_ms[rows],
            respond_by=columns.respond_by[rows],
        )
        if not details:
            return answers, None, reasons
        described = details_texts(
            decisions=answers,
            middle=_DETAILS_MIDDLE,
            rows=decided.seen[rows],
            logits=finite(decided.logit, at),
            contributions={i: _encode(added) for i, added in contributions.items() if added},
            limits=self._limits_text,
            hits=self._hits(decided.hits, decided, at),
            near_hits=self._hits(decided.near, decided, at),
            late=columns.late[rows],
        )
        return answers, described, reasons

    def _heads_of(self, partition: int) -> list[bytes]:
        """How an answer begins, by verdict. `partition`: of `payments`."""
        heads = self._heads.get(partition)
        if heads is None:
            said = zip(self._outcomes, VERDICTS, strict=True)
            heads = self._heads[partition] = [_HEAD % (a.encode(), verdict.encode(), partition) for a, verdict in said]
        return heads

    def _hits(self, masks: Sequence[int], decided: Decided, at: Sequence[int]) -> dict[int, bytes]:
        if not any(masks):
            return {}
        return {i: _encode(self._described(masks[row], decided.full[row])) for i, row in enumerate(at) if masks[row]}

    def _described(self, mask: int, row: NDArray[np.float32]) -> list[RuleHit]:
        return [RuleHit(hit.code, hit.feature, hit.value, hit.limit) for hit in self.rules.describe(mask, row)]
