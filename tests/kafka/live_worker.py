"""A `fraud worker` as a process of its own, and what its pages say. For tests; not a test itself."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
START = "import typer; from stream.cli.worker import command; typer.run(command)"
WAIT_S = 120.0


class LiveWorker:
    """Starts at once; `stop` ends it. `environment`: FRAUD_* settings; others of this process are not passed on."""

    def __init__(self, directory: Path, environment: Mapping[str, str], *, log_level: str = "INFO") -> None:
        self.log = directory / "worker.log"
        directory.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FRAUD_")}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, "--metrics-port", "0", "--log-level", log_level],
                cwd=ROOT,
                env={**inherited, "FRAUD_STATE_DIR": str(directory / "state"), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.port = int(self.until(self._port, "it serves no metrics"))

    def _port(self) -> str | None:
        found = re.search(r"readiness on http://127\.0\.0\.1:(\d+)", self.log.read_text(errors="replace"))
        return found and found.group(1)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def page(self, path: str) -> tuple[int, Any]:
        status, body = self.get(path)
        return status, json.loads(body)

    def metrics(self) -> "Scrape":
        return Scrape(self.get("/metrics")[1])

    def until(self, look: Callable[[], Any], otherwise: str, timeout_s: float = WAIT_S) -> Any:
        """The first result that is true. Fails with the end of the log if the worker ends or time runs out."""
        give_up_s = time.monotonic() + timeout_s
        while True:
            found = look()
            if found:
                return found
            if self.process.poll() is not None or time.monotonic() > give_up_s:
                tail = self.log.read_text(errors="replace")[-4_000:]
                raise AssertionError(f"{otherwise} (exit code {self.process.poll()}):\n{tail}")
            time.sleep(0.1)

    def until_ready(self) -> None:
        self.until(lambda: self.get("/ready")[0] == 200, "it does not get ready")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)


class Scrape:
    """One answer of /metrics, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of `fraudstream_<name>` that have these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == f"fraudstream_{name}" and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == f"fraudstream_{name}"]
