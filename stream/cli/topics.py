"""`fraud topics create | check | acls`: the catalogue's topics on a broker."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from stream.broker.acls import PRINCIPALS, Acl, apply_acls, wanted_acls
from stream.broker.errors import BrokerError
from stream.broker.topic_admin import Finding, check_topics, create_topics, deployment_partitions
from stream.cli.broker import known_settings
from stream.cli.talk import fail, print_json
from stream.settings import Settings
from topics.catalogue import Principal, Topic, catalogue
from topics.schema import schema_files

app = typer.Typer(name="topics", help="The topics of the catalogue, on a broker.", no_args_is_help=True)

BootstrapOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        help="HOST:PORT of a broker. Default: FRAUD_BOOTSTRAP, else that of `fraud broker start`.",
    ),
]
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", help="Put before every topic's name. Default: FRAUD_PREFIX, else nothing.")
]
PartitionsOption = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        min=1,
        help="Of the topics that may have several. Default: the catalogue's. Never change it later.",
    ),
]
ThesePartitionsOption = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        min=1,
        help="Of the topics that may have several. Default: as many as `payments` has; where it is not there yet, the "
        "catalogue's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command(epilog="Example: fraud topics create --bootstrap 127.0.0.1:9092")
def create(
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    partitions: ThesePartitionsOption = None,
    replication: Annotated[
        int, typer.Option(min=-1, help="Copies of each partition; -1 leaves it to the broker's default.")
    ] = -1,
    as_json: JsonOption = False,
) -> None:
    """Create the topics that do not exist. Those that exist are left as they are, and then checked.

    Exit code 1 if one that existed is not as it should be.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    client = settings.client()
    try:
        wanted = _wanted(settings, partitions)
        made = create_topics(client, wanted, replication=replication)
        findings = check_topics(client, wanted)
    except BrokerError as error:
        fail(error)
    if as_json:
        print_json({"created": made.created, "existed": made.existed, "findings": msgspec.to_builtins(findings)})
    else:
        Console().print(f"Created {len(made.created)} topics; {len(made.existed)} existed.")
        _print_findings(findings)
    raise typer.Exit(1 if findings else 0)


@app.command(epilog="Example: fraud topics check --bootstrap 127.0.0.1:9092 --json")
def check(
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    partitions: ThesePartitionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the broker's topics with the catalogue: presence, partitions, configuration. Changes nothing.

    Exit code 1 if anything differs.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    client = settings.client()
    try:
        wanted = _wanted(settings, partitions)
        findings = check_topics(client, wanted)
    except BrokerError as error:
        fail(error)
    if as_json:
        print_json({"topics": len(wanted), "findings": msgspec.to_builtins(findings)})
    elif findings:
        _print_findings(findings)
    else:
        Console().print(f"All {len(wanted)} topics are as the catalogue says.")
    raise typer.Exit(1 if findings else 0)


def _wanted(settings: Settings, partitions: int | None) -> list[Topic]:
    """The catalogue's topics, with as many partitions as this deployment has, unless it is said how many."""
    if partitions is None:
        several = [topic.name for topic in catalogue(settings.prefix).values() if topic.partitions > 1]
        partitions = deployment_partitions(settings.client(), several)
    return list(catalogue(settings.prefix, partitions).values())


@app.command(epilog="Example: fraud topics acls --apply --principal detector=svc-fraud --principal blocker=svc-auth")
def acls(
    apply: Annotated[
        bool, typer.Option("--apply/--print", help="Grant them on the broker, or only show them.")
    ] = False,
    principal: Annotated[
        list[str] | None,
        typer.Option(help=f"ROLE=USER, if the user has another name than its role: {', '.join(PRINCIPALS)}."),
    ] = None,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who may read and write which topic: the catalogue's readers and writers, as ACLs. Nothing is ever taken away.

    With --apply, exit code 1 if the broker allows more on these topics than the catalogue says.
    """
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    wanted = wanted_acls(catalogue(settings.prefix).values(), group=settings.group, names=_names(principal or []))
    beyond: list[str] = []
    if apply:
        try:
            beyond = apply_acls(settings.client(), wanted).beyond
        except BrokerError as error:
            fail(error)
    if as_json:
        print_json({"acls": msgspec.to_builtins(wanted), "applied": apply, "beyond": beyond})
    else:
        _print_acls(wanted, beyond, applied=apply)
    raise typer.Exit(1 if beyond else 0)


def _names(given: list[str]) -> dict[Principal, str]:
    names: dict[Principal, str] = {}
    for text in given:
        role, _, user = text.partition("=")
        if role not in PRINCIPALS or not user:
            raise typer.BadParameter(f"{text!r} is not ROLE=USER", param_hint="--principal")
        names[role] = user
    return names


def _print_acls(wanted: list[Acl], beyond: list[str], *, applied: bool) -> None:
    if not applied:
        # Lines for kafka-acls, so no table: they are to be copied.
        sys.stdout.writelines(acl.command + "\n" for acl in wanted)
        return
    Console().print(f"Granted {len(wanted)} permissions.")
    for line in beyond:
        Console().print(f"allowed beyond the catalogue: {line}", style="red", markup=False)


def _print_findings(findings: list[Finding]) -> None:
    if not findings:
        return
    table = Table("topic", "what", "wanted", "found", "what to do")
    for finding in findings:
        table.add_row(finding.topic, finding.what, finding.wanted, finding.found, finding.advice)
    Console().print(table)


@app.command(epilog="Example: fraud topics schemas schemas/")
def schemas(directory: Annotated[Path, typer.Argument(help="Where they go; made if it is not there.")]) -> None:
    """Write the JSON Schemas of the public contracts, for other languages."""
    directory.mkdir(parents=True, exist_ok=True)
    files = schema_files()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    Console().print(f"Wrote {len(files)} schemas to {directory}.")
