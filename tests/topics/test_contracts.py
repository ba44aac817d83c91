import json
from pathlib import Path

import msgspec
import pytest

import topics.schema
from topics.catalogue import JOURNALS_OF_KIND, TOPICS, catalogue
from topics.control import Skip, encode_control, parse_control, payload_as
from topics.currencies import CURRENCIES, EXPONENTS
from topics.dead_letter import EXCERPT_BYTES_MAX, dead_letter_headers, dead_letter_of
from topics.decision import Decision, Origin, Versions
from topics.limits import DAY_MS, Limits, contradictions
from topics.reasons import REASONS
from topics.refusals import CAUSES, Cause, Refusal
from topics.schema import schema_files


def test_the_schemas_in_the_repository_are_those_of_the_structs() -> None:
    folder = Path(topics.schema.__file__).parent / "schema"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == schema_files()


def test_schemas_name_the_currencies_and_the_required_fields() -> None:
    payment = json.loads(schema_files()["payment.json"])["$defs"]["Payment"]
    assert set(payment["required"]) == {"payment_id", "event_time", "account_id", "amount", "currency"}
    assert "EUR" in payment["properties"]["currency"]["enum"]


def test_topics_keep_the_time_of_the_broker_and_one_order_where_it_counts() -> None:
    assert len(TOPICS) == 10
    for topic in catalogue("x.", partitions=12).values():
        assert topic.config["message.timestamp.type"] == "LogAppendTime"
        assert topic.name.startswith("x.")
    assert {t.name for t in catalogue(partitions=12).values() if t.partitions == 1} == {"labels", "examples", "control"}
    assert "blocker" not in catalogue()["decision-details"].readers
    assert {name for names in JOURNALS_OF_KIND.values() for name in names} <= set(catalogue())


def test_a_dead_letter_hides_card_numbers_and_is_bounded() -> None:
    value = b'{"note":"4111 1111 1111 1111"}' + b"x" * 5000
    letter = dead_letter_of(Refusal(Cause.CARD_NUMBER, "$.note", "card number"), Origin("payments", 3, 4112), value)
    assert len(letter.excerpt.encode()) <= EXCERPT_BYTES_MAX
    assert "1111" not in letter.excerpt
    assert letter.length == len(value)
    assert ("__connect.errors.offset", b"4112") in dead_letter_headers(letter)
    cut = b"y" * 1015 + b" 4111111111111111"
    assert "4111" not in dead_letter_of(Refusal(Cause.CARD_NUMBER, "$", ""), Origin("p", 0, 0), cut).excerpt


def test_a_card_number_at_the_end_of_what_is_looked_at_leaves_no_part() -> None:
    value = b"4" * 16 + b"z" * (4096 - 24) + b"4111111111111111"
    letter = dead_letter_of(Refusal(Cause.CARD_NUMBER, "$", ""), Origin("p", 0, 0), value)
    assert "4" not in letter.excerpt


def test_a_head_that_was_cut_within_a_card_number_keeps_none_of_its_digits() -> None:
    head = b"z" * 1012 + b"411111111111"
    letter = dead_letter_of(Refusal(Cause.PAYLOAD_TOO_LARGE, "$", ""), Origin("p", 0, 0), head, length=70_000)
    assert letter.excerpt == "z" * 1012


def test_control_carries_its_payload() -> None:
    raw = encode_control(kind="skip", by="me", why="poison", payload=Skip(topic_id="x", partition=0, offset=7))
    control = parse_control(raw)
    assert not isinstance(control, Refusal)
    assert payload_as(control, Skip).offset == 7
    for bad in (
        b"",
        b"{",
        b'{"kind":"nope","by":"a","why":"b","payload":{}}',
        b'{"kind":"skip","payload":{}}',
        b"\xff",
    ):
        assert isinstance(parse_control(bad), Refusal)


@pytest.mark.parametrize("limits", [Limits(maturity_ms=181 * DAY_MS), Limits(answer_ttl_ms=46 * DAY_MS)])
def test_settings_that_contradict_each_other_are_named(limits: Limits) -> None:
    assert len(contradictions(limits)) == 1


def test_tables_are_whole() -> None:
    assert set(CAUSES) == set(Cause)
    assert EXPONENTS["JPY"] == 0
    assert EXPONENTS["BHD"] == 3
    assert "XXX" not in CURRENCIES
    assert all(reason.analyst and reason.customer for reason in REASONS.values())


def test_a_decision_leaves_out_what_it_does_not_say() -> None:
    decision = Decision(
        outcome="approve", verdict="approve", origin=Origin("payments", 0, 1), versions=Versions(engine=1, features=1)
    )
    assert set(msgspec.to_builtins(decision)) == {"outcome", "verdict", "origin", "versions"}
