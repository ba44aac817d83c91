"""`fraud control show`: what holds now, and who said so."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stream.broker.topic_admin import describe_topics, id_bytes
from stream.cli.broker import known_settings
from stream.cli.operate import policy_text
from stream.cli.talk import fail, print_json
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import OperatorError
from stream.in_force import Entry, InForce, read_in_force, version_in
from stream.settings import Settings
from topics.catalogue import catalogue
from topics.control import ControlKind, Engine, Skip, payload_as
from topics.limits import LIMITS_DEFAULT, Limits

app = typer.Typer(name="control", help="What people and controllers have changed: show.", no_args_is_help=True)

KINDS: Final[tuple[ControlKind, ...]] = ("init", "settings", "policy", "rules", "rates", "engine", "model")


@app.callback()
def group() -> None:
    """So that the one command keeps its name."""


@app.command(epilog="Example: fraud control show --json")
def show(bootstrap: BootstrapOption = None, prefix: PrefixOption = None, as_json: JsonOption = False) -> None:
    """What holds now, by kind: offset in `control`, who, why, when, and the version that decisions report.

    A partition obeys a record from its marker on. Exit code 1 if `control` cannot be read.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        found = read_in_force(settings)
        topics = _topics_by_id(settings) if found.skips and not as_json else {}
    except OperatorError as error:
        fail(error)
    if as_json:
        told: dict[str, object] = {kind: _told(found, kind) for kind in KINDS}
        told["skips"] = [_record(entry, payload_as(entry.record, Skip)) for entry in found.skips]
        print_json(told)
    else:
        Console().print(_as_table(found, topics))


def _payload(found: InForce, kind: ControlKind) -> Any:
    """What is set, or the default; None where there is none."""
    payloads = {
        "init": found.init,
        "settings": found.limits,
        "policy": found.policy,
        "rules": found.rules,
        "rates": found.rates,
        "engine": Engine(engine=found.engine),
        "model": found.model,
    }
    return payloads[kind]


def _told(found: InForce, kind: ControlKind) -> Mapping[str, object]:
    payload, entry = _payload(found, kind), found.entries.get(kind)
    version = None if payload is None else version_in(payload)
    if entry is None:
        return {"offset": None, "version": version, "payload": payload}
    return {**_record(entry, payload), "version": version}


def _record(entry: Entry, payload: object) -> dict[str, object]:
    record = entry.record
    return {"offset": entry.offset, "by": record.by, "why": record.why, "at_ms": entry.at_ms, "payload": payload}


def _as_table(found: InForce, topics: Mapping[str, str]) -> Table:
    table = Table("kind", "what holds", "version", "control@", "who", "why", "when (UTC)")
    for kind in KINDS:
        payload, entry = _payload(found, kind), found.entries.get(kind)
        version = None if payload is None else version_in(payload)
        who = ("", "", "nobody has said", "") if entry is None else _who(entry)
        table.add_row(kind, _in_words(found, kind), version, *map(escape, who))
    for entry in found.skips:
        at = payload_as(entry.record, Skip)
        place = f"{topics.get(at.topic_id, at.topic_id)}[{at.partition}]@{at.offset}"
        table.add_row("skip", escape(place), "", *map(escape, _who(entry)))
    return table


def _who(entry: Entry) -> tuple[str, str, str, str]:
    when = datetime.fromtimestamp(entry.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return str(entry.offset), entry.record.by, entry.record.why, when


def _in_words(found: InForce, kind: ControlKind) -> str:
    match kind:
        case "init":
            offsets = {} if found.init is None else found.init.offsets
            return "\n".join(f"{topic} from {' '.join(map(str, each))}" for topic, each in offsets.items()) or "nothing"
        case "settings":
            pairs = [(name, _set(found.limits, name)) for name in Limits.__struct_fields__]
            changed = [f"{name} {value}" for name, value in pairs if value != _set(LIMITS_DEFAULT, name)]
            return escape("\n".join(changed)) or "as by default"
        case "policy":
            return policy_text(found.policy)
        case "rules":
            return f"{len(found.rules.rules)} rules"
        case "rates":
            return f"{len(found.rates.nano_base_per_minor)} rates to {found.rates.base}"
        case "model":
            return "rules alone decide" if found.model is None else f"learned up to examples@{found.model.offset}"
        case _:
            return str(found.engine)


def _set(limits: Limits, name: str) -> str:
    return msgspec.json.encode(getattr(limits, name)).decode()


def _topics_by_id(settings: Settings) -> dict[str, str]:
    """By id in hex, as a skip names them."""
    names = {topic.name: name for name, topic in catalogue(settings.prefix).items()}
    found = describe_topics(settings.client(), list(names))
    return {id_bytes(each.topic_id).hex(): names[name] for name, each in found.items()}
