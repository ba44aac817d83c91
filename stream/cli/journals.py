"""`fraud journals`: kept as files, and applied again: the same answers, byte for byte."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from stream import collector
from stream.broker.topic_admin import topic_ids
from stream.broker.whole_topic import TopicReader
from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import OperatorError
from stream.replay.dump import ORDER, DirectoryTaken, dump, places, require_free
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

    The stages read nothing but the journals. Exit code 1 if one answer, its details, a dead letter or a model
    version differs.
    """
    collector.settle(collector.OFFLINE_YOUNG_MAX)
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


@app.command(name="dump", epilog="Example: fraud journals dump journals/ --bootstrap 127.0.0.1:9092")
def dump_command(
    directory: Annotated[
        Path, typer.Argument(help="For one file a partition, of this dump only; made if it is not there.")
    ],
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy all journals of a deployment, its answers, their details, dead letters and control records into files.

    The broker keeps all of it but examples and control for 35 days at most; details say why a payment was answered as
    it was. About 630 bytes a payment, 230 of them details. Answers that a deployment at work has not given yet are
    missing in the files; let it come to rest first.
    """
    broker = known_settings(bootstrap=bootstrap, prefix=prefix)
    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} of {task.total:,} records"), TimeElapsedColumn())
    try:
        require_free(directory)
        ids = topic_ids(broker.client(), [broker.prefix + topic for topic in ORDER])
        with TopicReader(broker.client(), "dump") as reader, Progress(*columns, console=errors, transient=True) as bar:
            wanted = places({topic: ids[broker.prefix + topic] for topic in ORDER}, broker.prefix, reader.ends)
            task = bar.add_task("", total=sum(place.high - place.low for place in wanted))
            written = dump(
                reader.records,
                wanted,
                directory,
                prefix=broker.prefix,
                progress=lambda more: bar.advance(task, more),
            )
    except OperatorError as error:
        errors.print(str(error), style="red", highlight=False)
        raise typer.Exit(WRONG_USE if isinstance(error, DirectoryTaken) else FAILED) from error
    if as_json:
        print(msgspec.json.encode({"directory": str(directory), "records": written, "files": len(wanted)}).decode())
        return
    Console().print(f"{written:,} records in {len(wanted)} files: {directory}", highlight=False)


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
