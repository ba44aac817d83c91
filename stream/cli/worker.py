"""`fraud worker`: one process of the detector."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stream.cli.broker import known_settings
from stream.cli.topics import BootstrapOption, PrefixOption
from stream.errors import FraudstreamError
from stream.worker.quiet import Seldom


def command(
    bootstrap: BootstrapOption = None,
    prefix: PrefixOption = None,
    state_dir: Annotated[Path | None, typer.Option(help="This instance's state; nobody else's.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Consumer group; workers of one group share the partitions.")
    ] = None,
    snapshot_url: Annotated[str | None, typer.Option(help="Where snapshots go: file:///..., s3://...")] = None,
    tick_every: Annotated[float | None, typer.Option(min=0.1, help="Seconds between the learner's versions.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Metrics and health; 0: a free one.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Work on the partitions that the group gives to this process, until SIGTERM.

    SIGTERM: finish, checkpoint, leave, within 10 s. Exit code 1 after a failure; state is then the last checkpoint's.
    """
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for noisy in ("aiokafka", "faust", "mode", "kafka"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Seldom("aiokafka", "librdkafka"))
    settings = known_settings(bootstrap=bootstrap, prefix=prefix)
    given = {
        "state_dir": state_dir,
        "group": group,
        "snapshot_url": snapshot_url,
        "tick_every_s": tick_every,
        "metrics_port": metrics_port,
    }
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    from stream.worker.app import Worker  # numba and Faust take a second: not for --help

    try:
        code = Worker(settings).run()
    except FraudstreamError as error:
        Console(file=sys.stderr).print(str(error), style="red", markup=False)
        code = 1
    # Everything is closed by now. The interpreter's own end would take seconds more on a busy machine, for nothing.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
