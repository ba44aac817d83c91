"""`fraud demo`: the whole system on this machine, in about two minutes."""

import os
import signal
import sys
import time
from types import FrameType
from typing import Annotated, Any, Final

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console

from stream.broker.detached import DetachedBroker
from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption
from stream.errors import FraudstreamError
from stream.settings import Settings

EPILOG: Final = "Example: fraud demo --payments 50000 --workers 2"


def command(
    payments: Annotated[
        int | None, typer.Option(help="Records to send, 1 % bad ones included. Default: 50000, with --short 20000.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed sends the same payments.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Worker processes that share the work.")] = 1,
    short: Annotated[bool, typer.Option("--short", help="Less than a minute: fewer payments.")] = False,
    bootstrap: BootstrapOption = None,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Before every topic's name; with it the topics stay. Default: one of its own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Payments stream, chargebacks come back days of their time later, and a model learns from them: watch it.

    Without a broker in the settings it starts an Apache Kafka of its own, which is gone at the end, as is everything
    else. On a broker that is configured, it uses topics of its own.

    Exit code 1 if a payment is unanswered, answers contradict each other, or a bad payment was not refused.
    """
    from stream.demo.plan import (
        PAYMENTS_DEFAULT,
        PAYMENTS_MAX,
        PAYMENTS_MIN,
        PAYMENTS_SHORT,
        SECONDS_DEFAULT,
        SECONDS_SHORT,
        plan_of,
    )

    count = payments if payments is not None else PAYMENTS_SHORT if short else PAYMENTS_DEFAULT
    if not PAYMENTS_MIN <= count <= PAYMENTS_MAX:
        raise typer.BadParameter(
            f"{count} is not within {PAYMENTS_MIN} and {PAYMENTS_MAX}: below, no model would be ready in time",
            param_hint="--payments",
        )
    settings = _configured(bootstrap, prefix)
    console = Console(file=sys.stderr)
    signal.signal(signal.SIGTERM, _ended)
    from stream.demo.run import run_demo  # numba takes a second: not for --help
    from stream.demo.view import View, summary

    plan = plan_of(count, seed=seed, workers=workers, seconds=SECONDS_SHORT if short else SECONDS_DEFAULT)
    try:
        with View(console) as view:
            report = run_demo(plan, settings, keep_topics=prefix is not None, look=view.look)
    except FraudstreamError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        # Broker, workers and their directories are gone by then.
        raise typer.Exit(130) from None
    if as_json:
        for failure in report.failures:
            console.print(failure, style="red", markup=False)
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        summary(report, Console())
    raise typer.Exit(1 if report.failures else 0)


def _configured(bootstrap: str | None, prefix: str | None) -> Settings | None:
    """The broker that was asked for, or that the settings or `fraud broker start` name; None: the demo brings one."""
    try:
        known = bootstrap is not None or Settings(**_NOTHING).bootstrap is not None
    except ValidationError:
        known = True  # `known_settings` says what is wrong
    if not known and DetachedBroker().running() is None:
        return None
    chosen = prefix if prefix is not None else f"demo-{os.getpid()}-{int(time.time())}."
    settings = known_settings(bootstrap=bootstrap, prefix=chosen)
    return settings.model_copy(update={"group": f"{chosen}workers"})


_NOTHING: Final[dict[str, Any]] = {}


def _ended(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the demo as Ctrl-C does: in order."""
    raise KeyboardInterrupt
