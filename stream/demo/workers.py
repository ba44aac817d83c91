"""Real `fraud worker` processes that cannot outlive this one."""

import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from stream.broker.process import GuardedProcess
from stream.errors import OperatorError
from stream.settings import Settings

LOG_LINES_TOLD = 12


class DemoFailed(OperatorError):
    """The demonstration could not go on; the text holds the end of the log of what failed."""


class Workers:
    """`count` workers of one group, each with a state directory of its own, which goes when they do."""

    def __init__(self, settings: Settings, count: int, *, tick_s: float) -> None:
        self._settings = settings
        self._count = count
        self._tick_s = tick_s
        self._processes: list[tuple[GuardedProcess, Path]] = []

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, directory in self._processes:
            process.kill()  # its state goes with it, so nothing is gained by an orderly end
            shutil.rmtree(directory, ignore_errors=True)

    def check(self) -> None:
        """Raises `DemoFailed` if a worker has ended."""
        for process, directory in self._processes:
            if process.exit_code is not None:
                raise DemoFailed(f"a worker ended with code {process.exit_code}: {_log_end(directory)}")

    def log_ends(self) -> str:
        """The end of each worker's log."""
        return "\n".join(f"a worker's log ends: {_log_end(directory)}" for _, directory in self._processes)

    def _start(self) -> None:
        settings = self._settings
        directory = Path(tempfile.mkdtemp(prefix="fraudstream-demo-worker-"))
        assert settings.bootstrap is not None
        worker = [
            *(sys.executable, "-c", "from stream.cli.main import main; main()", "worker"),
            *("--bootstrap", settings.bootstrap, "--prefix", settings.prefix, "--group", settings.group),
            *("--state-dir", str(directory / "state"), "--tick-every", f"{self._tick_s:g}"),
        ]
        self._processes.append((GuardedProcess(worker, console=directory / "log", remove=directory), directory))


def _log_end(directory: Path) -> str:
    return "\n".join((directory / "log").read_text(errors="replace").splitlines()[-LOG_LINES_TOLD:])
