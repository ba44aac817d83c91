"""Runs a program so that it can't outlive the process that asked for it, not even after SIGKILL.

    python -I -S guard.py OWNER_PID DIRECTORY_TO_REMOVE PROGRAM [ARGUMENT...]

A program of its own, on the standard library alone, so that it is small and starts at once. Its standard input is a
pipe that only the owner writes to: "T" asks for an orderly end; the pipe's end, or another parent than OWNER_PID, means
that the owner is gone, and the program's group is killed at once. Standard output gets the program's process id. When
the owner is gone, DIRECTORY_TO_REMOVE (may be empty) is removed too. The exit code is the program's, 128 + n for
signal n.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

LOOK_EVERY_S = 0.2
ORDERLY_END_S = 20.0
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def die_with_the_guard() -> None:
    """In the child: ask Linux for SIGKILL when this guard dies. Other systems rely on the guard being left alone."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(owner_pid: int, remove: str, command: list[str]) -> int:
    """Runs `command` until it ends, its owner asks for the end, or its owner is gone."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the owner decides; a terminal's Ctrl-C reaches the owner
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        restore_signals=True,
        preexec_fn=_in_the_child,
    )
    os.write(1, f"{program.pid}\n".encode())
    killed_after_s: float | None = None
    owned = True
    while program.poll() is None:
        request = _next_request() if os.getppid() == owner_pid else "gone"
        if request == "gone":
            owned = False
            _signal_group(program.pid, signal.SIGKILL)
            program.wait()
        elif request == "end" and killed_after_s is None:
            killed_after_s = time.monotonic() + ORDERLY_END_S
            _signal_group(program.pid, signal.SIGTERM)
            _signal_group(program.pid, signal.SIGCONT)  # one that is stopped would not act on it
        elif killed_after_s is not None and time.monotonic() > killed_after_s:
            _signal_group(program.pid, signal.SIGKILL)
    if not owned and remove:
        shutil.rmtree(remove, ignore_errors=True)
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _in_the_child() -> None:
    for restored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(restored, signal.SIG_DFL)  # an ignored signal stays ignored through exec
    die_with_the_guard()


def _next_request() -> str:
    """Waits a moment for the owner: "end" when it asks for one, "gone" at the pipe's end, else ""."""
    if not select.select([0], [], [], LOOK_EVERY_S)[0]:
        return ""
    return "end" if os.read(0, 16) else "gone"


def _signal_group(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, what)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
