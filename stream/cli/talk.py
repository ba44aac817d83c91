"""What commands have in common: who says why, how they fail, and how they print one JSON object."""

import sys
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

WhoOption = Annotated[str, typer.Option("--by", help="Who says so.")]
WhyOption = Annotated[str, typer.Option("--why", help="For what reason; compliance will ask.")]


def fail(error: Exception) -> NoReturn:
    """Says what is wrong and ends with exit code 1."""
    Console(file=sys.stderr).print(str(error), style="red", markup=False)
    raise typer.Exit(1) from error


def print_json(what: object) -> None:
    """One object on a line of its own."""
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
