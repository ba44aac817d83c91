"""From bytes to a contract or to a refusal: a closed sum, so that no input raises.

Two roads with one meaning. The fast one proves that there is nothing to refuse; whatever it cannot prove goes
the careful one, which checks in a fixed order and names the first cause:

    empty, too large, not UTF-8, NUL, nested too deeply, not JSON, duplicate key, NUL (escaped), card number,
    schema version, type and range, currency, limits of the settings

The proof that no key stands twice: a JSON text has at least as many colons as keys, so if there are no more colons
than *distinct* keys were understood, each key stands once.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn, cast

import msgspec
from msgspec import Struct
from msgspec.json import Decoder
from msgspec.structs import replace

from topics.cards import DIGIT_CLASS, DIGITS_MIN, HIDING, THIRTEEN_DIGITS, digit_runs, find_card_number
from topics.currencies import CURRENCIES
from topics.label import Label
from topics.limits import Limits
from topics.payment import SCHEMA_VERSION, TENANT_DEFAULT, Payment, References
from topics.refusals import Cause, Refusal
from topics.undecodable import UNDECODABLE
from topics.update import Update


class Parsed(Struct, frozen=True, gc=False):
    """A payment that may be judged.

    `canonical`: msgpack map of the fields that are set, in the contract's order; equal for equal payments.
    `fingerprint_source`: `canonical` without `respond_by`, `attempt`, `schema_version`: its business content.
    `unknown_fields`: how many fields were not in the contract, and were dropped.
    """

    payment: Payment
    canonical: bytes
    fingerprint_source: bytes
    unknown_fields: int


class ParsedLabel(Struct, frozen=True, gc=False):
    """A label that may be joined; `canonical` and `unknown_fields` as in `Parsed`."""

    label: Label
    canonical: bytes
    unknown_fields: int


class ParsedUpdate(Struct, frozen=True, gc=False):
    """An update that may be applied; `canonical` and `unknown_fields` as in `Parsed`."""

    update: Update
    canonical: bytes
    unknown_fields: int


_decode_payment = Decoder(Payment).decode
_decode_label = Decoder(Label).decode
_decode_update = Decoder(Update).decode
_decode_any = Decoder(Any).decode
_encode = msgspec.msgpack.Encoder(order="deterministic").encode

_MAP16: Final = 0xDE
_EPOCH_MS_13: Final = 10**12
_TAIL_RESPOND_BY: Final = b"\xaarespond_by"
_TAIL_ATTEMPT: Final = b"\xa7attempt"

# msgspec writes a map of 16 or more possible fields with a header of three bytes, whatever is set.
assert len(Payment.__struct_fields__) > 15
assert _encode(Payment(payment_id="p", event_time=0, account_id="a", amount=0, currency="EUR"))[:3] == b"\xde\x00\x05"


class _Refused(Exception):
    def __init__(self, cause: Cause, path: str, message: str) -> None:
        self.refusal = Refusal(cause, path, f"{message} - at {path}" if path != "$" else message)


def _refuse(cause: Cause, path: str, message: str) -> NoReturn:
    raise _Refused(cause, path, message)


def parse_payment(raw: bytes | None, limits: Limits) -> Parsed | Refusal:
    """The payment in `raw` (one JSON text), or why it is refused. Never raises.

    What needs more than the record is decided by a stage: a time in the future, too old, a contradiction.
    """
    # Written out in one piece: calls and second looks at the bytes are most of what it would cost.
    if raw is None:
        return _parse_payment_carefully(raw, limits)
    try:
        payment = _decode_payment(raw)
    except UNDECODABLE:
        return _parse_payment_carefully(raw, limits)
    if payment.tenant_id is not TENANT_DEFAULT and payment.tenant_id == TENANT_DEFAULT:
        payment = _with_default_tenant(payment)
    amount_max = limits.amount_max
    respond_by = payment.respond_by
    if (
        payment.currency not in CURRENCIES
        or payment.amount > amount_max
        or payment.schema_version > SCHEMA_VERSION
        or len(raw) > limits.payload_bytes_max
        or (payment.billing_currency is not None and payment.billing_currency not in CURRENCIES)
        or (payment.billing_amount is not None and payment.billing_amount > amount_max)
    ):
        return _parse_payment_carefully(raw, limits)
    canonical = _encode(payment)
    keys = canonical[1] << 8 | canonical[2]
    if payment.attributes is not None or payment.references is not None:
        keys += _nested_keys(payment)
    # No long run of digits but the times: no card number. No escape: no NUL, nor anything that is hidden.
    times = (payment.event_time >= _EPOCH_MS_13) + (respond_by is not None and respond_by >= _EPOCH_MS_13)
    unknown = 0
    classes = raw.translate(DIGIT_CLASS, b" -")
    if raw.count(b":") != keys or classes.count(THIRTEEN_DIGITS) != times or HIDING in classes:
        unknown = _look_closer(raw, limits, _PAYMENT_KEYS, times)
        if unknown < 0:
            return _parse_payment_carefully(raw, limits)
    if respond_by is None and payment.attempt is None:
        return Parsed(payment, canonical, canonical, unknown)
    return Parsed(payment, canonical, _without_tail(payment, canonical), unknown)


def _nested_keys(payment: Payment) -> int:
    keys = 0 if payment.attributes is None else len(payment.attributes)
    references = payment.references
    if references is not None:
        keys += (references.arn is not None) + (references.rrn is not None) + (references.network_id is not None)
    return keys


def _look_closer(raw: bytes, limits: Limits, keys: frozenset[str], times: int) -> int:
    """The number of unknown fields of a record that was decoded; -1 if the careful road must look at it.

    `times`: how many of its numbers have 13 digits or more, at least.
    """
    if raw.count(b"{") + raw.count(b"[") > limits.nesting_max:
        return -1
    try:
        tree = _decode_any(raw)
    except UNDECODABLE:
        return -1
    if not _is_unique(raw, tree) or (not _proves_text(raw, times) and _holds_suspect(tree, b"\\" in raw)):
        return -1
    return _unknown(tree, keys)


def _proves_text(raw: bytes, times: int) -> bool:
    return raw.isascii() and b"\\" not in raw and b"%" not in raw and digit_runs(raw) == times


def _holds_suspect(tree: Any, escapes: bool) -> bool:
    """Whether a text in `tree` has a NUL or what may be a card number; bounded by `nesting_max`."""
    if isinstance(tree, str):
        return (escapes and "\0" in tree) or (len(tree) >= DIGITS_MIN and find_card_number(tree) is not None)
    if isinstance(tree, dict):
        for key, value in cast("dict[str, Any]", tree).items():
            if (len(key) >= DIGITS_MIN or escapes) and _holds_suspect(key, escapes):
                return True
            if isinstance(value, (str, dict, list)) and _holds_suspect(value, escapes):
                return True
    elif isinstance(tree, list):
        return any(_holds_suspect(value, escapes) for value in cast("list[Any]", tree))
    return False


def _without_tail(payment: Payment, canonical: bytes) -> bytes:
    """`canonical` without what may differ when the same payment is sent again."""
    cut = 0
    position = len(canonical)
    # The tail holds nothing but these keys and integers, so the last occurrence is the key itself.
    if payment.attempt is not None:
        position = canonical.rindex(_TAIL_ATTEMPT, 0, position)
        cut += 1
    if payment.respond_by is not None:
        position = canonical.rindex(_TAIL_RESPOND_BY, 0, position)
        cut += 1
    if not cut:
        return canonical
    keys = ((canonical[1] << 8) | canonical[2]) - cut
    return canonical[:1] + keys.to_bytes(2, "big") + canonical[3:position]


def _with_default_tenant(value: Any) -> Any:
    """msgspec leaves a default out of the canonical bytes by identity, not by value."""
    return replace(value, tenant_id=TENANT_DEFAULT)


assert SCHEMA_VERSION == 1, "a `schema_version` that is not the default is one more field to cut"


def parse_label(raw: bytes | None, limits: Limits) -> ParsedLabel | Refusal:
    """The label in `raw`, or why it is refused. Never raises."""
    try:
        label, unknown = _parse(raw, limits, _decode_label, _LABEL_KEYS)
        if label.kind != "clock":
            for field in ("payment_id", "account_id"):
                if getattr(label, field) is None:
                    _refuse(Cause.MISSING_FIELD, f"$.{field}", f"missing required field {field}")
        return ParsedLabel(label, _encode(label), unknown)
    except _Refused as refused:
        return refused.refusal


def parse_update(raw: bytes | None, limits: Limits) -> ParsedUpdate | Refusal:
    """The update in `raw`, or why it is refused. Never raises."""
    try:
        update, unknown = _parse(raw, limits, _decode_update, _UPDATE_KEYS)
        return ParsedUpdate(update, _encode(update), unknown)
    except _Refused as refused:
        return refused.refusal


def _parse_payment_carefully(raw: bytes | None, limits: Limits) -> Parsed | Refusal:
    try:
        payment, unknown = _parse_carefully(raw, limits, _decode_payment, _PAYMENT_KEYS)
        canonical = _encode(payment)
        return Parsed(payment, canonical, _without_tail(payment, canonical), unknown)
    except _Refused as refused:
        return refused.refusal


def _parse(raw: bytes | None, limits: Limits, decode: Any, keys: frozenset[str]) -> tuple[Any, int]:
    """As `_parse_carefully`, which it leaves the naming of causes to."""
    if raw is not None and len(raw) <= limits.payload_bytes_max:
        try:
            value = decode(raw)
            _check_money(value, limits)
        except (*UNDECODABLE, _Refused):
            return _parse_carefully(raw, limits, decode, keys)
        if (
            value.schema_version <= SCHEMA_VERSION
            and (unknown := _look_closer(raw, limits, keys, int(value.observed_at >= _EPOCH_MS_13))) >= 0
        ):
            return (_with_default_tenant(value) if value.tenant_id == TENANT_DEFAULT else value), unknown
    return _parse_carefully(raw, limits, decode, keys)


# The careful road.

_PAYMENT_KEYS: Final = frozenset(Payment.__struct_fields__)
_LABEL_KEYS: Final = frozenset(Label.__struct_fields__)
_UPDATE_KEYS: Final = frozenset(Update.__struct_fields__)
_REFERENCES_KEYS: Final = frozenset(References.__struct_fields__)

_STRING = re.compile(rb'"(?:[^"\\]|\\.?)*+(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{}[]")


def _parse_carefully(raw: bytes | None, limits: Limits, decode: Any, keys: frozenset[str]) -> tuple[Any, int]:
    """The decoded contract and the number of unknown fields. Raises `_Refused`."""
    if not raw:
        _refuse(Cause.EMPTY_VALUE, "$", "empty value")
    _check_bytes(raw, limits)
    tree = _tree(raw)
    _check_keys(raw, tree)
    _check_texts(tree, limits.card_exempt_fields)
    if isinstance(tree, dict):
        version = cast("dict[str, Any]", tree).get("schema_version")
        if type(version) is int and version > SCHEMA_VERSION:
            _refuse(
                Cause.SCHEMA_VERSION_TOO_NEW, "$.schema_version", f"schema version above {SCHEMA_VERSION} is too new"
            )
    try:
        value = decode(raw)
    except msgspec.MsgspecError as error:
        raise _refusal_of(str(error)) from None
    _check_money(value, limits)
    if value.tenant_id == TENANT_DEFAULT:
        value = _with_default_tenant(value)
    return value, _unknown(cast("dict[str, Any]", tree), keys)


def _check_bytes(raw: bytes, limits: Limits) -> None:
    if len(raw) > limits.payload_bytes_max:
        _refuse(Cause.PAYLOAD_TOO_LARGE, "$", f"{len(raw)} bytes, above the limit of {limits.payload_bytes_max}")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        _refuse(Cause.INVALID_UTF8, "$", f"invalid UTF-8 at byte {error.start}")
    if (at := raw.find(0)) >= 0:
        _refuse(Cause.NUL_CHARACTER, "$", f"NUL character at byte {at}")
    if raw.count(b"{") + raw.count(b"[") > limits.nesting_max and _depth(raw) > limits.nesting_max:
        _refuse(Cause.NESTING_TOO_DEEP, "$", f"nested deeper than {limits.nesting_max}")


def _depth(raw: bytes) -> int:
    """How deep objects and arrays are nested, brackets in strings left out; linear in the length."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS):
        if byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _tree(raw: bytes) -> Any:
    try:
        return _decode_any(raw)
    except msgspec.ValidationError:
        _refuse(Cause.OUT_OF_RANGE, "$", "number out of range")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(Cause.NOT_JSON, "$", _plain(str(error)))


