"""A Kafka server's directory on disk, and the commands that format and run it.

DIR/data/               logs and metadata (Kafka's log.dirs)
DIR/server.properties   written before each start
DIR/server.log          Kafka's log, rolled at 20 MB
DIR/console.log         what the Java process printed itself: its own errors, a crash
"""

import base64
import os
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from stream.broker.errors import BrokerFailed
from stream.broker.jars import class_path
from stream.broker.java import find_java
from stream.broker.server_properties import rendered

FORMAT_TIMEOUT_S = 120
TAIL_LINES = 15
SERIAL = "-XX:+UseSerialGC"  # it serves neighbours on few cores: a collector with threads of its own takes from them
ONE_COMPILER = "-XX:TieredStopAtLevel=1"  # a command of one second is over before a better compiler pays


@dataclass(frozen=True, slots=True)
class KafkaHome:
    """Paths below one server's directory."""

    directory: Path

    @property
    def data(self) -> Path:
        """Kafka's log.dirs."""
        return self.directory / "data"

    @property
    def properties(self) -> Path:
        """server.properties, readable by its owner only: with SASL it holds passwords."""
        return self.directory / "server.properties"

    @property
    def log(self) -> Path:
        """Kafka's own log."""
        return self.directory / "server.log"

    @property
    def console(self) -> Path:
        """Standard output and error of the Java process."""
        return self.directory / "console.log"

    @property
    def is_formatted(self) -> bool:
        """True if a server has stored something here before."""
        return (self.data / "meta.properties").is_file()

    def write_properties(self, properties: Mapping[str, str]) -> None:
        """Creates the directory and writes server.properties."""
        self.data.mkdir(parents=True, exist_ok=True)
        opened = os.open(self.properties, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(opened, "w", encoding="utf-8") as out:
            out.write(rendered(properties))

    def format(self, cluster_id: str, *arguments: str) -> None:
        """Formats the storage for KRaft, unless it is formatted. About a second. Raises `BrokerFailed`."""
        if self.is_formatted:
            return
        command = [
            *java_command(self, heap_mb=128),
            ONE_COMPILER,
            "kafka.tools.StorageTool",
            "format",
            "--cluster-id",
            cluster_id,
            "--config",
            str(self.properties),
            *arguments,
        ]
        with self.console.open("ab") as console:
            told = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, timeout=FORMAT_TIMEOUT_S, check=False
            )
        if told.returncode != 0:
            raise BrokerFailed(f"Kafka could not format {self.data} (exit code {told.returncode}).\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of both logs, for an error's text."""
        parts: list[str] = []
        for path in (self.console, self.log):
            if path.is_file():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
                parts.append("\n".join([f"--- the end of {path}", *lines]))
        return "\n".join(parts)


def new_cluster_id() -> str:
    """A random Kafka UUID: 22 characters of URL-safe base64."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # the format command would take it for an option
            return text


def java_command(home: KafkaHome, *, heap_mb: int) -> list[str]:
    """The start of every command: Java, its options, the class path of checked jars."""
    return [
        str(find_java().program),
        f"-Xmx{heap_mb}m",
        SERIAL,
        "-XX:+ExitOnOutOfMemoryError",
        f"-XX:ErrorFile={home.directory / 'java-crash-%p.log'}",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={files('stream.broker') / 'log4j2.properties'}",
        f"-Dfraud.broker.log={home.log}",
        "-cp",
        os.pathsep.join(str(jar) for jar in class_path()),
    ]


def server_command(home: KafkaHome, *, heap_mb: int) -> list[str]:
    """The command that runs the server."""
    return [*java_command(home, heap_mb=heap_mb), "kafka.Kafka", str(home.properties)]
