"""A file of payments the whole way, a worker killed half-way: every answer once, and again from the journals alone.

    python tests/kafka/whole_file.py PAYMENTS.parquet LABELS.parquet [--rate 6000] [--maturity-days 7] [--json]

Commands of `fraud` and nothing else, as an operator would give them: a broker, two workers that share no disk,
`publish`, SIGKILL of the first when half of the answers are there and its start anew, `reconcile`; then `journals
dump`, and `journals verify` in a process of its own. Exit code 1 if anything is missing, conflicting or other than
before. The Handbook data take about half an hour on two cores, and 3 GB.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FRAUD = (sys.executable, "-c", "from stream.cli.main import main; main()")
ROOT = Path(__file__).parents[2]
LOOK_S = 2.0
STALLED_S = 300.0


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Operator:
    """Runs commands against one broker of its own, below `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FRAUD_")},
            "FRAUD_BROKER_DIR": str(place / "broker"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, log: str, *words: str) -> "subprocess.Popen[bytes]":
        with (self.place / log).open("ab") as out:
            return subprocess.Popen([*FRAUD, *words], cwd=self.place, env=self._environment, stdout=out, stderr=out)

    def ask(self, *words: str) -> dict[str, Any]:
        """The last line of a command's output, with its exit code."""
        done = subprocess.run(
            [*FRAUD, *words, "--json"],
            cwd=self.place,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        if not lines:
            raise SystemExit(f"fraud {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return {**json.loads(lines[-1]), "exit": done.returncode}


def answers(bootstrap: str) -> int:
    """Records on `decisions`, by their offsets."""
    from confluent_kafka import Consumer

    from stream.broker.offsets import watermarks

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "eye", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics("decisions", timeout=10).topics["decisions"].partitions
        return sum(watermarks(consumer, "decisions", partition)[1] for partition in partitions)
    finally:
        consumer.close()


def until_answers(bootstrap: str, wanted: int) -> int:
    """Wait for so many. Raises if none comes for `STALLED_S`."""
    most, said, since_s = -1, 0, time.monotonic()
    while True:
        found = answers(bootstrap)
        if found >= wanted:
            return found
        if found > most:
            most, since_s = found, time.monotonic()
            if most - said >= wanted // 50:
                said = most
                say(f"{found:,} answers")
        elif time.monotonic() - since_s > STALLED_S:
            raise SystemExit(f"{found:,} of {wanted:,} answers, and none for {STALLED_S:.0f} s")
        time.sleep(LOOK_S)


def until_member(log: Path, times: int) -> None:
    """Wait until the group has given partitions to the worker of this log for so many times."""
    began_s = time.monotonic()
    while len(re.findall(r"generation \d+: .* added [1-9]", log.read_text())) < times:
        if time.monotonic() - began_s > STALLED_S:
            raise SystemExit(f"no partitions for {STALLED_S:.0f} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.5)


def run(given: argparse.Namespace, place: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    payments = pq.read_metadata(given.payments).num_rows
    operator = Operator(place)
    bootstrap = operator.ask("broker", "start", "--heap-mb", "1024")["bootstrap"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        operator.ask("init", "--from", "earliest", "--maturity-days", str(given.maturity_days), "--mode", "enforce")

        def worker(name: str) -> "subprocess.Popen[bytes]":
            words = ("worker", "--state-dir", name, "--tick-every", "10", "--metrics-port", "0")
            started.append(operator.start(f"{name}.log", *words))
            return started[-1]

        first = worker("a")
        worker("b")
        for name in ("a", "b"):
            until_member(place / f"{name}.log", 1)
        words = ("publish", str(given.payments), "--labels", str(given.labels), "--rate", str(given.rate))
        publisher = operator.start("publish.log", *words)
        started.append(publisher)
        at_kill = until_answers(bootstrap, payments // 2)
        first.kill()
        first.wait()
        say(f"killed the first worker at {at_kill:,} answers")
        until_member(place / "b.log", 2)
        say("the second has taken over; the first is started again")
        worker("a")
        until_member(place / "a.log", 2)
        until_answers(bootstrap, payments)
        publisher.wait()
        while (reconciled := operator.ask("reconcile"))["missing"]:  # copies count as answers above
            say(f"{reconciled['missing']:,} are not answered yet")
        say(f"reconciled: {reconciled}")
        for process in started:
            if process.poll() is None:
                process.terminate()
        codes = [process.wait(60) for process in started[1:]]
        dumped = operator.ask("journals", "dump", "journals")
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        operator.ask("broker", "stop")
    say(f"dumped {dumped['records']:,} records; the journals are applied again")
    verified = operator.ask("journals", "verify", "journals")
    starts = re.findall(r"journal\[\d+\]: from offset (\d+) of \[0, (\d+)\)", (place / "a.log").read_text())
    return {
        "payments": reconciled["payments"],
        "answered": reconciled["answered"],
        "missing": reconciled["missing"],
        "conflicting": reconciled["conflicting"],
        "repeated": reconciled["repeated"],
        "journal_records_read_again": sum(int(end) - int(at) for at, end in starts),
        "exit_codes": codes,
        "reproduced": verified["topics"]["decisions"]["reproduced"],
        "differing": verified["topics"]["decisions"]["differing"],
        "equal": verified["equal"],
        "sha": verified["sha"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/kafka/whole_file.py", description=__doc__)
    parser.add_argument("payments", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--rate", type=int, default=6_000, help="payments/s")
    parser.add_argument("--maturity-days", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    given.payments, given.labels = given.payments.resolve(), given.labels.resolve()
    place = Path(tempfile.mkdtemp(prefix="fraudstream-whole-"))
    try:
        found = run(given, place)
    except BaseException:
        say(f"what was done and said is kept: {place}")
        raise
    shutil.rmtree(place, ignore_errors=True)
    say(", ".join(f"{name} {value}" for name, value in found.items()))
    if given.json:
        print(json.dumps(found))
    bitten = found["repeated"] + found["journal_records_read_again"] > 0
    whole = found["answered"] == found["payments"] and not found["missing"] and not found["conflicting"]
    return 0 if whole and found["equal"] and bitten and not any(found["exit_codes"]) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
