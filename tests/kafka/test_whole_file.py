"""The README's command on a small file: the same steps, the same checks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("whole_file.py")
SIMULATE = "from stream.cli.main import main; main()"

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def test_a_small_file_goes_the_whole_way_and_again_from_its_journals(tmp_path: Path) -> None:
    words = ("simulate", "--days", "12", "--accounts", "250", "--label-delay", "short", "--out", str(tmp_path))
    subprocess.run([sys.executable, "-c", SIMULATE, *words], check=True, capture_output=True)
    files = (str(tmp_path / "payments.parquet"), str(tmp_path / "labels.parquet"))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *files, "--rate", "150", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["payments"] == found["answered"] == found["reproduced"] > 1_000
    assert (found["missing"], found["conflicting"], found["differing"]) == (0, 0, 0)
