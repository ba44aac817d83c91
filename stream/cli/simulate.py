"""`fraud simulate`: write a simulated dataset."""

import datetime
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from stream.dataset import write_table
from stream.simulate import REAL_DELAY, SHORT_DELAY, LabelDelay, SimulationSettings, simulate

DAY_MS: Final = 86_400_000
DELAYS: Final = {"real": REAL_DELAY, "short": SHORT_DELAY}


class Simulated(msgspec.Struct, kw_only=True):
    """What `fraud simulate --json` prints."""

    out: str
    seed: int
    payments: int
    labels: int
    updates: int
    frauds: int
    accounts: int
    terminals: int
    days: int
    seconds: float
    payments_per_second: float


def _start_ms(text: str) -> int:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a day; write 2025-01-31", param_hint="--start") from error
    return (day - datetime.date(1970, 1, 1)).days * DAY_MS


def _delay(label_delay: str) -> LabelDelay:
    if label_delay not in DELAYS:
        raise typer.BadParameter(f"choose one of {', '.join(DELAYS)}", param_hint="--label-delay")
    return DELAYS[label_delay]


EPILOG: Final = "Example: fraud simulate --seed 7 --days 90 --accounts 2000 --out data/sim7"


def command(
    out: Annotated[Path, typer.Option(help="Directory for payments, labels, updates and truth, as .parquet.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 1,
    days: Annotated[int, typer.Option(min=1, help="Days of payments.")] = 60,
    accounts: Annotated[int, typer.Option(min=1, help="Accounts with habits.")] = 5_000,
    terminals: Annotated[
        int | None, typer.Option(min=1, help="Points of acceptance; accounts / 2.5 if not set.")
    ] = None,
    payments_per_day: Annotated[
        float | None, typer.Option(min=0.01, help="Of all accounts together; 1 an account if not set.")
    ] = None,
    fraud_rate: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of payments that are fraud.")] = 0.01,
    label_delay: Annotated[
        str, typer.Option(help="real: chargebacks after 1 to 120 days; short: after 1 to 14 days.")
    ] = "real",
    start: Annotated[str, typer.Option(help="First day, UTC.")] = "2025-01-01",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Simulate payments with several kinds of fraud, and the chargebacks that come weeks later.

    Accounts and terminals have habits; some frauds are never reported, some disputes are no fraud. truth.parquet
    tells which payments are fraud, and of which kind; nothing of it is ever sent.
    """
    try:
        settings = SimulationSettings(
            seed=seed,
            accounts=accounts,
            terminals=terminals or max(20, accounts * 2 // 5),
            days=days,
            payments_per_day=payments_per_day or float(accounts),
            fraud_rate=fraud_rate,
            label_delay=_delay(label_delay),
            start_ms=_start_ms(start),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    begun = time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"about {settings.payments_per_day * days:,.0f} payments", total=5)
        world = simulate(settings)
        progress.advance(task)
        out.mkdir(parents=True, exist_ok=True)
        for name, table in world.tables().items():
            progress.update(task, description=f"{name}.parquet", advance=1)
            write_table(table, out / f"{name}.parquet")
    seconds = time.perf_counter() - begun
    done = Simulated(
        out=str(out),
        seed=seed,
        payments=world.payments.num_rows,
        labels=world.labels.num_rows,
        updates=world.updates.num_rows,
        frauds=world.truth.num_rows,
        accounts=settings.accounts,
        terminals=settings.terminals,
        days=days,
        seconds=round(seconds, 3),
        payments_per_second=round(world.payments.num_rows / seconds, 1),
    )
    if as_json:
        print(msgspec.json.encode(done).decode())
        return
    Console().print(
        f"{done.payments:,} payments, {done.frauds:,} of them fraud, {done.labels:,} labels, {done.updates:,} updates"
        f" in {done.seconds:.1f} s: {done.out}",
        highlight=False,
    )
