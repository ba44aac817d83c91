"""Records with card numbers planted wherever text can stand, and a scanner that finds them however they are written.

Each plant has a number of its own, so that a find names the field that leaked. For tests; not a test itself.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

NOW_MS = 1_700_000_000_000

PAYMENT_TEXTS = (
    "payment_id",
    "account_id",
    "tenant_id",
    "currency",
    "mode",
    "operation",
    "parent_payment_id",
    "order_id",
    "customer_id",
    "direction",
    "initiator",
    "stored_credential",
    "terminal_id",
    "merchant_id",
    "mcc",
    "merchant_country",
    "issuer_country",
    "channel",
    "scheme",
    "entry_mode",
    "funding",
    "billing_currency",
    "three_ds",
    "eci",
    "avs",
    "cvv",
    "counterparty_id",
    "counterparty_bank",
    "payee_check",
    "device_id",
    "ip",
    "references.arn",
    "references.rrn",
    "references.network_id",
    "attributes.note",
)
LABEL_TEXTS = (
    "payment_id",
    "account_id",
    "tenant_id",
    "kind",
    "reason_code",
    "dispute_id",
    "stage",
    "result",
    "currency",
    "fraud_type",
    "source",
    "references.arn",
    "references.rrn",
    "references.network_id",
)
UPDATE_TEXTS = (
    "payment_id",
    "account_id",
    "tenant_id",
    "kind",
    "currency",
    "declined_by",
    "reason_code",
    "source",
    "references.arn",
    "attributes.note",
)


class Planted(NamedTuple):
    """One record. `where` names the plant; `number` is its 16 digits."""

    where: str
    number: str
    topic: str
    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def card_number(i: int) -> str:
    """The i-th: 16 digits of a brand with the check digit of Luhn."""
    body = f"4539{i:011d}"
    total = sum(
        sum(divmod(int(digit) * (2 if place % 2 == 0 else 1), 10)) for place, digit in enumerate(reversed(body))
    )
    return body + str(-total % 10)


def _grouped(number: str, between: str) -> str:
    return between.join(number[i : i + 4] for i in range(0, 16, 4))


FORMS = {
    "plain": lambda n: n,
    "spaced": lambda n: _grouped(n, " "),
    "dashed": lambda n: _grouped(n, "-"),
    "within text": lambda n: f"card {n}, thanks",
    "URL-encoded": lambda n: quote(_grouped(n, " ")),
    "fullwidth": lambda n: "".join(chr(0xFF10 + int(digit)) for digit in n),
}


def payment(i: int) -> dict[str, Any]:
    """A good one."""
    return {
        "payment_id": f"p-{i}",
        "event_time": NOW_MS + i,
        "account_id": f"a-{i % 13}",
        "terminal_id": f"t-{i % 5}",
        "amount": 1_000 + i,
        "currency": "EUR",
    }


def label(i: int) -> dict[str, Any]:
    return {"kind": "chargeback", "observed_at": NOW_MS, "payment_id": f"p-{i}", "account_id": f"a-{i % 13}"}


def update(i: int) -> dict[str, Any]:
    return {"kind": "captured", "observed_at": NOW_MS, "payment_id": f"p-{i}", "account_id": f"a-{i % 13}"}


def _with(record: dict[str, Any], path: str, value: Any) -> bytes:
    outer, _, inner = path.partition(".")
    return json.dumps(record | {outer: {inner: value} if inner else value}, ensure_ascii=False).encode()


def planted(first: int = 0) -> list[Planted]:
    """All of them, in an order that does not change. `first`: number of the first card."""
    found: list[Planted] = []

    def plant(where: str, topic: str, make: Any, **more: Any) -> None:
        number = card_number(first + len(found))
        extra = {name: value(number) for name, value in more.items()}
        found.append(Planted(where, number, topic, make(number), **extra))

    for topic, texts, make in (
        ("payments", PAYMENT_TEXTS, payment),
        ("labels", LABEL_TEXTS, label),
        ("updates", UPDATE_TEXTS, update),
    ):
        for form, write in FORMS.items():
            for path in texts:
                record = make(len(found))
                plant(f"{topic}: {path}, {form}", topic, lambda n, r=record, p=path, w=write: _with(r, p, w(n)))
            record = make(len(found))
            for where, shape in (
                ("an unknown field", lambda n, w=write: {"memo": w(n)}),
                ("deep in an unknown field", lambda n, w=write: {"memo": {"a": [{"b": w(n)}]}}),
                ("a field's name", lambda n, w=write: {w(n): 1}),
                ("a name within an unknown field", lambda n, w=write: {"memo": {w(n): None}}),
                ("an attribute's name", lambda n, w=write: {"attributes": {w(n): "x"}}),
                ("where a number belongs", lambda n, w=write: {"amount": w(n)}),
                ("where a time belongs", lambda n, w=write: {"observed_at": w(n), "event_time": w(n)}),
                ("where an object belongs", lambda n, w=write: {"references": w(n)}),
                ("where a text belongs, in a list", lambda n, w=write: {"account_id": [w(n)]}),
            ):
                plant(
                    f"{topic}: {where}, {form}",
                    topic,
                    lambda n, r=record, s=shape: json.dumps(r | s(n), ensure_ascii=False).encode(),
                )
        good = make(len(found))
        body = json.dumps(good).encode()
        for where, raw in (
            ("all of the value", lambda n: n.encode()),
            ("a JSON text alone", lambda n: json.dumps(n).encode()),
            ("cut JSON", lambda n: b'{"note": "' + n.encode()),
            ("cut within the number", lambda n: b" " * 1_010 + n.encode() + b" " * 100),
            ("not UTF-8", lambda n: b"\xff\xfe " + _grouped(n, " ").encode()),
            ("a NUL before it", lambda n: b'{"note": "\\u0000' + n.encode() + b'"}'),
            ("a key twice", lambda n: b'{"%b": 1, "%b": 2}' % (n.encode(), n.encode())),
            ("escaped, digit by digit", lambda n, g=good: _spliced(g, "".join(f"\\u{ord(d):04x}" for d in n))),
            ("one digit escaped", lambda n, g=good: _spliced(g, f"\\u{ord(n[0]):04x}{n[1:]}")),
            ("a value over the limit", lambda n, g=good: _spliced(g, n + "x" * 70_000)),
            ("a text over its limit", lambda n, g=good: _spliced(g, "x" * 300 + " " + n)),
            ("nested deeply", lambda n: b"[" * 60 + json.dumps(n).encode() + b"]" * 60),
            ("with carriage returns", lambda n: _grouped(n, "\r\n").encode()),
            ("with dots", lambda n: _grouped(n, ".").encode()),
        ):
            plant(f"{topic}: {where}", topic, raw)
        plant(f"{topic}: key", topic, lambda n, b=body: b, key=lambda n: n.encode())
        for name in ("traceparent", "tracestate", "note", "ce_id"):
            plant(f"{topic}: header {name}", topic, lambda n, b=body: b, headers=lambda n, h=name: ((h, n.encode()),))
        plant(f"{topic}: header's name", topic, lambda n, b=body: b, headers=lambda n: ((n, b"x"),))
    for where, write in (
        ("span id", lambda n: f"00-{'ab' * 16}-{n}-01"),
        ("start of the trace id", lambda n: f"00-{n}ab0c1d2e3f405162-{'cd' * 8}-01"),
        ("end of the trace id", lambda n: f"00-ab0c1d2e3f40516a{n}-{'cd' * 8}-01"),
        ("middle of the trace id", lambda n: f"00-ab0c1d2f{n}f40516ab-{'cd' * 8}-01"),
        ("among digits of the trace id", lambda n: f"00-99{n}{'0' * 14}-{'cd' * 8}-01"),
    ):
        body = json.dumps(payment(len(found))).encode()
        plant(
            f"payments: traceparent, {where}",
            "payments",
            lambda n, b=body: b,
            headers=lambda n, w=write: (("traceparent", w(n).encode()),),
        )
    return found


def _spliced(record: dict[str, Any], raw: str) -> bytes:
    """`raw` as it stands, in a text of JSON."""
    return json.dumps(record).encode()[:-1] + b', "memo": "' + raw.encode() + b'"}'


# ---- the scanner

_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-]{18,}")
_ESCAPED = re.compile(rb"\\{1,4}u([0-9a-fA-F]{4})")
_BETWEEN = re.compile(rb"(?<=[0-9])(?:[ \-./,\r\n\t\x00]|\\[rnt]|\xc2\xa0){1,3}(?=[0-9])")
_RUN = re.compile(rb"[0-9]{16,}")
_WIDE = re.compile(rb"\xef\xbc([\x90-\x99])")


def _readings(raw: bytes) -> Iterator[bytes]:
    """What `raw` may mean: as it is, unescaped, URL-decoded, and every word of base64 in it decoded."""
    plain = _WIDE.sub(lambda m: bytes([m.group(1)[0] - 0x90 + 0x30]), raw)
    plain = _ESCAPED.sub(lambda m: chr(int(m.group(1), 16)).encode("utf-8", "replace"), plain)
    yield plain
    if b"%" in plain:
        yield unquote_to_bytes(plain)
    for match in _BASE64.finditer(plain):
        word = match.group().replace(b"-", b"+").replace(b"_", b"/")
        for shift in range(4):
            part = word[shift:]
            part = part[: len(part) - 1] if len(part) % 4 == 1 else part
            try:
                yield base64.b64decode(part + b"=" * (-len(part) % 4))
            except (binascii.Error, ValueError):
                continue


def find_planted(raw: bytes, numbers: Iterable[str]) -> set[str]:
    """Those of `numbers` that stand in `raw`: with separators, within longer runs, escaped, URL- or base64-encoded."""
    wanted = numbers if isinstance(numbers, set | frozenset | dict) else set(numbers)
    found: set[str] = set()
    for reading in _readings(raw):
        for run in _RUN.findall(_BETWEEN.sub(b"", reading)):
            digits = run.decode()
            found.update(digits[i : i + 16] for i in range(len(digits) - 15) if digits[i : i + 16] in wanted)
    return found
