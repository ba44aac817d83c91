"""`fraud init | mode | engine | skip`: what an operator says to a deployment, through `control`."""

import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption, JsonOption, PartitionsOption, PrefixOption
from stream.errors import OperatorError
from stream.operate import Start, initialise, skip, write_control
from stream.rules.errors import RulesRefused
from stream.rules.policy import DEFAULT_POLICY, Policy, decode_policy
from stream.version import ENGINE_OLDEST, ENGINE_VERSION
from topics.control import Engine
from topics.limits import LIMITS_DEFAULT

ByOption = Annotated[str, typer.Option("--by", help="Who says so. Default: the user of this machine.")]
WhyOption = Annotated[str, typer.Option("--why", help="For what reason; compliance will ask.")]


def init(
    start: Annotated[str, typer.Option("--from", help="earliest, latest, or a time such as 2026-11-01T00:00:00Z.")],
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    partitions: PartitionsOption = None,
    replication: Annotated[int, typer.Option(min=-1, help="Copies of each partition; -1: the broker's default.")] = -1,
    base_currency: Annotated[
        str | None, typer.Option(help="ISO 4217; amounts are compared in it. Default: EUR.")
    ] = None,
    maturity_days: Annotated[
        float, typer.Option(min=0.001, help="A payment without a fraud label is legitimate.")
    ] = 45,
    mode: Annotated[str, typer.Option(help="shadow or enforce.")] = "shadow",
    by: ByOption = "",
    why: WhyOption = "first start",
    as_json: JsonOption = False,
) -> None:
    """Make the topics, and say once from where payments, updates and labels are read first.

    Exit code 1 if that has been said before: nothing is changed then.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    limits = msgspec.structs.replace(LIMITS_DEFAULT, maturity_ms=int(maturity_days * 86_400_000))
    try:
        done = initialise(
            settings,
            _start(start),
            by=by or getpass.getuser(),
            why=why,
            partitions=partitions,
            replication=replication,
            limits=limits,
            base_currency=base_currency,
            policy=None if mode == "shadow" else _policy(mode),
        )
    except OperatorError as error:
        _fail(error)
    if as_json:
        _print_json(done)
    elif done.existed:
        Console().print("It has been initialised before; nothing was changed.")
    else:
        Console().print(f"Created {len(done.created)} topics. Reading begins {start}. Next: `fraud worker`.")
    raise typer.Exit(1 if done.existed else 0)


def mode(
    mode: Annotated[str, typer.Argument(help="shadow: everything is approved; enforce: verdicts are outcomes.")],
    by: Annotated[str, typer.Option("--by", help="Who says so.")],
    why: Annotated[str, typer.Option("--why", help="For what reason; compliance will ask.")],
    policy: Annotated[
        Path | None, typer.Option(help="A policy (JSON) with thresholds; default: the first one.")
    ] = None,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch between shadow and enforce, from the moment that a marker reaches each partition."""
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        base = DEFAULT_POLICY if policy is None else decode_policy(policy.read_bytes())
        offset = write_control(settings, "policy", _policy(mode, base), by=by, why=why)
    except (OperatorError, OSError) as error:
        _fail(error)
    if as_json:
        _print_json({"mode": mode, "offset": offset})
    else:
        Console().print(f"{mode}, from control@{offset} on.")


def engine(
    engine: Annotated[int, typer.Argument(min=ENGINE_OLDEST, max=ENGINE_VERSION, help="One that this release holds.")],
    by: Annotated[str, typer.Option("--by", help="Who says so.")],
    why: Annotated[str, typer.Option("--why", help="For what reason; compliance will ask.")],
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let another engine decide, from the moment that a marker reaches each partition.

    Upwards: when every worker runs a release that holds it. Back: before the first worker runs the older release.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        offset = write_control(settings, "engine", Engine(engine=engine), by=by, why=why)
    except OperatorError as error:
        _fail(error)
    if as_json:
        _print_json({"engine": engine, "offset": offset})
    else:
        Console().print(f"Engine {engine}, from control@{offset} on.")


def skip_record(
    topic: Annotated[str, typer.Argument(help="account-journal, terminal-journal, examples or a foreign topic.")],
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0)],
    by: Annotated[str, typer.Option("--by", help="Who says so.")],
    why: Annotated[str, typer.Option("--why", help="For what reason; compliance will ask.")],
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a stopped partition go on without one record. Its payments are answered `refused: skipped`."""
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        at = skip(settings, topic, partition, offset, by=by, why=why)
    except OperatorError as error:
        _fail(error)
    if as_json:
        _print_json({"topic": topic, "partition": partition, "offset": offset, "control_offset": at})
    else:
        Console().print(f"{topic}[{partition}]@{offset} will be skipped (control@{at}).")


def _start(text: str) -> Start:
    if text == "earliest" or text == "latest":
        return text
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither earliest, latest nor an ISO 8601 time", param_hint="--from"
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _policy(mode: str, base: Policy = DEFAULT_POLICY) -> Policy:
    if mode not in ("shadow", "enforce"):
        raise typer.BadParameter(f"{mode!r} is neither shadow nor enforce", param_hint="mode")
    try:
        return msgspec.structs.replace(base, mode=mode)
    except RulesRefused as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    Console(file=sys.stderr).print(str(error), style="red", markup=False)
    raise typer.Exit(1) from error


def _print_json(what: object) -> None:
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
