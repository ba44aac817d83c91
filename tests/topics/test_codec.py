import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topics import codec
from topics.codec import Parsed, ParsedLabel, ParsedUpdate, parse_label, parse_payment, parse_update
from topics.limits import Limits
from topics.payment import Payment, References
from topics.refusals import Cause, Refusal

LIMITS = Limits()
PAYMENT: dict[str, Any] = {
    "payment_id": "01HZX3V9Q6W3K8T4N2B7C5D1E0",
    "event_time": 1_524_000_000_000,
    "account_id": "acc-0004821",
    "amount": 5712,
    "currency": "EUR",
}
LABEL: dict[str, Any] = {"kind": "chargeback", "observed_at": 1, "payment_id": "p", "account_id": "a"}


def payment(**fields: Any) -> bytes:
    return json.dumps({**PAYMENT, **fields}).encode()


def parsed(raw: bytes, limits: Limits = LIMITS) -> Parsed:
    result = parse_payment(raw, limits)
    assert isinstance(result, Parsed), result
    return result


def without(field: str) -> bytes:
    return json.dumps({key: value for key, value in PAYMENT.items() if key != field}).encode()


REFUSED: list[tuple[bytes | None, Cause, str]] = [
    (None, Cause.EMPTY_VALUE, "$"),
    (b"", Cause.EMPTY_VALUE, "$"),
    (payment(note="x" * 70_000), Cause.PAYLOAD_TOO_LARGE, "$"),
    (payment(order_id="\u00e9").replace(b"\\u00e9", b"\xff"), Cause.INVALID_UTF8, "$"),
    (payment(order_id="a\0b"), Cause.NUL_CHARACTER, "$.order_id"),
    (payment(note=["a\0b"]), Cause.NUL_CHARACTER, "$.note[*]"),
    (b"\0" + payment(), Cause.NUL_CHARACTER, "$"),
    (b"hello", Cause.NOT_JSON, "$"),
    (payment() + b"x", Cause.NOT_JSON, "$"),
    (payment()[:-1], Cause.NOT_JSON, "$"),
    (payment(order_id="x").replace(b'"x"', b'"\\ud800"'), Cause.NOT_JSON, "$"),
    (payment(order_id="x").replace(b'"x"', b"NaN"), Cause.NOT_JSON, "$"),
    (payment(note=0).replace(b'"note": 0', b'"note": ' + b"[" * 5000 + b"]" * 5000), Cause.NESTING_TOO_DEEP, "$"),
    (b'{"a":' * 9000, Cause.NESTING_TOO_DEEP, "$"),
    (payment()[:-1] + b', "amount": 1}', Cause.DUPLICATE_KEY, "$.amount"),
    (payment()[:-1] + b', "\\u0061mount": 1}', Cause.DUPLICATE_KEY, "$.amount"),
    (payment()[:-1] + b', "amount" : 5712, "order_id": "x\\":y"}', Cause.DUPLICATE_KEY, "$.amount"),
    (payment()[:-1] + b', "attributes": {"a": 1, "a": 1}}', Cause.DUPLICATE_KEY, "$"),
    (payment(order_id="4111111111111111"), Cause.CARD_NUMBER, "$.order_id"),
    (payment(note={"deep": "4111 1111 1111 1111"}), Cause.CARD_NUMBER, "$.note.deep"),
    (payment(attributes={"5555-5555-5555-4444": 1}), Cause.CARD_NUMBER, "$.attributes.*"),
    (payment(attributes={"a": "paid 4111%201111%201111%201111"}), Cause.CARD_NUMBER, "$.attributes.a"),
    (payment(references={"rrn": "378282246310005"}), Cause.CARD_NUMBER, "$.references.rrn"),
    (payment(schema_version=2, amount="new in 2"), Cause.SCHEMA_VERSION_TOO_NEW, "$.schema_version"),
    (payment(amount="5712"), Cause.WRONG_TYPE, "$.amount"),
    (payment(amount=None), Cause.WRONG_TYPE, "$.amount"),
    (b"[]", Cause.WRONG_TYPE, "$"),
    (payment(attributes={"a": [1]}), Cause.WRONG_TYPE, "$.attributes[...]"),
    (without("payment_id"), Cause.MISSING_FIELD, "$.payment_id"),
    (payment(amount=-1), Cause.AMOUNT_NEGATIVE, "$.amount"),
    (payment(amount=1.5), Cause.AMOUNT_FLOAT, "$.amount"),
    (payment(amount=0).replace(b'"amount": 0', b'"amount": 1e2'), Cause.AMOUNT_FLOAT, "$.amount"),
    (payment(amount=10**12 + 1), Cause.AMOUNT_TOO_LARGE, "$.amount"),
    (payment(amount=10**30), Cause.AMOUNT_TOO_LARGE, "$.amount"),
    (payment(currency="EUX"), Cause.UNKNOWN_CURRENCY, "$.currency"),
    (payment(billing_currency="eur"), Cause.UNKNOWN_CURRENCY, "$.billing_currency"),
    (payment(mode="prod"), Cause.UNKNOWN_VALUE, "$.mode"),
    (payment(latitude=91.0), Cause.OUT_OF_RANGE, "$.latitude"),
    (payment(attributes={"a": 2**64}), Cause.OUT_OF_RANGE, "$.attributes[...]"),
    (payment(account_id="a" * 129), Cause.TEXT_TOO_LONG, "$.account_id"),
    (payment(account_id=""), Cause.TEXT_TOO_SHORT, "$.account_id"),
    (payment(attributes={str(i): i for i in range(33)}), Cause.TOO_MANY_ATTRIBUTES, "$.attributes"),
]
BY_STAGES = {Cause.FUTURE_TIME, Cause.TOO_OLD, Cause.CONTRADICTION, Cause.ANSWER_EXPIRED, Cause.ACCOUNT_MISMATCH,
             Cause.SOURCE_CAPPED, Cause.SKIPPED}  # fmt: skip


