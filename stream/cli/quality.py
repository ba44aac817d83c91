"""`fraud quality`: a report on the answers to a file of payments, with plots."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stream import collector
from stream.cli.evaluate import day_ms, maturity_ms_of
from stream.cli.topics import JsonOption
from stream.dataset import DatasetError
from stream.errors import OperatorError
from stream.evaluate.ablation import EXAMPLES_MAX
from stream.evaluate.page import write_page
from stream.evaluate.quality import Quality, quality
from stream.evaluate.run import AUTO, Files
from stream.evaluate.settings import Evaluation

FAILED: Final = 1
WRONG_USE: Final = 2
EPILOG: Final = "Example: fraud quality payments.parquet labels.parquet --maturity 15d --html quality.html"


def command(
    payments: Annotated[Path, typer.Argument(help="payments.parquet, in order of event_time.")],
    labels: Annotated[Path, typer.Argument(help="labels.parquet, in order of observed_at.")],
    html: Annotated[Path | None, typer.Option(help="Write the report to this file; it needs nothing else.")] = None,
    updates: Annotated[Path | None, typer.Option(help="updates.parquet: what became of payments.")] = None,
    maturity: Annotated[
        str | None, typer.Option(help="7d, 12h: after so long without a fraud label a payment is legitimate.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first payments.")] = None,
    from_day: Annotated[str | None, typer.Option("--from", help="First day (UTC) of the figures.")] = None,
    to_day: Annotated[str | None, typer.Option("--to", help="The figures end before this day (UTC).")] = None,
    ablation: Annotated[
        int, typer.Option(min=0, help="Learn so many examples again without each group of features; 0: don't.")
    ] = EXAMPLES_MAX,
    as_json: JsonOption = False,
) -> None:
    """Evaluate as `fraud evaluate` does, and report on it.

    Precision and recall, calibration, learning over time, precision by reason, what each group of features is worth,
    and what the model costs.
    """
    errors = Console(stderr=True)
    settings = Evaluation(maturity_ms=maturity_ms_of(maturity), base_currency=AUTO)
    files = Files(payments=payments, labels=labels, updates=updates, limit=limit)
    from_ms, to_ms = day_ms(from_day), day_ms(to_day)
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    collector.settle(collector.OFFLINE_YOUNG_MAX)
    try:
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("evaluating")
            found = quality(
                files,
                settings,
                from_ms=from_ms,
                to_ms=to_ms,
                ablation_examples=ablation,
                progress=lambda count, total: progress.update(task, completed=count, total=total),
            )
        if html is not None:
            write_page(found, html, title=f"Quality of the answers to {payments.name}")
    except (DatasetError, OSError) as error:
        errors.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(WRONG_USE) from error
    except OperatorError as error:
        errors.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    _show(found, html)


def _show(found: Quality, page: Path | None) -> None:
    console = Console()
    figures = found.evaluated.report.figures

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    console.print(
        f"{figures.payments:,} payments, {figures.frauds:,} frauds: average precision "
        f"{figure(figures.average_precision)}, AUC {figure(figures.auc)}, recall at 1 % "
        f"{figure(figures.recall_one_percent)}, expected over observed {figure(figures.expected_over_observed)}",
        highlight=False,
    )
    if found.cost is not None:
        cost = found.cost
        console.print(
            f"predict {cost.predict_us:.2f} us a payment in batches of 1,000, learn {cost.learn_us:.1f} us an example, "
            f"a version {cost.weights_bytes:,} bytes",
            highlight=False,
        )
    if page is not None:
        console.print(f"Wrote {page}.", highlight=False)
