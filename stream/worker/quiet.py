"""While a broker is away its clients would log hundreds of lines a second: here it is one in some seconds each."""

import logging
import time

EVERY_S = 5.0
NAMES_MAX = 1_000

librdkafka_logger = logging.getLogger("librdkafka")
"""For clients that are polled: librdkafka hands its lines over in `poll` only."""


class Seldom(logging.Filter):
    """On a handler: lets one line in `EVERY_S` through from each logger below `prefixes`, and all of others.

    >>> seldom = Seldom("noisy")
    >>> lines = [logging.makeLogRecord({"name": name}) for name in ("noisy.a", "noisy.a", "noisy.b", "calm", "calm")]
    >>> [seldom.filter(line) for line in lines]
    [True, False, True, True, True]
    """

    def __init__(self, *prefixes: str) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._next_at_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._prefixes):
            return True
        now_s = time.monotonic()
        if now_s < self._next_at_s.get(record.name, 0.0) or len(self._next_at_s) > NAMES_MAX:
            return False
        self._next_at_s[record.name] = now_s + EVERY_S
        return True
