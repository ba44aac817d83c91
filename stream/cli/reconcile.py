"""`fraud reconcile`: is every payment answered, once?"""

import sys
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from stream import collector
from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import OperatorError
from stream.reconcile import Reconciled, reconcile

EPILOG: Final = "Example: fraud reconcile --json"


WAIT_S: Final = 10.0


def command(
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to look again for answers that are still on their way.")
    ] = WAIT_S,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count payments, dead letters and decisions: missing, conflicting, repeated.

    Payments are read up to where they end when it starts, from where `fraud init` began or what is still kept of them.
    Exit code 1 if one of them has no answer, or two that differ; one that is late counts as missing after --wait.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} records read"), TimeElapsedColumn())
    collector.settle()
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=None)
            found = reconcile(
                settings.client(), settings.prefix, lambda more: progress.advance(task, more), wait_s=wait
            )
    except OperatorError as error:
        Console(file=sys.stderr).print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        Console().print(_as_table(found))
    raise typer.Exit(0 if found.good else 1)


def _as_table(found: Reconciled) -> Table:
    table = Table(title="Every payment against its answer")
    table.add_column("what")
    table.add_column("records", justify="right")
    for name in found.__struct_fields__:
        value = getattr(found, name)
        if isinstance(value, int):
            bad = value and name in ("missing", "conflicting", "unasked", "dead_letters_missing")
            table.add_row(name.replace("_", " "), f"{value:,}", style="bold red" if bad else None)
    for name in [*found.missing_origins, *found.conflicting_origins]:
        table.add_row(name, "", style="red")
    return table
