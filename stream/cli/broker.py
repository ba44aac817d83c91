"""`fraud broker start | stop | status`: a real Apache Kafka on this machine, for trying things out."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from stream.broker.detached import DetachedBroker, Status
from stream.broker.embedded import HEAP_MB
from stream.broker.errors import BrokerError
from stream.cli.talk import fail, print_json
from stream.errors import ConfigurationError
from stream.settings import Settings

app = typer.Typer(
    name="broker",
    help="A single-node Apache Kafka on this machine, on loopback, without Docker. For trials, not for production.",
    no_args_is_help=True,
)

DirectoryOption = Annotated[
    Path | None,
    typer.Option("--dir", help="Its directory. Default: FRAUD_BROKER_DIR, else below the user's state directory."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command(epilog="Example: fraud broker start --port 9092")
def start(
    directory: DirectoryOption = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1. Default: the last one, else a free one.")
    ] = None,
    heap_mb: Annotated[int, typer.Option(min=128, help="Java heap in MB.")] = HEAP_MB,
    as_json: JsonOption = False,
) -> None:
    """Start the broker, or say where it runs already. It goes on after this command ends.

    The first start downloads Apache Kafka (44 MB) and checks it against recorded SHA-256 sums.
    """
    broker = DetachedBroker(directory)
    try:
        record, started = broker.start(port=port, heap_mb=heap_mb)
    except BrokerError as error:
        fail(error)
    except KeyboardInterrupt:
        # What was started is ended by then.
        raise typer.Exit(130) from None
    if as_json:
        print_json({"started": started, **msgspec.to_builtins(broker.status())})
        return
    Console().print(f"{'Started' if started else 'It runs already'}: [bold]{record.bootstrap}[/bold], pid {record.pid}")
    Console().print(f"Use it with --bootstrap {record.bootstrap}; end it with `fraud broker stop`.")


@app.command(epilog="Example: fraud broker stop")
def stop(directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """End the broker in order. Its data stay for the next start. Ends well also if it did not run."""
    stopped = DetachedBroker(directory).stop()
    if as_json:
        print_json({"stopped": stopped})
    else:
        Console().print("Stopped." if stopped else "It did not run.")


@app.command(epilog="Example: fraud broker status --json")
def status(directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """Say whether the broker runs and answers. Exit code 0 if it answers, else 1."""
    found = DetachedBroker(directory).status()
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        Console().print(_as_table(found))
    raise typer.Exit(0 if found.answers else 1)


def known_settings(*, bootstrap: str | None = None, prefix: str | None = None) -> Settings:
    """Settings with a broker: the option's, else the environment's, else that of `fraud broker start`.

    Ends with exit code 2 if there is none, or if the settings can't work.
    """
    given: dict[str, Any] = {
        name: value for name, value in (("bootstrap", bootstrap), ("prefix", prefix)) if value is not None
    }
    try:
        settings = Settings(**given)
        if settings.bootstrap is None and (running := DetachedBroker().running()) is not None:
            given["bootstrap"] = running.bootstrap
            settings = Settings(**given)
        settings.client()
    except (ConfigurationError, ValidationError) as error:
        Console(file=sys.stderr).print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    return settings


def _as_table(found: Status) -> Table:
    table = Table(show_header=False, box=None)
    state = "answers" if found.answers else "runs, but does not answer" if found.running else "does not run"
    table.add_row("broker", state)
    if found.running:
        table.add_row("address", found.bootstrap or "")
        table.add_row("process", str(found.pid))
        table.add_row("up", f"{found.up_s or 0:.0f} s")
        table.add_row("memory", f"{(found.memory_bytes or 0) / 1e6:.0f} MB")
        table.add_row("version", f"Apache Kafka {found.kafka_version}")
    table.add_row("directory", found.directory)
    table.add_row("log", found.log)
    return table