@pytest.mark.parametrize(("raw", "cause", "path"), REFUSED)
def test_a_bad_payment_is_refused_by_name(raw: bytes | None, cause: Cause, path: str) -> None:
    result = parse_payment(raw, LIMITS)
    assert isinstance(result, Refusal), result
    assert (result.cause, result.path) == (cause, path), result
    assert "4111" not in result.message + result.path


def test_every_cause_of_the_codec_has_an_example() -> None:
    assert {cause for _, cause, _ in REFUSED} | BY_STAGES == set(Cause)


def test_a_message_reads_as_promised() -> None:
    result = parse_payment(payment(amount="1"), LIMITS)
    assert isinstance(result, Refusal)
    assert result.message == "expected int, got str - at $.amount"


def test_the_refusal_of_a_card_number_names_the_exemption_and_the_exemption_holds() -> None:
    raw = payment(payment_id="4111111111111111", attributes={"no": "4111111111111111"})
    result = parse_payment(raw, LIMITS)
    assert isinstance(result, Refusal)
    assert "card_exempt_fields" in result.message
    assert parsed(raw, Limits(card_exempt_fields=("payment_id", "attributes.*"))).payment.amount == 5712
    assert isinstance(parse_payment(raw, Limits(card_exempt_fields=("payment_id",))), Refusal)


@pytest.mark.parametrize("parse", [parse_payment, parse_label, parse_update])
def test_a_text_that_is_encoded_over_and_over_is_looked_at_a_few_times_only(parse: Any) -> None:
    """Each `%25` more took one more call: a thousand of them raised, and stopped the account's partition."""
    endless = "%" + "25" * 1100
    assert isinstance(parse_payment(payment(note=endless), LIMITS), Parsed)
    parse(payment(note=endless), LIMITS)
    assert isinstance(parse_payment(payment(note="%2534111111111111111"), LIMITS), Refusal)


def test_what_may_look_bad_passes() -> None:
    for fields in (
        {"amount": 0}, {"order_id": "a\\u0000", "ip": "2001:db8::1"}, {"attributes": {"url": 'x":"y', "n": 10**16}},
        {"latitude": 48.85661234567891, "respond_by": 1_524_000_000_500}, {"account_id": "Caf\u00e9"},
        {"references": {"arn": "74537604221222123456789", "rrn": "123456789012"}}, {"terminal_id": None},
    ):  # fmt: skip
        assert parsed(payment(**fields)).unknown_fields == 0


def test_unknown_fields_are_counted_and_change_nothing() -> None:
    plain, more = parsed(payment()), parsed(payment(foo=1, bar={"x": [1]}))
    assert (more.unknown_fields, more.canonical) == (2, plain.canonical)


def test_a_repeat_has_the_same_fingerprint() -> None:
    fields = {**PAYMENT, "attributes": {"b": 1, "a": "x"}, "references": {"rrn": "1", "arn": "2"}, "latitude": 1}
    first = parsed(json.dumps(fields, separators=(",", ":")).encode())
    nested = {"attributes": {"a": "x", "b": 1}, "references": {"arn": "2", "rrn": "1", "network_id": None}}
    again = dict(reversed({**fields, **nested}.items()))
    again |= {"respond_by": 1_524_000_000_500, "attempt": 2, "schema_version": 1, "latitude": 1.0}
    again |= {"tenant_id": "default", "mode": "live", "operation": "authorisation", "ip": None}
    repeat = parsed(json.dumps(again, indent=3).replace('":', '" :').encode())
    assert repeat.fingerprint_source == first.fingerprint_source == first.canonical
    assert first.fingerprint_source is first.canonical
    assert repeat.canonical != first.canonical
    assert parsed(payment(amount=1)).fingerprint_source != parsed(payment(amount=2)).fingerprint_source


