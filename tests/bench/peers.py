"""The peers, each in an environment of its own that is made on demand and kept in a cache."""

import os
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meter import Answers, BenchFailed, Figure, figure, watch

from stream.broker.topic_admin import Topic, create_topics

HERE = Path(__file__).parent / "peers"
PARTITIONS = 4
BUILD_S_MAX = 600.0
REQUIREMENTS = {
    "quix": ("quixstreams==3.28.*",),
    "faust": ("faust-streaming[rocksdict]==0.15.3", "cramjam"),
}
SHARE = {"kstreams": 1.0, "quix": 0.3, "faust": 0.1}  # of the payments: the slow ones need fewer for as many seconds


class NotPresent(Exception):
    """This machine cannot run the peer; the figures say so."""


@dataclass(frozen=True)
class Peer:
    name: str
    command: Callable[[str, str, str, int, Path], list[str]]


def cache_directory() -> Path:
    given = os.environ.get("FRAUD_BENCH_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fraudstream-bench"


def python_of(name: str) -> Path:
    return cache_directory() / name / "bin" / "python"


def prepared(name: str) -> bool:
    """Whether the peer would run without anything being built or fetched."""
    return (cache_directory() / name / "ready").exists()


def prepare(name: str) -> None:
    """Build what the peer needs, once. Raises `NotPresent`."""
    home = cache_directory() / name
    if prepared(name):
        return
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    if name == "kstreams":
        _build_java(home)
    else:
        venv.create(home, with_pip=True)
        _run([str(python_of(name)), "-m", "pip", "install", "-q", *REQUIREMENTS[name]], home)
    (home / "ready").touch()


def _build_java(home: Path) -> None:
    if shutil.which("java") is None or shutil.which("mvn") is None:
        raise NotPresent("java and mvn are needed")
    source, libs = home / "source", home / "libs"
    shutil.copytree(HERE / "kstreams", source)
    _run(["mvn", "-q", "package", "dependency:copy-dependencies", f"-DoutputDirectory={libs}"], source)
    for jar in (source / "target").glob("*.jar"):
        shutil.copy(jar, libs)


def _run(command: list[str], directory: Path) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotPresent(f"{command[0]} took longer than {BUILD_S_MAX:.0f} s") from error
    if done.returncode:
        raise NotPresent(f"{' '.join(command[:4])}: {(done.stdout + done.stderr)[-500:]}")


def _command(name: str, bootstrap: str, source: str, sink: str, payments: int, state: Path) -> list[str]:
    if name == "kstreams":  # one thread, two stages: what is nearest to ours
        libs = str(cache_directory() / name / "libs" / "*")
        java = ["java", "-Xmx1g", "-XX:+UseSerialGC", "-cp", libs, "Peer"]
        return [*java, bootstrap, source, sink, str(payments), "1", str(state), "2"]
    script = str(HERE / ("quix.py" if name == "quix" else "faust_stock.py"))
    more = ["worker", "-l", "warn", "--without-web"] if name == "faust" else []
    return [str(python_of(name)), script, *more]


def run_peer(name: str, bootstrap: str, source: str, payments: int, directory: Path, *, timeout_s: float) -> Figure:
    """One run over `payments` of the topic `source`. Raises `BenchFailed`."""
    wanted = max(2_000, int(payments * SHARE[name]))
    wanted = min(wanted, payments)
    place = Path(tempfile.mkdtemp(dir=directory, prefix=f"{name}-"))
    sink = f"{name}-{time.time_ns()}"
    client = {"bootstrap.servers": bootstrap}
    create_topics(client, [Topic(name=sink, partitions=PARTITIONS)], replication=1)
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "BOOTSTRAP": bootstrap,
        "IN": source,
        "OUT": sink,
        "PAYMENTS": str(wanted),
        "PARTITIONS": str(PARTITIONS),
        "TMPDIR": str(place),
    }
    log_path = place / "log"
    answers = Answers(bootstrap, sink, PARTITIONS)
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            _command(name, bootstrap, source, sink, wanted, place / "state"),
            cwd=place,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        samples, most_mb = watch(process, answers, wanted, timeout_s=timeout_s, ends_itself=True)
    except BenchFailed as error:
        raise BenchFailed(f"{name}: {error}\n{log_path.read_text(errors='replace')[-2000:]}") from error
    finally:
        answers.close()
        if process.poll() is None:
            process.kill()
        process.wait()
    found = figure(name, samples, wanted, most_mb)
    for line in log_path.read_text(errors="replace").splitlines():
        if "cpu_us_per_event=" in line:  # what it says of itself, beside what we saw
            found.extra["own_cpu_us"] = float(line.rsplit("cpu_us_per_event=", 1)[1])
    return found


__all__ = ["NotPresent", "prepare", "run_peer"]