def _check_keys(raw: bytes, tree: Any) -> None:
    if not _is_unique(raw, tree):
        json.loads(raw, object_pairs_hook=_without_duplicates, parse_int=_no_number, parse_float=_no_number)


def _is_unique(raw: bytes, tree: Any) -> bool:
    """Whether the bytes prove that no key stands twice in an object; False: they don't."""
    distinct = _count_keys(tree)
    if raw.count(b":") == distinct:
        return True
    # `":` ends keys, and in texts what is escaped may look like it: not fewer than keys if no blank is between.
    return raw.count(b'":') == distinct and not any(blank in raw for blank in (b" :", b"\t:", b"\n:", b"\r:"))


def _count_keys(tree: Any) -> int:
    """Keys of all objects in `tree`; its depth is bounded by `nesting_max`."""
    if isinstance(tree, dict):
        fields = cast("dict[str, Any]", tree)
        return len(fields) + sum(_count_keys(value) for value in fields.values() if isinstance(value, (dict, list)))
    if isinstance(tree, list):
        return sum(_count_keys(value) for value in cast("list[Any]", tree) if isinstance(value, (dict, list)))
    return 0


def _no_number(_: str) -> int:
    return 0


def _without_duplicates(pairs: list[tuple[str, Any]]) -> int:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            path = f"$.{key}" if key in _PAYMENT_KEYS | _LABEL_KEYS | _UPDATE_KEYS else "$"
            _refuse(Cause.DUPLICATE_KEY, path, "duplicate key")
        seen.add(key)
    return 0


