"""What operators write to `control`, and what they read of it, on a real broker."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stream.broker.topic_admin import delete_topics, describe_topics
from stream.broker.whole_topic import whole_partition
from stream.cli.commands import app
from stream.errors import OperatorError
from stream.in_force import read_in_force
from stream.operate import initialise, topic_id_of, write_control
from stream.rules.policy import DEFAULT_POLICY, Policy, policy_bytes, policy_version
from stream.rules.ruleset import RuleSet, canonical_bytes, ruleset_version
from stream.settings import Settings
from topics.catalogue import catalogue
from topics.control import Rates, Skip
from topics.limits import DAY_MS, Limits

pytestmark = pytest.mark.kafka
RUN = CliRunner()
SAID = ("--by", "ana", "--why", "test")


class Desk:
    """An operator's. `settings`: of a deployment that is his own."""

    def __init__(self, kafka: Any) -> None:
        self.settings = Settings(bootstrap=kafka.bootstrap, prefix=kafka.fresh_prefix())

    def run(self, *words: str, code: int = 0) -> Any:
        """What the command prints: JSON if it was asked for."""
        where = ["--bootstrap", self.settings.bootstrap or "", "--prefix", self.settings.prefix]
        done = RUN.invoke(app, [*words, *where], env={"COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return json.loads(done.stdout.splitlines()[-1]) if "--json" in words else " ".join(done.output.split())


@pytest.fixture
def desk(kafka: Any) -> Desk:
    """Before `fraud init`."""
    return Desk(kafka)


@pytest.fixture
def begun(desk: Desk) -> Desk:
    initialise(desk.settings, "earliest", by="test", why="test", partitions=2)
    return desk


def test_a_second_init_changes_nothing_and_names_the_topics_that_are_gone(desk: Desk) -> None:
    first = desk.run("init", "--from", "earliest", "--partitions", "2", "--json")
    assert (first["existed"], len(first["created"]), first["missing"]) == (False, len(catalogue()), [])
    records = len(_control(desk))
    again = desk.run("init", "--from", "latest", "--maturity-days", "9", "--mode", "enforce", "--json")
    assert again == {"created": [], "offsets": first["offsets"], "existed": True, "missing": []}

    gone = desk.settings.prefix + "terminal-journal"
    delete_topics(desk.settings.client(), [gone])
    while describe_topics(desk.settings.client(), [gone]):
        pass  # the controller has deleted it; the broker's own view follows
    again = desk.run("init", "--from", "earliest", "--json")
    assert (again["created"], again["missing"]) == ([], [gone])
    assert describe_topics(desk.settings.client(), [gone]) == {}, "it would be made again, empty"
    assert gone in desk.run("init", "--from", "earliest")
    assert len(_control(desk)) == records


def test_a_mode_keeps_the_thresholds_that_are_in_force(begun: Desk, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    own = Policy(mode="enforce", challenge_from=0.3, review_from=None, decline_from=0.9, matured_frauds_min=7)
    file.write_bytes(policy_bytes(own))
    told = begun.run("mode", "enforce", "--policy", str(file), *SAID, "--json")
    assert (told["version"], told["mode"], told["decline_from"]) == (policy_version(own), "enforce", 0.9)

    shadow = Policy(mode="shadow", challenge_from=0.3, review_from=None, decline_from=0.9, matured_frauds_min=7)
    said = begun.run("mode", "shadow", *SAID)
    assert said.startswith(
        f"Policy {policy_version(shadow)}: shadow, challenge from 0.3, review never, decline from 0.9"
    )
    found = read_in_force(begun.settings)
    assert found.policy == shadow
    assert found.entries["policy"].record.version == policy_version(shadow)


def test_rules_are_recorded_under_the_version_that_decisions_report(begun: Desk, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_bytes(canonical_bytes(RuleSet(rules=())))
    version = ruleset_version(RuleSet(rules=()))
    assert begun.run("rules", "publish", str(file), *SAID, "--json")["version"] == version
    assert read_in_force(begun.settings).entries["rules"].record.version == version


def test_without_a_deployment_nothing_is_written(desk: Desk) -> None:
    assert "fraud init" in desk.run("mode", "enforce", *SAID, code=1)


def test_a_broker_that_does_not_answer_is_an_error_and_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.broker.topic_admin.REQUEST_TIMEOUT_S", 2.0)
    with pytest.raises(OperatorError, match="can't be described"):
        read_in_force(Settings(bootstrap="127.0.0.1:9"))


def test_settings_change_one_by_one_and_nothing_that_a_worker_would_refuse_is_written(
    begun: Desk, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"

    def publish(changes: dict[str, Any], *more: str, code: int = 0) -> Any:
        file.write_text(json.dumps(changes))
        return begun.run("settings", "publish", str(file), *SAID, *more, code=code)

    told = publish({"maturity_ms": 9 * DAY_MS}, "--json")
    assert told["changed"] == {"maturity_ms": [45 * DAY_MS, 9 * DAY_MS]}
    said = publish({"card_exempt_fields": ["attributes.order_no"]})
    assert 'card_exempt_fields: [], now ["attributes.order_no"] 1 settings changed' in said
    wanted = Limits(maturity_ms=9 * DAY_MS, card_exempt_fields=("attributes.order_no",))
    assert read_in_force(begun.settings).limits == wanted

    records = len(_control(begun))
    assert "unknown field 'maturity'" in publish({"maturity": 1}, code=1)
    assert "at `$.maturity_ms`" in publish({"road_ms": DAY_MS}, code=1)
    assert len(_control(begun)) == records
    shown = begun.run("settings", "show", "--json")
    assert shown == json.loads(json.dumps({name: getattr(wanted, name) for name in Limits.__struct_fields__}))
    assert publish(shown, "--json")["changed"] == {}, "what is shown can be published"


def test_rates_are_replaced_as_a_whole_and_those_that_end_are_named(begun: Desk, tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text('{"base": "EUR", "nano_base_per_minor": {"USD": 920000000, "JPY": 600000000}}')
    begun.run("rates", "publish", str(file), *SAID)
    file.write_text('{"base": "EUR", "nano_base_per_minor": {"USD": 930000000}}')
    told = begun.run("rates", "publish", str(file), *SAID, "--json")
    assert (told["base_before"], told["rates"], told["dropped"]) == ("EUR", 1, ["JPY"])
    assert read_in_force(begun.settings).rates == Rates(base="EUR", nano_base_per_minor={"USD": 930_000_000})
    file.write_text('{"base": "EUR", "nano_base_per_minor": {"USDX": 930000000}}')
    assert "$.nano_base_per_minor.USDX" in begun.run("rates", "publish", str(file), *SAID, code=1)


def test_an_init_that_no_worker_would_obey_makes_nothing(desk: Desk) -> None:
    assert "no currency" in desk.run("init", "--from", "earliest", "--base-currency", "eur", code=1)
    assert describe_topics(desk.settings.client(), [desk.settings.prefix + "control"]) == {}


def test_control_show_tells_what_holds_and_who_said_so(begun: Desk, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_bytes(canonical_bytes(RuleSet(rules=())))
    offset = begun.run("rules", "publish", str(file), *SAID, "--json")["offset"]
    assert begun.run("rules", "show", "--in-force", "--json") == {"rules": []}
    place = (topic_id_of(begun.settings, "account-journal"), 1, 7)
    _worker_stops(begun, *place)
    skipped = begun.run("skip", "account-journal", "1", "7", *SAID, "--json")["control_offset"]
    assert "no worker has stopped" in begun.run("skip", "account-journal", "1", "8", *SAID, code=1)

    told = begun.run("control", "show", "--json")
    rules = told["rules"]
    assert (rules["offset"], rules["by"], rules["why"]) == (offset, "ana", "test")
    assert (rules["version"], rules["payload"]["rules"]) == (ruleset_version(RuleSet(rules=())), [])
    assert (told["policy"]["offset"], told["policy"]["version"]) == (None, policy_version(DEFAULT_POLICY))
    assert told["init"]["payload"]["offsets"]["payments"] == [0, 0]
    assert told["model"] == {"offset": None, "version": None, "payload": None}
    assert [(skip["offset"], skip["payload"]["offset"]) for skip in told["skips"]] == [(skipped, 7)]
    said = begun.run("control", "show")
    assert "ana" in said
    assert "nobody" in said


def _worker_stops(desk: Desk, topic_id: bytes, partition: int, offset: int) -> None:
    """What a worker writes whose partition stands at that record."""
    place = Skip(topic_id=topic_id.hex(), partition=partition, offset=offset)
    write_control(desk.settings, "stopped", place, by="worker", why="apply failed")


def _control(desk: Desk) -> list[Any]:
    return list(whole_partition(desk.settings.client(), desk.settings.prefix + "control", 0))
