"""Everything that people and controllers may change: topic `control`, one partition, kept for ever."""

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from topics.payment import TENANT_DEFAULT, TimeMs
from topics.refusals import Cause, Refusal

ControlKind = Literal[
    "model", "rules", "policy", "settings", "rates", "engine", "stopped", "skip", "source_cap", "init"
]

PAYLOAD_BYTES_MAX: Final = 98_304  # a model of 64 kB in base64

T = TypeVar("T")


class Control(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One change. A control agent copies it into the journals whose stage reads its kind (`topics.catalogue`).

    `version`: the name under which decisions report it. `by`, `why`: who changed it and for what reason.
    `written_at`: UTC epoch in ms by the writer's clock, for people only; nothing is decided by it.
    `payload`: JSON of at most 96 kB, by kind: `Skip` (also for `stopped`), `Init`, `Engine`, `SourceCap`, `Rates`,
        for `settings` `topics.limits.Limits`; the model's, the rules' and the policy's own Structs.
    """

    kind: ControlKind
    by: Annotated[str, Meta(min_length=1, max_length=128)]
    why: Annotated[str, Meta(min_length=1, max_length=1024)]
    payload: msgspec.Raw
    version: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tenant_id: str = TENANT_DEFAULT
    written_at: TimeMs | None = None
    schema_version: int = 1


class Init(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """From where foreign topics are read first: topic → the offset of each partition. The first record holds."""

    offsets: dict[str, list[Annotated[int, Meta(ge=0)]]]


class Skip(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A record of a topic, by place. `topic_id`: the topic's UUID in hex.

    Kind `stopped`: a stage fails on it, says the worker whose partition stands there. Kind `skip`: an operator lets
    that partition step over it; it counts only after such a word, see `topics.skips`.
    """

    topic_id: str
    partition: Annotated[int, Meta(ge=0)]
    offset: Annotated[int, Meta(ge=0)]


class Engine(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """From here on this version of the code's meaning decides."""

    engine: Annotated[int, Meta(ge=1)]


class SourceCap(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """At most so many payments of one tenant's account in a second of broker time; None lifts it.

    Reserved: such a record is copied into the journal, and no stage of this release obeys it.
    """

    account_id: str
    payments_per_s_max: Annotated[int, Meta(ge=1)] | None = None


class Rates(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """Exchange rates to the base currency, as integers: base minor units for 10**9 minor units of the other."""

    base: Annotated[str, Meta(min_length=3, max_length=3)]
    nano_base_per_minor: dict[str, Annotated[int, Meta(ge=1, le=10**15)]]


_decode_control = msgspec.json.Decoder(Control).decode


def parse_control(raw: bytes | None) -> Control | Refusal:
    """The control record in `raw` (JSON), or why it is refused. Never raises. Its payload is not looked into."""
    if not raw:
        return Refusal(Cause.EMPTY_VALUE, "$", "empty value")
    if len(raw) > 2 * PAYLOAD_BYTES_MAX:
        return Refusal(Cause.PAYLOAD_TOO_LARGE, "$", f"{len(raw)} bytes")
    try:
        return _decode_control(raw)
    except msgspec.ValidationError as error:
        return Refusal(Cause.WRONG_TYPE, "$", str(error).replace("`", ""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(Cause.NOT_JSON, "$", str(error))


def payload_as(control: Control, type_: type[T]) -> T:
    """The payload as its kind's Struct. Raises `msgspec.MsgspecError`."""
    try:
        return msgspec.json.decode(control.payload, type=type_)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def encode_control(**fields: Any) -> bytes:
    """JSON of a record whose `payload` is given as a Struct.

    >>> encode_control(kind="skip", by="me", why="poison", payload=Skip(topic_id="x", partition=0, offset=7))[:27]
    b'{"kind":"skip","by":"me","w'
    """
    payload = msgspec.Raw(msgspec.json.encode(fields.pop("payload")))
    return msgspec.json.encode(Control(payload=payload, **fields))
