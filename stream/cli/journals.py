"""`fraud journals verify`: the same journals, the same answers, byte for byte."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from stream.errors import OperatorError
from stream.replay.rerun import Rerun, rerun

app = typer.Typer(name="journals", help="Journals as files: kept, and applied again.", no_args_is_help=True)

FAILED: Final = 1
WRONG_USE: Final = 2


@app.command(epilog="Example: fraud journals verify journals/")
def verify(
    directory: Annotated[Path, typer.Argument(help="Of `fraud evaluate --keep-journals` or `fraud journals dump`.")],
    batch: Annotated[int, typer.Option(min=1, help="Records applied at once; changes nothing.")] = 1_000,
    plain: Annotated[bool, typer.Option("--plain", help="Without compiled kernels; changes nothing, is slow.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Apply recorded journals again from an empty state, and compare the answers byte for byte.

    The stages read nothing but the journals. Exit code 1 if one answer, dead letter or model version differs.
    """
    try:
        found = rerun(directory, batch=batch, plain=plain)
    except OperatorError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False)
        raise typer.Exit(WRONG_USE) from error
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _show(found)
    if not found.equal:
        raise typer.Exit(FAILED)


def _show(found: Rerun) -> None:
    console = Console()
    table = Table()
    heads = ("topic", "recorded", "reproduced", "missing", "unexpected", "differing", "conflicting")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for topic, c in found.topics.items():
        counts = (c.recorded, c.reproduced, c.missing, c.unexpected, c.differing, c.conflicting)
        table.add_row(topic, *(f"{count:,}" for count in counts))
    console.print(table)
    applied = ", ".join(f"{count:,} records of {journal}" for journal, count in found.records.items())
    console.print(f"applied {applied}; answers hash to {found.sha[:16]}", highlight=False)
    for line in found.first_differences:
        console.print(line, style="red", highlight=False)
