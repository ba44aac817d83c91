"""The command `fraud`. Modules are loaded only when it is known what an end of the process must mean meanwhile."""

import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        # Modules take a second, and more on a busy machine. Until the worker handles SIGTERM itself, it has nothing to
        # finish and holds nothing that must be closed: to be asked to leave is then no failure either.
        signal.signal(signal.SIGTERM, _leave)
    from stream.cli.commands import app

    app()


def _leave(_signal: int, _frame: object) -> NoReturn:
    os._exit(0)
