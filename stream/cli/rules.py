"""`fraud rules show | check | publish`: the rules beside the model, as data."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stream.cli.broker import known_settings
from stream.cli.talk import WhoOption, WhyOption, fail, print_json
from stream.cli.topics import BootstrapOption, JsonOption, PrefixOption
from stream.errors import OperatorError
from stream.rules.ruleset import RuleSet, canonical_bytes, decode_ruleset, ruleset_version

app = typer.Typer(name="rules", help="The rules beside the model: show, check, publish.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="A rule set, JSON, as `fraud rules show --json` prints one.")]


@app.command(epilog="Example: fraud rules show --in-force --json > rules.json")
def show(
    in_force: Annotated[bool, typer.Option("--in-force", help="Those of a deployment, as they are now.")] = False,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """The first rule set, with which a deployment begins; or the one that is in force."""
    from stream.rules.default import DEFAULT_RULES

    rules = _read_in_force(bootstrap, prefix) if in_force else DEFAULT_RULES
    if as_json:
        sys.stdout.write(canonical_bytes(rules).decode() + "\n")
    else:
        Console().print(_as_table(rules))


def _read_in_force(bootstrap: str | None, prefix: str | None) -> RuleSet:
    from stream.in_force import read_in_force

    try:
        return read_in_force(known_settings(bootstrap=bootstrap, prefix=prefix)).rules
    except OperatorError as error:
        fail(error)


@app.command(epilog="Example: fraud rules check rules.json")
def check(file: FileArgument, as_json: JsonOption = False) -> None:
    """Whether a rule set can be published: its form, and that every feature it names exists. Exit code 1 if not."""
    rules = _read(file)
    if as_json:
        print_json({"version": ruleset_version(rules), "rules": len(rules.rules)})
    else:
        Console().print(_as_table(rules))


@app.command(epilog='Example: fraud rules publish rules.json --by ana --why "fewer reviews of small amounts"')
def publish(
    file: FileArgument,
    by: WhoOption,
    why: WhyOption,
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let these rules decide, from the moment that a marker reaches each partition."""
    from stream.operate import write_control

    rules = _read(file)
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    try:
        offset = write_control(settings, "rules", rules, by=by, why=why)
    except OperatorError as error:
        fail(error)
    version = ruleset_version(rules)
    if as_json:
        print_json({"version": version, "offset": offset})
    else:
        Console().print(f"Rules {version} hold from control@{offset} on.")


def _read(file: Path) -> RuleSet:
    from stream.rules.compiled import compile_rules
    from stream.stages.decide import FULL_NAMES

    try:
        rules = decode_ruleset(file.read_bytes())
        compile_rules(rules, FULL_NAMES)
    except (OperatorError, OSError) as error:
        fail(error)
    return rules


def _as_table(rules: RuleSet) -> Table:
    table = Table(title=f"Rules {ruleset_version(rules)}")
    for column in ("code", "action", "when", "title"):
        table.add_column(column)
    for rule in rules.rules:
        when = "\n".join(f"{c.feature} {c.op} {'' if c.op in ('absent', 'present') else c.value}" for c in rule.when)
        table.add_row(rule.code, rule.action if rule.enabled else f"({rule.action})", when, rule.title)
    return table
