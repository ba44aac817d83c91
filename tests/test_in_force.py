"""What holds now is what the stages would obey: refused and skipped records do not count, and the last one does."""

from typing import Any

import msgspec
import pytest

from stream.errors import ConfigurationError
from stream.features import FEATURES_VERSION
from stream.in_force import Entry, InForce, version_in
from stream.operate import write_control
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import DEFAULT_POLICY, Policy, policy_version
from stream.rules.ruleset import RuleSet, ruleset_version
from stream.settings import Settings
from stream.stages.control import ModelPayload
from topics.control import Control, Engine, Init, Rates, Skip, SourceCap, encode_control, parse_control
from topics.limits import LIMITS_DEFAULT, Limits

CONTROL_ID = b"c" * 16


def in_force(*records: tuple[str, msgspec.Struct]) -> InForce:
    return InForce((entry(offset, *record) for offset, record in enumerate(records)), CONTROL_ID)


def entry(offset: int, kind: str, payload: msgspec.Struct) -> Entry:
    record = parse_control(encode_control(kind=kind, by="ana", why="test", payload=payload))
    assert isinstance(record, Control)
    return Entry(offset=offset, at_ms=1, record=record)


def model(offset: int, **changes: Any) -> ModelPayload:
    fields: dict[str, Any] = {
        "version": f"{offset}-a",
        "offset": offset,
        "features": FEATURES_VERSION,
        "compiled": b"w",
    }
    return ModelPayload(**{**fields, **changes})


def test_before_anyone_said_anything_the_defaults_hold() -> None:
    found = in_force()
    assert (found.entries, found.skips, found.init, found.model) == ({}, [], None, None)
    assert (found.limits, found.policy, found.rules) == (LIMITS_DEFAULT, DEFAULT_POLICY, DEFAULT_RULES)
    assert (found.rates.base, found.engine) == ("EUR", 1)


def test_the_last_record_of_a_kind_holds_and_the_first_init() -> None:
    first, second = Policy(mode="enforce"), Policy(mode="enforce", decline_from=0.9)
    empty = RuleSet(rules=())
    found = in_force(
        ("init", Init(offsets={"payments": [3]})),
        ("policy", first),
        ("rules", empty),
        ("settings", Limits(maturity_ms=7)),
        ("rates", Rates(base="USD", nano_base_per_minor={"EUR": 5})),
        ("engine", Engine(engine=1)),
        ("policy", second),
        ("init", Init(offsets={"payments": [9]})),
    )
    assert {kind: each.offset for kind, each in found.entries.items()} == {
        "init": 0, "policy": 6, "rules": 2, "settings": 3, "rates": 4, "engine": 5,
    }  # fmt: skip
    assert (found.policy, found.rules, found.limits.maturity_ms, found.rates.base) == (second, empty, 7, "USD")
    assert found.init == Init(offsets={"payments": [3]})


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("policy", Policy(challenge_from=0.9, review_from=0.1)),
        ("settings", Limits(answer_ttl_ms=LIMITS_DEFAULT.dedupe_horizon_ms + 1)),
        ("engine", Engine(engine=99)),
        ("model", model(1, held="the gate")),
        ("model", model(1, features="others")),
        ("init", Init(offsets={})),
        ("source_cap", SourceCap(account_id="a")),
    ],
)
def test_a_record_that_no_stage_obeys_does_not_hold(kind: str, payload: msgspec.Struct) -> None:
    assert in_force((kind, payload)).entries == {}


def test_of_versions_from_one_place_the_first_holds_and_its_weights_are_not_kept() -> None:
    found = in_force(("model", model(5, version="5-a")), ("model", model(5, version="5-b")), ("model", model(4)))
    assert found.model == model(5, version="5-a", compiled=b"")


def test_a_skip_counts_where_a_partition_stopped_and_a_skipped_record_of_control_does_not_hold() -> None:
    at, other = (Skip(topic_id=CONTROL_ID.hex(), partition=0, offset=offset) for offset in (1, 0))
    kept, skipped = Policy(mode="enforce"), Policy(mode="enforce", decline_from=0.9)
    found = in_force(("policy", kept), ("policy", skipped), ("stopped", at), ("skip", other), ("skip", at))
    assert (found.policy, [each.offset for each in found.skips]) == (kept, [4])
    assert found.has_stopped(CONTROL_ID, 0, 1)
    assert not found.has_stopped(CONTROL_ID, 0, 0)


def test_the_version_of_a_payload_is_the_one_that_decisions_report() -> None:
    assert version_in(DEFAULT_POLICY) == policy_version(DEFAULT_POLICY)
    assert version_in(DEFAULT_RULES) == ruleset_version(DEFAULT_RULES)
    assert version_in(model(7)) == "7-a"
    assert version_in(LIMITS_DEFAULT) is None


@pytest.mark.parametrize("said", [{"by": "", "why": "w"}, {"by": "b", "why": ""}, {"by": "b", "why": "w" * 1025}])
def test_a_record_that_no_worker_could_read_is_never_written(said: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"not written: .* - at \$\.(by|why)"):
        write_control(Settings(bootstrap="127.0.0.1:9"), "policy", DEFAULT_POLICY, **said)
