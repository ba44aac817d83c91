"""From what the model and the rules say to a verdict, and from the verdict to an outcome."""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from stream.features import PLAIN_ROWS
from stream.rules.canonical import canonical_json, version_of
from stream.rules.compiled import CompiledRules
from stream.rules.errors import RulesRefused
from topics.decision import PolicyMode

Verdict = Literal["approve", "challenge", "review", "decline"]

POLICY_BYTES_MAX: Final = 4_096
MATURED_FRAUDS_MAX: Final = 1_000_000_000

# By severity, which is also the precedence: the highest that anyone asks for stands.
VERDICTS: Final[tuple[Verdict, ...]] = ("approve", "challenge", "review", "decline")
APPROVE, CHALLENGE, REVIEW, DECLINE = range(4)

assert VERDICTS[DECLINE] == "decline", "a verdict's code is its place in VERDICTS"
assert APPROVE < CHALLENGE < REVIEW < DECLINE, "a greater code is a severer verdict"


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds and mode. Canonical bytes as in `RuleSet`: no default may ever change.

    `challenge_from`, `review_from`, `decline_from`: the fraud probability in (0, 1] from which on the model asks
    for that verdict; None: the model never does. They must not fall.
    `matured_frauds_min`: the frauds that the active model must have learned from before it has a say.
    """

    challenge_from: float | None = 0.2
    review_from: float | None = 0.5
    decline_from: float | None = 0.8
    mode: PolicyMode = "shadow"
    matured_frauds_min: int = 100
    layout: Literal[1] = 1


DEFAULT_POLICY: Final = Policy()

_decoder = msgspec.json.Decoder(Policy)


def decode_policy(body: bytes | str) -> Policy:
    """The policy in this JSON, validated. Raises `RulesRefused` with a path."""
    if len(body) > POLICY_BYTES_MAX:
        raise RulesRefused(f"policy has {len(body)} bytes, at most {POLICY_BYTES_MAX} are allowed")
    try:
        policy = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what, _, path = str(error).partition(" - at `")
        raise RulesRefused(what, path.rstrip("`") or "$") from error
    check_policy(policy)
    return policy


def check_policy(policy: Policy) -> None:
    """Raises `RulesRefused` at the first thing that can't be meant."""
    lowest = 0.0
    for name in ("challenge_from", "review_from", "decline_from"):
        threshold: float | None = getattr(policy, name)
        if threshold is None:
            continue
        if not 0.0 < threshold <= 1.0:
            raise RulesRefused(f"threshold {threshold} is not within (0, 1]", f"$.{name}")
        if threshold < lowest:
            raise RulesRefused(f"threshold {threshold} is below that of a milder verdict, {lowest}", f"$.{name}")
        lowest = threshold
    if not 0 <= policy.matured_frauds_min <= MATURED_FRAUDS_MAX:
        raise RulesRefused(
            f"{policy.matured_frauds_min} is not within 0 to {MATURED_FRAUDS_MAX}", "$.matured_frauds_min"
        )


def policy_bytes(policy: Policy) -> bytes:
    """The one spelling of this policy; equal policies have equal bytes."""
    return canonical_json(_as_decoded(policy))


def policy_version(policy: Policy) -> str:
    """16 hex digits of the BLAKE2b hash of the canonical bytes."""
    return version_of(_as_decoded(policy))


def _as_decoded(policy: Policy) -> Policy:
    # A policy made in Python may hold the int 1 as a threshold; it is the same threshold as 1.0.
    return msgspec.convert(msgspec.to_builtins(policy), Policy)


def model_ready(policy: Policy, matured_frauds: int) -> bool:
    """Whether a model that has learned from this many frauds has a say."""
    return matured_frauds >= policy.matured_frauds_min


def verdict(probability: float | None, hits: int, rules: CompiledRules, policy: Policy, model_ready: bool) -> Verdict:
    """The severest of what any rule that hit, and the model if it has a say, asks for.

    `probability`: None or NaN: there is no score, so the rules decide alone.
    """
    thresholds = _thresholds(policy) if model_ready and probability is not None else ()
    return VERDICTS[_severest(probability or 0.0, hits, _masks(rules), thresholds)]


def verdicts(
    probabilities: npt.NDArray[np.float64],
    hits: npt.NDArray[np.uint64],
    rules: CompiledRules,
    policy: Policy,
    model_ready: bool | npt.NDArray[np.bool_],
) -> npt.NDArray[np.int8]:
    """`verdict` for a batch: int8[n] codes into `VERDICTS`. A probability of NaN: no score.

    Raises `ValueError` if probabilities, of float64[n], and hits, of uint64[n], differ in length or type.
    """
    if probabilities.dtype != np.float64 or hits.dtype != np.uint64 or probabilities.shape != hits.shape:
        raise ValueError(
            f"expected float64[n] and uint64[n], got {probabilities.dtype}{list(probabilities.shape)} "
            f"and {hits.dtype}{list(hits.shape)}"
        )
    if len(hits) < PLAIN_ROWS and isinstance(model_ready, bool):
        return _verdicts_plain(probabilities.tolist(), hits.tolist(), rules, policy, model_ready)
    codes = np.zeros(len(hits), dtype=np.int8)
    for code, mask in _masks(rules):
        codes[(hits & np.uint64(mask)) != 0] = code
    for code, threshold in _thresholds(policy):
        asked = (probabilities >= threshold) & model_ready
        codes[asked] = np.maximum(codes[asked], np.int8(code))
    return codes


def _verdicts_plain(
    probabilities: list[float], hits: list[int], rules: CompiledRules, policy: Policy, model_ready: bool
) -> npt.NDArray[np.int8]:
    """`verdicts` of a few payments: each of numpy's calls costs as much as several of them."""
    masks = _masks(rules)
    thresholds = _thresholds(policy) if model_ready else ()
    codes = [_severest(p, hit, masks, thresholds) for p, hit in zip(probabilities, hits, strict=True)]
    return np.array(codes, np.int8)


def _severest(
    probability: float, hits: int, masks: Sequence[tuple[int, int]], thresholds: Sequence[tuple[int, float]]
) -> int:
    """The code of the severest verdict that a rule or a threshold asks for. Both ascend."""
    severest = APPROVE
    for code, mask in masks:
        if hits & mask:
            severest = code
    for code, threshold in thresholds:
        if code > severest and probability >= threshold:
            severest = code
    return severest


def outcome(verdict: Verdict, mode: PolicyMode) -> Verdict:
    """What blockers shall do: in shadow everything goes through."""
    return verdict if mode == "enforce" else "approve"


def _thresholds(policy: Policy) -> Sequence[tuple[int, float]]:
    pairs = ((CHALLENGE, policy.challenge_from), (REVIEW, policy.review_from), (DECLINE, policy.decline_from))
    return [(code, threshold) for code, threshold in pairs if threshold is not None]


def _masks(rules: CompiledRules) -> Sequence[tuple[int, int]]:
    """Per verdict the bits of the rules that ask for it."""
    return [(code, rules.mask_of(_action(code))) for code in (CHALLENGE, REVIEW, DECLINE)]


def _action(code: int) -> Literal["challenge", "review", "decline"]:
    return ("challenge", "review", "decline")[code - CHALLENGE]
