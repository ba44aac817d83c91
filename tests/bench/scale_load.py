"""Payments without end: the load of the long measures, made as it is sent, with the labels that fall due meanwhile."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Mapping

import msgspec
from confluent_kafka import Producer
from load import CLOCK_EVERY_MS, DAY_MS, LABEL_SHARE, MATURITY_MS, START_MS, TERMINALS, Late
from meter import BenchFailed
from ours import Deployment

MCCS = ("5411", "5812", "5999", "4111", "7995")
COUNTRIES = ("DE", "FR", "NL")
Message = tuple[bytes, bytes]


class Stream:
    """The same payments for the same arguments, `ms_between` apart in event time, spread evenly over `accounts`.

    `once_each`: the first `accounts` payments touch each account once, in order; the rest are drawn.
    """

    def __init__(
        self, *, seed: int, accounts: int, ms_between: float, start_ms: int = START_MS, once_each: bool = False
    ) -> None:
        self._rng = random.Random(seed)
        self._seed = seed
        self._accounts = accounts
        self._ms_between = ms_between
        self._start_ms = start_ms
        self._once_each = once_each
        self._observed: list[tuple[int, int, bytes, bytes]] = []
        self._clock_ms = start_ms
        self._ties = itertools.count()
        self.made = 0

    def payment(self, account: str | None = None, terminal: str | None = None) -> Message:
        """The next one, of a given account or terminal if they are named."""
        rng, number = self._rng, self.made
        self.made += 1
        event_ms = self._start_ms + int(number * self._ms_between)
        fraud = rng.random() < LABEL_SHARE
        drawn = number if self._once_each and number < self._accounts else int(rng.random() * self._accounts)
        account = account or f"a{drawn:07d}"
        pick = rng.random()
        payment = {
            "payment_id": f"s{self._seed:02d}-{number:010d}",
            "event_time": event_ms,
            "account_id": account,
            "amount": int(20_000 + pick * 280_000) if fraud else int(100 + pick * 19_900),
            "currency": "EUR",
            "terminal_id": terminal or f"t{int(rng.random() * TERMINALS):05d}",
            "merchant_id": f"m{int(pick * 5_000):05d}",
            "mcc": MCCS[number % 5],
            "merchant_country": COUNTRIES[number % 3],
            "issuer_country": "DE",
            "channel": "ecom" if pick < 0.4 else "pos",
            "scheme": "visa",
            "funding": "credit",
        }
        if fraud:
            observed_ms = event_ms + int(DAY_MS + rng.random() * (MATURITY_MS - 2 * DAY_MS))
            label = {
                "payment_id": payment["payment_id"],
                "account_id": account,
                "observed_at": observed_ms,
                "kind": "chargeback",
            }
            heapq.heappush(self._observed, (observed_ms, next(self._ties), account.encode(), _json(label)))
        return account.encode(), _json(payment)

    def due(self) -> list[Late]:
        """Labels and clocks that life would have sent by the event time reached; each once, `after` all made so far."""
        now_ms = self._start_ms + int(self.made * self._ms_between)
        found: list[Late] = []
        while self._clock_ms + CLOCK_EVERY_MS <= now_ms:
            self._clock_ms += CLOCK_EVERY_MS
            while self._observed and self._observed[0][0] < self._clock_ms:
                _, _, key, value = heapq.heappop(self._observed)
                found.append(Late(self.made, key, value))
            found.append(Late(self.made, b"", _json({"kind": "clock", "observed_at": self._clock_ms})))
        return found


class Feeder:
    """Publishes a stream into a deployment: payments when told, labels when the payments before them are answered."""

    CHUNK = 2_000

    def __init__(self, deployment: Deployment, stream: Stream) -> None:
        self._prefix = deployment.settings.prefix
        self._producer = Producer(
            {
                **deployment.settings.client(),
                "compression.type": "lz4",
                "linger.ms": 5,
                "delivery.report.only.error": True,
            }
        )
        self._stream = stream
        self._late: deque[Late] = deque()

    @property
    def sent(self) -> int:
        return self._stream.made

    def send(self, payments: int) -> None:
        """So many more, acknowledged."""
        self.offer(payments)
        self.flush()

    def offer(self, payments: int) -> None:
        """So many more, on their way."""
        for i in range(payments):
            self._produce("payments", *self._stream.payment())
            if i % self.CHUNK == 0:
                self._late += self._stream.due()
        self._producer.poll(0)

    def labels(self, answered: int) -> None:
        """Those that wait for no more than `answered` answers."""
        while self._late and self._late[0].after <= answered:
            late = self._late.popleft()
            self._produce("labels", late.key, late.value)
        self._producer.poll(0)

    def flush(self) -> None:
        if self._producer.flush(120):
            raise BenchFailed(f"the broker does not take the payments of {self._prefix}payments")

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._prefix + topic, value, key)
                return
            except BufferError:
                self._producer.poll(0.05)


def _json(fields: Mapping[str, object]) -> bytes:
    return msgspec.json.encode(fields)