def test_a_fingerprint_is_the_encoding_without_the_tail() -> None:
    for tail in ({"attempt": 2}, {"respond_by": 5}, {"attempt": 300, "respond_by": 1_524_000_000_500}):
        full = parsed(payment(order_id="\xaarespond_by\xa7attempt", **tail))
        assert full.fingerprint_source == parsed(payment(order_id="\xaarespond_by\xa7attempt")).canonical


def test_labels_and_updates() -> None:
    clock = parse_label(b'{"kind":"clock","observed_at":1524000000000}', LIMITS)
    assert isinstance(clock, ParsedLabel)
    assert isinstance(parse_label(json.dumps({**LABEL, "source": None}).encode(), LIMITS), ParsedLabel)
    for field in ("payment_id", "account_id"):
        refused = parse_label(json.dumps({k: v for k, v in LABEL.items() if k != field}).encode(), LIMITS)
        assert refused == Refusal(Cause.MISSING_FIELD, f"$.{field}", f"missing required field {field} - at $.{field}")
    assert isinstance(parse_update(json.dumps({**LABEL, "kind": "captured"}).encode(), LIMITS), ParsedUpdate)
    card = parse_update(json.dumps({**LABEL, "kind": "captured", "source": "4111 1111 1111 1111"}).encode(), LIMITS)
    assert isinstance(card, Refusal)
    assert card.cause is Cause.CARD_NUMBER


PARSERS = (parse_payment, parse_label, parse_update)
_text = st.text(max_size=20) | st.sampled_from(["4111111111111111", "a:b", 'a":', "%20", "\0"])
_scalar = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | _text
_value = st.recursive(_scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3))
_fields = st.dictionaries(st.sampled_from(sorted(Payment.__struct_fields__)) | _text, _value, max_size=6)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(raw: bytes) -> None:
    for parse in PARSERS:
        assert isinstance(parse(raw, LIMITS), (Parsed, ParsedLabel, ParsedUpdate, Refusal))


@settings(max_examples=300)
@given(_fields, st.booleans(), st.binary(max_size=3), st.integers(0, 400))
def test_both_roads_have_one_meaning(fields: dict[str, Any], pretty: bool, noise: bytes, at: int) -> None:
    text = json.dumps({**PAYMENT, **fields}, indent=1 if pretty else None, ensure_ascii=pretty)
    raw = text.encode("utf-8", "surrogatepass")
    for variant in (raw, raw[:at] + noise + raw[at:], raw[:at], raw[:-1] + b"," + raw[1:]):
        assert parse_payment(variant, LIMITS) == codec._parse_payment_carefully(variant, LIMITS)
        for parse in PARSERS:
            parse(variant, LIMITS)


@given(st.lists(st.sampled_from(["amount", "order_id", "foo", "attempt"]), min_size=1, max_size=4), st.data())
def test_a_duplicate_key_never_passes(extra: list[str], data: st.DataObject) -> None:
    pairs = [(key, json.dumps(value)) for key, value in PAYMENT.items()]
    pairs += [(key, data.draw(st.sampled_from(["1", '"a:b"', '"x\\":y"', '"x\\\\":y"'[:5] + '"']))) for key in extra]
    colon = st.sampled_from([":", " :", "\t:", ": "])
    raw = "{" + ",".join(f'"{key}"{data.draw(colon)}{value}' for key, value in pairs) + "}"
    keys = [key for key, _ in pairs]
    result = parse_payment(raw.encode(), LIMITS)
    if len(set(keys)) < len(keys):
        assert isinstance(result, Refusal)


@given(st.builds(Payment, payment_id=st.text("abc", min_size=1, max_size=9), event_time=st.integers(0, 10**13),
                 account_id=st.just("a"), amount=st.integers(0, 10**12), currency=st.sampled_from(["EUR", "JPY"]),
                 attempt=st.none() | st.integers(1, 9), references=st.none() | st.builds(References, arn=st.just("1")),
                 mode=st.sampled_from(["live", "test", "backfill"])))  # fmt: skip
def test_a_payment_comes_back_as_it_was_sent(sent: Payment) -> None:
    result = parsed(msgspec.json.encode(sent))
    assert result.payment == sent
    assert msgspec.msgpack.decode(result.canonical, type=Payment) == sent
