"""`fraud examples export`: a training set, with the features as the live system saw them."""

import datetime
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from stream.broker.topic_admin import topic_ids
from stream.broker.whole_topic import whole_partition
from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import FraudstreamError
from stream.replay.journal_files import JournalReader, file_name
from stream.replay.training_set import write_training_set
from stream.stages.control import CONTROL
from stream.stages.terminal import EXAMPLES
from topics.skips import Skips

app = typer.Typer(name="examples", help="What the learner was taught.", no_args_is_help=True)

FAILED: Final = 1
WRONG_USE: Final = 2


def _instant_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        instant = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no time; write 2026-01-31 or 2026-01-31T12:00", param_hint="--until"
        ) from error
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=datetime.UTC)
    return round(instant.timestamp() * 1_000)


@app.command(epilog="Example: fraud examples export training.parquet --until 2026-01-31")
def export(
    out: Annotated[Path, typer.Argument(help="The Parquet file to write: one row a payment.")],
    journals: Annotated[
        Path | None, typer.Option(help="Read recorded journals in this directory, not a broker.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Truth as it was known then (UTC): a day's begin, or a time.")
    ] = None,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what the learner was taught as a training set: payment, truth, weight, and each feature as a column f_NAME.

    Features are the bytes that decided the payment, never computed again. The weight makes up for legitimate payments
    that were left out. Rows of kind `unlabelled` are a random hundredth, whose truth is not known yet.
    """
    until_ms = _instant_ms(until)
    try:
        if journals is not None:
            reader = JournalReader(journals / file_name(EXAMPLES, 0))
            records, topic_id = reader.records(), reader.head.topic_id
            said = JournalReader(journals / file_name(CONTROL, 0)).records()
        else:
            settings = known_settings(bootstrap=bootstrap, prefix=prefix)
            client, name = settings.client(), settings.prefix + EXAMPLES
            records, topic_id = whole_partition(client, name, 0), topic_ids(client, [name])[name]
            said = whole_partition(client, settings.prefix + CONTROL, 0)
        skipped = Skips.said_in(record.value for record in said).of(topic_id, 0)
        done = write_training_set(records, out, until_ms=until_ms, skipped=skipped)
    except OSError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(WRONG_USE) from error
    except FraudstreamError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(FAILED) from error
    if as_json:
        sys.stdout.write(msgspec.json.encode(done).decode() + "\n")
        return
    Console().print(
        f"{done.rows:,} payments: {done.frauds:,} frauds, {done.legitimate:,} legitimate, "
        f"{done.unlabelled:,} unlabelled; features {done.features_version}",
        highlight=False,
    )
