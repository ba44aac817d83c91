"""`fraud publish`: send a dataset to the broker as a processor and its label feed would."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stream.cli.broker import known_bootstrap
from stream.dataset import HOUR_MS, Dataset, DatasetError, Event
from stream.publish import Published, Publisher, PublishFailed, connect, line_events, publish

FAILED: Final = 1
WRONG_USE: Final = 2


def _client(settings: list[str]) -> dict[str, str]:
    """Settings of librdkafka from NAME=VALUE."""
    client: dict[str, str] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            # The value may be a password: it is not repeated.
            raise typer.BadParameter("write NAME=VALUE, such as security.protocol=SASL_SSL", param_hint="--client")
        client[name] = value
    return client


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
    bootstrap: Annotated[
        str | None, typer.Option(envvar="FRAUD_BOOTSTRAP", help="HOST:PORT; else the broker that fraud started.")
    ] = None,
    prefix: Annotated[str, typer.Option(envvar="FRAUD_TOPIC_PREFIX", help="Put before every topic's name.")] = "",
    client: Annotated[list[str] | None, typer.Option(help="A setting of librdkafka, NAME=VALUE. Repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
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
    publisher = Publisher(connect(known_bootstrap(bootstrap), client=_client(client or [])), prefix=prefix)
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
