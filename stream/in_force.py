"""What holds in a deployment now: of each kind the last record of `control` that the control stage passes on.

A partition obeys a record from its marker on, so for a moment some still decide by the one before.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from stream.broker.topic_admin import describe_topics, id_bytes
from stream.broker.whole_topic import TopicReader
from stream.errors import OperatorError
from stream.rules.default import DEFAULT_RULES
from stream.rules.policy import DEFAULT_POLICY, Policy, decode_policy, policy_version
from stream.rules.ruleset import RuleSet, decode_ruleset, ruleset_version
from stream.settings import Settings
from stream.stages.control import BASE_DEFAULT, CONTROL, ModelPayload, PassedOn, refused_because
from stream.version import ENGINE_FIRST
from topics.control import Control, ControlKind, Engine, Init, Rates, parse_control, payload_as
from topics.limits import LIMITS_DEFAULT, Limits
from topics.refusals import Refusal
from topics.skips import Skips

OBEYED: Final[frozenset[ControlKind]] = frozenset({"settings", "policy", "rules", "rates", "engine", "model"})
"""The kinds that set something in a stage."""


class Entry(Struct, frozen=True, kw_only=True):
    """A record of `control`. `offset`: its own; `at_ms`: when the broker took it, UTC."""

    offset: int
    at_ms: int
    record: Control


class InForce:
    """Fed with all records of `control`, in order. `control_id`: the topic's id, by which its own skips are known.

    `entries`: by kind; of a kind that is absent nobody has said anything, and the default holds. `init` is the first
    of its kind, all others are the last. `skips`: those that count, in order.
    """

    def __init__(self, entries: Iterable[Entry], control_id: bytes) -> None:
        self.entries: dict[ControlKind, Entry] = {}
        self.skips: list[Entry] = []
        self._places = Skips()
        # A skip stands behind what it skips, so all must have been seen first.
        kept = [_without_weights(entry) for entry in entries]
        for entry in kept:
            self._take_skip(entry)
        skipped = self._places.of(control_id, 0)
        passed_on = PassedOn()
        for entry in kept:
            kind = entry.record.kind
            if kind == "init":
                self._take_init(entry)
            elif kind in OBEYED and entry.offset not in skipped and passed_on.takes(entry.record):
                self.entries[kind] = entry

    def _take_skip(self, entry: Entry) -> None:
        try:
            if self._places.take(entry.record) is not None:
                self.skips.append(entry)
        except (msgspec.MsgspecError, ValueError):
            return  # workers pass over it, too

    def _take_init(self, entry: Entry) -> None:
        # It is read ahead by every worker: no stage sees it, and no skip takes it back.
        if refused_because(entry.record) is None and payload_as(entry.record, Init).offsets:
            self.entries.setdefault("init", entry)

    def has_stopped(self, topic_id: bytes, partition: int, offset: int) -> bool:
        """Whether it is on record that a worker stopped at that record."""
        return self._places.has_stopped(topic_id, partition, offset)

    @property
    def init(self) -> Init | None:
        entry = self.entries.get("init")
        return None if entry is None else payload_as(entry.record, Init)

    @property
    def limits(self) -> Limits:
        entry = self.entries.get("settings")
        return LIMITS_DEFAULT if entry is None else payload_as(entry.record, Limits)

    @property
    def policy(self) -> Policy:
        entry = self.entries.get("policy")
        return DEFAULT_POLICY if entry is None else decode_policy(bytes(entry.record.payload))

    @property
    def rules(self) -> RuleSet:
        entry = self.entries.get("rules")
        return DEFAULT_RULES if entry is None else decode_ruleset(bytes(entry.record.payload))

    @property
    def rates(self) -> Rates:
        entry = self.entries.get("rates")
        return BASE_DEFAULT if entry is None else payload_as(entry.record, Rates)

    @property
    def engine(self) -> int:
        entry = self.entries.get("engine")
        return ENGINE_FIRST if entry is None else payload_as(entry.record, Engine).engine

    @property
    def model(self) -> ModelPayload | None:
        """The last version that was passed on, without its weights. None: rules alone decide."""
        entry = self.entries.get("model")
        return None if entry is None else payload_as(entry.record, ModelPayload)


def version_in(payload: Struct) -> str | None:
    """The name under which decisions report what a payload of `control` sets; None if it has none."""
    if isinstance(payload, Policy):
        return policy_version(payload)
    if isinstance(payload, RuleSet):
        return ruleset_version(payload)
    return payload.version if isinstance(payload, ModelPayload) else None


def read_in_force(settings: Settings) -> InForce:
    """Reads `control` from its first record to where it ends now.

    Raises `OperatorError` if there is no such topic, or the broker does not answer.
    """
    name = settings.prefix + CONTROL
    found = describe_topics(settings.client(), [name])
    if name not in found:
        raise OperatorError(f"no topic {name}. Operator: name the deployment by --prefix, or begin one by `fraud init`")
    return InForce(_entries(settings, name), id_bytes(found[name].topic_id))


def _entries(settings: Settings, topic: str) -> Iterator[Entry]:
    with TopicReader(settings.client(), "control-log") as reader:
        for records in reader.records(topic, 0, *reader.ends(topic)[0]):
            for at in records:
                record = parse_control(at.value)
                if not isinstance(record, Refusal):
                    yield Entry(offset=at.offset, at_ms=at.at_ms, record=record)


def _without_weights(entry: Entry) -> Entry:
    """There may be thousands of versions, and nobody scores with them here."""
    if entry.record.kind != "model":
        return entry
    try:
        payload = payload_as(entry.record, ModelPayload)
    except msgspec.MsgspecError:
        return entry
    light = msgspec.Raw(msgspec.json.encode(msgspec.structs.replace(payload, compiled=b"")))
    return msgspec.structs.replace(entry, record=msgspec.structs.replace(entry.record, payload=light))
