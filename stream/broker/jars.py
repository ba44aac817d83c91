"""Apache Kafka's jars: fetched once through Maven, checked against recorded SHA-256 sums before every use.

`jars.sha256` names every file by its path in a Maven repository, so nothing outside that list is ever fetched or put
on a class path, and `sha256sum -c` reads it too.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stream.broker.directories import cache_dir
from stream.broker.errors import JarsRefused, JarsUnreachable

KAFKA_VERSION = "4.1.1"
DOWNLOADS_AT_ONCE = 6
TIMEOUT_S = 30


def recorded_sums() -> dict[str, str]:
    """SHA-256 (hex) of every jar, by its path in a Maven repository."""
    return parse_sums((files("stream.broker") / "jars.sha256").read_text(encoding="ascii"))


def parse_sums(text: str) -> dict[str, str]:
    """Reads lines of `sum  path`, as sha256sum writes them.

    >>> parse_sums("00ff  org/slf4j/slf4j-api/1.7.36/slf4j-api-1.7.36.jar")
    {'org/slf4j/slf4j-api/1.7.36/slf4j-api-1.7.36.jar': '00ff'}
    """
    pairs = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {path.strip(): digest for digest, path in pairs}


def class_path(directory: Path | None = None, sums: Mapping[str, str] | None = None) -> list[Path]:
    """The checked jars, downloaded if they are not in `directory` (default: the user's cache).

    Takes about 10 s and 44 MB the first time, 0.1 s after. Raises `JarsRefused` and `JarsUnreachable`.
    """
    root = directory if directory is not None else cache_dir() / "jars"
    wanted = recorded_sums() if sums is None else sums
    missing = [path for path in wanted if not (root / path).is_file()]
    if missing:
        _download(root, missing, wanted)
    fetched = set(missing)  # those were checked before they were moved into the cache
    for path, digest in wanted.items():
        if path not in fetched:
            check(root / path, digest)
    return [root / path for path in wanted]


def check(jar: Path, digest: str) -> None:
    """Raises `JarsRefused` unless the file's SHA-256 is `digest` (hex)."""
    with jar.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != digest:
        raise JarsRefused(
            f"{jar} has SHA-256 {found}, but this release was tested with {digest}. It is not used. "
            "Delete that file and run again; if the sum differs again, the Maven repository in use serves another "
            "file under this name: tell whoever runs it (a mirror is configured in jgo's settings)."
        )


def maven_coordinate(path: str) -> tuple[str, str, str]:
    """Group, artifact and version of a jar's path in a Maven repository.

    >>> maven_coordinate("org/apache/kafka/kafka_2.13/4.1.1/kafka_2.13-4.1.1.jar")
    ('org.apache.kafka', 'kafka_2.13', '4.1.1')
    """
    *group, artifact, version, name = PurePosixPath(path).parts
    if not group or name != f"{artifact}-{version}.jar":
        raise ValueError(f"{path} is not the path of a jar in a Maven repository")
    return ".".join(group), artifact, version


def _download(root: Path, paths: list[str], sums: Mapping[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    # A staging directory beside the cache: what a stopped download left is never mistaken for a jar, and two
    # processes that download at once replace equal files by equal files.
    staging = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    try:
        with _progress(len(paths)) as (counted, received), ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:

            def one(path: str) -> None:
                jar = fetch(path, staging, received)
                check(jar, sums[path])
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(jar, root / path)
                counted()

            for _ in pool.map(one, paths):
                pass
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def fetch(path: str, into: Path, received: Callable[[int], None]) -> Path:
    """Downloads one jar below `into`, and tells `received` how many bytes came."""
    # Imported here: a run that finds its jars in the cache needs none of it.
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext, PythonResolver
    from requests import RequestException

    @contextmanager
    def report(_name: str, _size_bytes: int) -> Generator[Callable[[int], None]]:
        yield received

    mirrors = GlobalSettings.load().repositories
    context = MavenContext(
        resolver=PythonResolver(progress_callback=report),
        repo_cache=into,
        local_repos=[],
        remote_repos=mirrors or None,
        timeout=TIMEOUT_S,
    )
    group, artifact, version = maven_coordinate(path)
    try:
        return context.project(group, artifact).at_version(version).artifact().resolve()
    except (RequestException, OSError, RuntimeError) as error:
        raise JarsUnreachable(
            f"Apache Kafka {KAFKA_VERSION} can't be downloaded ({group}:{artifact}:{version}: {error}). Needed once: "
            f"access to {', '.join(context.remote_repos.values())}, or a mirror in jgo's settings; or copy the "
            f"directory {cache_dir() / 'jars'} from a machine that has it; or use a broker that already runs: "
            "--bootstrap HOST:PORT"
        ) from error


@contextmanager
def _progress(jars: int) -> Generator[tuple[Callable[[], None], Callable[[int], None]]]:
    """A progress bar on standard error, which leaves standard output to `--json`."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[received]}"),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
    )
    received_bytes = 0
    with bar:
        task = bar.add_task(f"Apache Kafka {KAFKA_VERSION}, first download", total=jars, received="0.0 MB")

        def received(count: int) -> None:
            nonlocal received_bytes
            received_bytes += count  # a lost update among threads costs a digit of a progress bar
            bar.update(task, received=f"{received_bytes / 1e6:.1f} MB")

        yield (lambda: bar.advance(task)), received
