"""`fraud publish`: send a dataset to the broker as a processor and its label feed would."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.dataset import HOUR_MS, Dataset, DatasetError, Event
from stream.publish import Published, Publisher, PublishFailed, connect, line_events, publish

FAILED: Final = 1
WRONG_USE: Final = 2


def _send(
    events: Iterable[Event], kinds: tuple[str, ...], publisher: Publisher, rate: float | None, total: int | None
) -> Published:
    columns = (
        TextColumn("publishing"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    publisher.require_topics(kinds)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("publishing", total=total)
        return publish(events, publisher, rate=rate, progress=lambda more: progress.advance(task, more))


EPILOG: Final = "Example: fraud publish payments.parquet --labels labels.parquet --rate 1000"


def command(
    payments: Annotated[str, typer.Argument(help="payments.parquet, or - for JSON lines from standard input.")],
    labels: Annotated[Path | None, typer.Option(help="labels.parquet, merged in order of time.")] = None,
    updates: Annotated[Path | None, typer.Option(help="updates.parquet, merged in order of time.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Payments a second, open loop; else at full speed.")
    ] = None,
    clock_every_h: Annotated[float, typer.Option(min=0.001, help="Hours of data between two clock records.")] = 1.0,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish payments, and their labels and updates, in the order in which they happened.

    Lines from standard input are sent as they are, so that bad ones are answered, too: fraud publish - < lines.jsonl

    With labels, clock records say how far the labels are complete. Exit code 1 if the broker did not take a record;
    to publish all of it again is harmless.
    """
    errors = Console(stderr=True)
    if payments == "-" and (labels is not None or updates is not None):
        raise typer.BadParameter("labels and updates are merged with a file, not with standard input")
    kinds: tuple[str, ...] = ("payment",)
    total: int | None = None
    try:
        if payments == "-":
            events: Iterable[Event] = line_events(sys.stdin.buffer)
        else:
            dataset = Dataset(payments, labels, updates)
            for file, columns in dataset.ignored.items():
                errors.print(f"{file}: not sent: {', '.join(columns)}", highlight=False)
            events = dataset.events(clock_every_ms=max(1, int(clock_every_h * HOUR_MS)))
            kinds += ("label",) * (labels is not None) + ("update",) * (updates is not None)
            total = dataset.rows
    except DatasetError as error:
        errors.print(str(error), style="red", highlight=False)
        raise typer.Exit(WRONG_USE) from error
    broker = known_settings(bootstrap=bootstrap, prefix=prefix)
    publisher = Publisher(connect(broker.client()), prefix=broker.prefix)
    try:
        done = _send(events, kinds, publisher, rate, total)
    except (DatasetError, PublishFailed) as error:
        publisher.abandon()
        errors.print(str(error), style="red", highlight=False)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        publisher.abandon()
        raise
    if as_json:
        print(msgspec.json.encode(done).decode())
        return
    Console().print(
        f"{done.payments:,} payments, {done.labels:,} labels, {done.updates:,} updates, {done.clocks:,} clock records"
        f" in {done.seconds:.1f} s ({done.payments_per_second:,.0f} payments/s)",
        highlight=False,
    )
