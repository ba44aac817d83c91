"""`fraud init | mode | engine | skip`: what an operator says to a deployment, through `control`."""

import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from stream.cli.broker import known_settings
from stream.cli.talk import WhoOption, WhyOption, fail, print_json
from stream.cli.topics import BootstrapOption, JsonOption, PartitionsOption, PrefixOption
from stream.errors import OperatorError
from stream.in_force import read_in_force
from stream.operate import Start, initialise, skip, write_control
from stream.rules.errors import RulesRefused
from stream.rules.policy import DEFAULT_POLICY, Policy, decode_policy, policy_version
from stream.version import ENGINE_OLDEST, ENGINE_VERSION
from topics.control import Engine
from topics.limits import LIMITS_DEFAULT

ByOption = Annotated[str, typer.Option("--by", help="Who says so. Default: the user of this machine.")]


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

    If that has been said before, nothing is changed: no setting, and no topic that has gone since is made again.
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
        fail(error)
    if as_json:
        print_json(done)
    elif done.existed:
        Console().print("It has been initialised before; nothing was changed. `fraud control show` tells what holds.")
    else:
        Console().print(f"Created {len(done.created)} topics. Reading begins {start}. Next: `fraud worker`.")
    if done.missing:
        Console(file=sys.stderr).print(
            f"topics are missing: {', '.join(done.missing)}. Operator: they were deleted since; restore them, or let "
            "`fraud topics create` make them again, empty",
            style="red",
            markup=False,
        )


def mode(
    mode: Annotated[str, typer.Argument(help="shadow: everything is approved; enforce: verdicts are outcomes.")],
    by: WhoOption,
    why: WhyOption,
    policy: Annotated[
        Path | None, typer.Option(help="A policy (JSON) with thresholds; default: those that are in force.")
    ] = None,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch between shadow and enforce, from the moment that a marker reaches each partition.

    Thresholds stay as they are in force, unless a policy is given.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        base = read_in_force(settings).policy if policy is None else decode_policy(policy.read_bytes())
        wanted = _policy(mode, base)
        offset = write_control(settings, "policy", wanted, by=by, why=why)
    except (OperatorError, OSError) as error:
        fail(error)
    version = policy_version(wanted)
    if as_json:
        print_json({"version": version, "offset": offset, **msgspec.to_builtins(wanted)})
    else:
        Console().print(f"Policy {version}: {policy_text(wanted)}; from control@{offset} on.", highlight=False)


def engine(
    engine: Annotated[int, typer.Argument(min=ENGINE_OLDEST, max=ENGINE_VERSION, help="One that this release holds.")],
    by: WhoOption,
    why: WhyOption,
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
        fail(error)
    if as_json:
        print_json({"engine": engine, "offset": offset})
    else:
        Console().print(f"Engine {engine}, from control@{offset} on.")


def skip_record(
    topic: Annotated[str, typer.Argument(help="A journal: account-journal, terminal-journal or examples.")],
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0)],
    by: WhoOption,
    why: WhyOption,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a stopped partition go on without one record: the one that the log line STOPPED names.

    A record of a journal is a block: up to 500 payments go with it, and are answered `refused: skipped`; of examples,
    the learner never sees them. On other topics a record that cannot be read cannot be skipped either, and one that is
    skipped is not answered.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        at = skip(settings, topic, partition, offset, by=by, why=why)
    except OperatorError as error:
        fail(error)
    if as_json:
        print_json({"topic": topic, "partition": partition, "offset": offset, "control_offset": at})
    else:
        Console().print(f"{topic}[{partition}]@{offset} will be skipped (control@{at}).")


def policy_text(policy: Policy) -> str:
    """In words.

    >>> policy_text(DEFAULT_POLICY)
    'shadow, challenge from 0.2, review from 0.5, decline from 0.8, a model has a say from 100 frauds on'
    """
    thresholds = {
        "challenge": policy.challenge_from,
        "review": policy.review_from,
        "decline": policy.decline_from,
    }
    said = [f"{verdict} {'never' if at is None else f'from {at}'}" for verdict, at in thresholds.items()]
    return ", ".join([policy.mode, *said, f"a model has a say from {policy.matured_frauds_min} frauds on"])


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
        fail(error)
