"""`fraud rates publish`: exchange rates to the base currency."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stream.cli.broker import known_settings
from stream.cli.talk import WhoOption, WhyOption, fail, print_json
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import OperatorError

app = typer.Typer(name="rates", help="Exchange rates to the base currency: publish.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """So that the one command keeps its name."""


@app.command(epilog='Example: fraud rates publish rates.json --by ana --why "rates of 1 November"')
def publish(
    file: Annotated[
        Path, typer.Argument(help='JSON, as in {"base": "EUR", "nano_base_per_minor": {"USD": 920000000}}')
    ],
    by: WhoOption,
    why: WhyOption,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let these rates hold, and no others, from the moment that a marker reaches each partition.

    A rate is what 10^9 minor units of a currency are worth, in minor units of the base.

    To EUR: of USD at 0.92 it is 920000000; of JPY, which has no decimals, at 0.006 it is 600000000.
    """
    from stream.control_files import rates_from
    from stream.in_force import read_in_force
    from stream.operate import write_control

    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        rates = rates_from(file.read_bytes())
        before = read_in_force(settings).rates
        offset = write_control(settings, "rates", rates, by=by, why=why)
    except (OperatorError, OSError) as error:
        fail(error)
    dropped = sorted(before.nano_base_per_minor.keys() - rates.nano_base_per_minor.keys() - {rates.base})
    if as_json:
        print_json(
            {
                "base": rates.base,
                "base_before": before.base,
                "rates": len(rates.nano_base_per_minor),
                "dropped": dropped,
                "offset": offset,
            }
        )
        return
    _warn(before.base, rates.base, dropped)
    Console().print(f"{len(rates.nano_base_per_minor)} rates to {rates.base}, from control@{offset} on.")


def _warn(base_before: str, base: str, dropped: list[str]) -> None:
    console = Console(file=sys.stderr, style="red")
    if base != base_before:
        console.print(
            f"The base was {base_before}: what windows hold of earlier payments stays in its units until it is too old "
            f"to count, and rules that compare amounts mean {base} now."
        )
    if dropped:
        console.print(f"Without a rate from now on, so without features of the amount: {', '.join(dropped)}.")
