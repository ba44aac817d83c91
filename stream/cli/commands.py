"""The commands of `fraud`: wires the command groups together, and does nothing else."""

import typer

from stream.cli import (
    broker,
    control,
    demo,
    evaluate,
    examples,
    features,
    journals,
    operate,
    publish,
    quality,
    rates,
    reconcile,
    rules,
    settings,
    simulate,
    topics,
    worker,
)

app = typer.Typer(
    name="fraud",
    help="Streaming fraud detection whose decisions are a deterministic function of the log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo", epilog=demo.EPILOG)(demo.command)
app.add_typer(broker.app)
app.add_typer(topics.app)
app.add_typer(journals.app)
app.add_typer(examples.app)
app.add_typer(control.app)
app.add_typer(rules.app)
app.add_typer(settings.app)
app.add_typer(rates.app)
app.command("init", epilog="Example: fraud init --from earliest")(operate.init)
app.command("worker", epilog="Example: fraud worker --state-dir state/a --metrics-port 9464")(worker.command)
app.command("publish", epilog=publish.EPILOG)(publish.command)
app.command("simulate", epilog="Example: fraud simulate --seed 1 --days 30 --out data")(simulate.command)
app.command("reconcile", epilog=reconcile.EPILOG)(reconcile.command)
app.command("evaluate", epilog=evaluate.EPILOG)(evaluate.command)
app.command("quality", epilog=quality.EPILOG)(quality.command)
app.command("features", epilog=features.EPILOG)(features.command)
app.command("mode", epilog='Example: fraud mode enforce --by ana --why "two weeks in the shadow were fine"')(
    operate.mode
)
app.command("engine", epilog='Example: fraud engine 1 --by ana --why "back to the release before"')(operate.engine)
app.command("skip", epilog='Example: fraud skip terminal-journal 2 4711 --by ana --why "issue 12"')(operate.skip_record)
