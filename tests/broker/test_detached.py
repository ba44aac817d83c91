import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def _fraud(state: Path, *arguments: str) -> tuple[int, dict, str]:
    """Runs `fraud broker ...` in a process of its own. Exit code, the last line's JSON, standard error."""
    told = subprocess.run(
        [sys.executable, "-c", "from stream.cli.broker import app; app()", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FRAUD_BROKER_DIR": str(state)},
        check=False,
    )
    last = told.stdout.strip().splitlines()[-1:]
    return told.returncode, json.loads(last[0]) if last and last[0].startswith("{") else {}, told.stderr


def _lives(pid: int) -> bool:
    # Its parent is gone, and not every container's first process collects the exit codes it inherits.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_no_broker_is_not_an_error_to_stop_but_its_status_is_1(tmp_path):
    assert _fraud(tmp_path, "status", "--json")[:2][0] == 1
    assert _fraud(tmp_path, "status", "--json")[1]["running"] is False
    assert _fraud(tmp_path, "stop", "--json")[:2] == (0, {"stopped": False})
    assert _fraud(tmp_path, "start", "--port", "0")[0] == 2


@pytest.mark.kafka
def test_it_outlives_the_command_and_is_found_stopped_and_started_again(tmp_path):
    code, started, errors = _fraud(tmp_path, "start", "--json")
    assert code == 0, errors
    try:
        assert started["started"]
        assert started["answers"]
        assert psutil.pid_exists(started["pid"])
        code, status, _ = _fraud(tmp_path, "status", "--json")
        assert (code, status["pid"], status["bootstrap"]) == (0, started["pid"], started["bootstrap"])
        code, again, _ = _fraud(tmp_path, "start", "--json")
        assert (code, again["started"], again["pid"]) == (0, False, started["pid"])
    finally:
        assert _fraud(tmp_path, "stop", "--json")[:2] == (0, {"stopped": True})
    assert not _lives(started["pid"])
    assert _fraud(tmp_path, "status")[0] == 1
