"""Which partitions' leaders still talk to us, out of the statistics that librdkafka gives its application.

A fetch that has nothing to bring is answered after `fetch_wait_ms` all the same, so a leader that says nothing for
seconds is gone, or cannot be reached. librdkafka tries again for ever, and would tell nobody.
"""

from typing import Final

import msgspec

CONNECTED: Final = "UP"  # logged in; before that a broker may well send bytes, as when it refuses a password


class _Place(msgspec.Struct):
    topic: str
    partition: int


class _Broker(msgspec.Struct):
    state: str = ""
    rxidle: int = -1  # µs since it last sent anything; -1: nothing on this connection yet
    toppars: dict[str, _Place] = {}


class _Statistics(msgspec.Struct):
    brokers: dict[str, _Broker] = {}


_decode = msgspec.json.Decoder(_Statistics).decode


def idle_s(statistics: str) -> dict[tuple[str, int], float]:
    """Seconds since the broker that a partition is fetched from last sent anything, per (topic, partition).

    A partition without a leader, or whose leader's connection is not whole, is not named. Of a broker that answers
    fetches of some partitions and refuses others it cannot tell which; those are told as errors. Raises
    `msgspec.DecodeError` for what is no such JSON.

    >>> idle_s('{"brokers": {"b:1/1": {"state": "UP", "rxidle": 500000, "toppars": {"t-0": {"topic": "t", \
"partition": 0}}}}}')
    {('t', 0): 0.5}
    """
    return {
        (place.topic, place.partition): broker.rxidle / 1e6
        for broker in _decode(statistics).brokers.values()
        if broker.state == CONNECTED and broker.rxidle >= 0
        for place in broker.toppars.values()
    }
