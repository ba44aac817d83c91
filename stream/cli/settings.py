"""`fraud settings show | publish`: limits of records, and how long things are remembered."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stream.cli.broker import known_settings
from stream.cli.durations import duration_text
from stream.cli.talk import WhoOption, WhyOption, fail, print_json
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import OperatorError
from topics.limits import LIMITS_DEFAULT, Limits

app = typer.Typer(
    name="settings",
    help="Limits of records, and how long things are remembered: show, publish.",
    no_args_is_help=True,
)


@app.command(epilog="Example: fraud settings show --json > settings.json")
def show(bootstrap: BootstrapOption = None, prefix: PrefixOption = None, as_json: JsonOption = False) -> None:
    """The settings in force. Exit code 1 if `control` cannot be read."""
    from stream.in_force import read_in_force

    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        limits = read_in_force(settings).limits
    except OperatorError as error:
        fail(error)
    if as_json:
        print_json(limits)
    else:
        Console().print(_as_table(limits))


@app.command(epilog='Example: fraud settings publish settings.json --by ana --why "order numbers have 16 digits"')
def publish(
    file: Annotated[Path, typer.Argument(help='JSON, as in {"card_exempt_fields": ["attributes.order_no"]}.')],
    by: WhoOption,
    why: WhyOption,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the settings that the file names, from the moment that a marker reaches each partition.

    All others stay as they are in force. `fraud settings show` tells their names; times are in ms.
    """
    from stream.control_files import settings_from
    from stream.in_force import read_in_force
    from stream.operate import write_control

    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        body = file.read_bytes()
        before = read_in_force(settings).limits
        limits = settings_from(body, before)
        offset = write_control(settings, "settings", limits, by=by, why=why)
    except (OperatorError, OSError) as error:
        fail(error)
    changed = {name: [old, new] for name, old, new in _pairs(before, limits) if old != new}
    if as_json:
        print_json({"offset": offset, "changed": changed})
        return
    for name, (old, new) in changed.items():
        Console().print(f"{name}: {_told(name, old)}, now {_told(name, new)}", highlight=False, markup=False)
    Console().print(f"{len(changed)} settings changed, from control@{offset} on.")


def _as_table(limits: Limits) -> Table:
    table = Table("setting", "in force", "default")
    for name, here, default in _pairs(limits, LIMITS_DEFAULT):
        table.add_row(name, escape(_told(name, here)), "the same" if here == default else escape(_told(name, default)))
    return table


def _pairs(one: Limits, other: Limits) -> list[tuple[str, object, object]]:
    return [(name, getattr(one, name), getattr(other, name)) for name in Limits.__struct_fields__]


def _told(name: str, value: object) -> str:
    if isinstance(value, int):
        return f"{value} ({duration_text(value)})" if name.endswith("_ms") else str(value)
    return msgspec.json.encode(value).decode()
