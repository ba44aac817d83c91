"""One real Apache Kafka for the whole test run; tests keep apart by a prefix of their topics' names."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from stream.broker.embedded import EmbeddedBroker


@dataclass
class Kafka:
    """`bootstrap`: host:port. `broker`: the process itself; whoever kills it brings it back before the test ends."""

    bootstrap: str
    broker: EmbeddedBroker
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def client(self) -> dict[str, str]:
        """Configuration for a confluent-kafka client."""
        return {"bootstrap.servers": self.bootstrap}

    def fresh_prefix(self) -> str:
        """A prefix for names of topics and groups that no other test has."""
        return f"t{os.getpid()}-{next(self._numbers)}."


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    with EmbeddedBroker() as broker:
        yield Kafka(broker.bootstrap, broker)