def _check_texts(tree: Any, exempt: tuple[str, ...]) -> None:
    for path, text in _texts(tree, "$"):
        if "\0" in text:
            _refuse(Cause.NUL_CHARACTER, path, "NUL character")
    for path, text in _texts(tree, "$"):
        if len(text) >= DIGITS_MIN and not _is_exempt(path[2:], exempt) and find_card_number(text) is not None:
            _refuse(
                Cause.CARD_NUMBER,
                path,
                "card number; an all-digit id of 13 to 19 digits needs an exemption of its field "
                "(`card_exempt_fields`)",
            )


def _texts(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in `tree`, keys included, with its path."""
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in cast("dict[str, Any]", tree).items():
            yield f"{path}.*", key
            if isinstance(value, (str, dict, list)):
                yield from _texts(value, f"{path}.{_path_key(key)}")
    elif isinstance(tree, list):
        for value in cast("list[Any]", tree):
            yield from _texts(value, f"{path}[*]")


_PATH_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _path_key(key: str) -> str:
    """A key as it may stand in a path: one that could carry something else than a name is left out."""
    return key if _PATH_KEY.fullmatch(key) and sum(char.isdigit() for char in key) < 8 else "*"


def _is_exempt(path: str, exempt: tuple[str, ...]) -> bool:
    """Whether `path` is exempt. A key itself (`attributes.*`) never is by the name of its object's values."""
    if not exempt or path.endswith("*"):
        return False
    return path in exempt or (path.rpartition(".")[0] + ".*") in exempt


def _check_money(value: Any, limits: Limits) -> None:
    for field in ("amount", "billing_amount"):
        amount = getattr(value, field, None)
        if amount is not None and amount > limits.amount_max:
            _refuse(Cause.AMOUNT_TOO_LARGE, f"$.{field}", f"above the limit of {limits.amount_max}")
    for field in ("currency", "billing_currency"):
        currency = getattr(value, field, None)
        if currency is not None and currency not in CURRENCIES:
            _refuse(Cause.UNKNOWN_CURRENCY, f"$.{field}", "not a currency of ISO 4217")


def _unknown(tree: dict[str, Any], keys: frozenset[str]) -> int:
    count = len(tree.keys() - keys)
    references = tree.get("references")
    if isinstance(references, dict) and "references" in keys:
        count += len(cast("dict[str, Any]", references).keys() - _REFERENCES_KEYS)
    return count


# msgspec's messages, as causes. None of them repeats a value once enum values are left out.
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")
_AMOUNTS: Final = frozenset({"$.amount", "$.billing_amount"})


def _refusal_of(error: str) -> _Refused:
    match = _AT.match(error)
    what, path = (match["what"], match["path"] or "$") if match else (error, "$")
    missing = _MISSING.match(what)
    if missing:
        return _Refused(Cause.MISSING_FIELD, f"{path}.{missing['field']}", f"missing required field {missing['field']}")
    if what.startswith("Invalid enum value"):
        return _Refused(Cause.UNKNOWN_VALUE, path, "not one of the values in the contract")
    return _Refused(_cause_of(what, path), path, _plain(what))


def _cause_of(what: str, path: str) -> Cause:
    if what.endswith("got `float`") and path in _AMOUNTS:
        return Cause.AMOUNT_FLOAT
    if what.startswith(("Expected `int` >=", "Expected `int` <=", "Expected `float` >=", "Expected `float` <=")):
        if path in _AMOUNTS:
            return Cause.AMOUNT_NEGATIVE if ">=" in what else Cause.AMOUNT_TOO_LARGE
        return Cause.OUT_OF_RANGE
    if what.startswith("Expected `str` of length"):
        return Cause.TEXT_TOO_SHORT if ">=" in what else Cause.TEXT_TOO_LONG
    if what.startswith("Expected `object` of length"):
        return Cause.TOO_MANY_ATTRIBUTES
    if "out of range" in what:
        return Cause.AMOUNT_TOO_LARGE if path in _AMOUNTS else Cause.OUT_OF_RANGE
    return Cause.WRONG_TYPE


def _plain(message: str) -> str:
    """A library's message in our voice: `Expected `int`, got `str`` reads `expected int, got str`."""
    plain = message.replace("`", "")
    return plain[:1].lower() + plain[1:]
