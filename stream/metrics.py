"""What a process says of itself: every metric by name, and the small HTTP server that shows them.

    /metrics   Prometheus text or OpenMetrics; values are gathered when it is scraped, nothing is counted twice for it
    /health    200 while the process lives and has not failed, else 503
    /ready     200 when every partition that the process owns is at work, else 503; says which are not

Bound to loopback unless settings say otherwise: there is no log-in. Nothing here names a payment, an account or a
secret; texts of failures are masked.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any, Final, Literal, NamedTuple, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgspec
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from stream.errors import ConfigurationError
from topics.cards import mask_card_numbers

log = logging.getLogger(__name__)

PREFIX: Final = "fraudstream_"
REQUEST_S_MAX: Final = 5.0
TEXT_CHARS_MAX: Final = 500

Kind = Literal["counter", "gauge", "histogram", "info"]
Shown = Mapping[str, Any]


class Meaning(NamedTuple):
    """One metric. Base units: seconds, records, ratios; a counter's name ends in `_total` when it is shown."""

    kind: Kind
    text: str
    labels: tuple[str, ...] = ()


_PLACE: Final = ("stage", "topic", "partition")

METRICS: Final[dict[str, Meaning]] = {
    "build": Meaning("info", "Versions of the code at work.", ("engine", "features")),
    # ---- what is decided
    "payments": Meaning("counter", "Payments that the account stage took, by arrival.", ("arrival",)),
    "payments_late": Meaning("counter", "First payments that came late; they are answered all the same."),
    "unknown_fields": Meaning("counter", "Fields in payments that no contract names."),
    "answers": Meaning("counter", "Answers made: first, repeat or refused.", ("answer",)),
    "verdicts": Meaning("counter", "First answers that are no refusal.", ("verdict", "mode")),
    "refusals": Meaning("counter", "Records refused.", ("topic", "cause")),
    "answers_suppressed": Meaning("counter", "Answers not sent again after a restart: they are out already."),
    "answer_latency_seconds": Meaning("histogram", "From the broker's time of a payment to its answer's sending."),
    # ---- how far each partition is
    "partitions": Meaning("gauge", "Partitions of this process by status.", ("stage", "status")),
    "partition_stopped": Meaning("gauge", "1: stopped until an operator acts.", _PLACE),
    "records_applied": Meaning("counter", "Records applied, those again after a restart included.", _PLACE),
    "items_repeated": Meaning("counter", "Items that a sender sent again, dropped.", _PLACE),
    "lag_records": Meaning("gauge", "Records in the log that are not applied yet; none: not known.", _PLACE),
    "lag_seconds": Meaning("gauge", "Age of what was applied last while there is lag, else 0.", _PLACE),
    "leader_silent_seconds": Meaning("gauge", "Since the partition's leader last said anything to us.", _PLACE),
    "prev_gap_items": Meaning("counter", "Items dropped because their predecessor is missing.", _PLACE),
    "prev_gaps_open": Meaning("gauge", "Senders whose chain is broken at this moment.", _PLACE),
    "prev_gap_open_seconds": Meaning("gauge", "For how long the oldest of them has been; 0: none is.", _PLACE),
    # ---- model, labels
    "model": Meaning("info", "The model's version in force.", ("partition", "version")),
    "model_age_seconds": Meaning("gauge", "Since the version in force was published.", ("partition",)),
    "model_decides": Meaning("gauge", "1: the model has a say; 0: rules alone decide.", ("partition",)),
    "model_refused": Meaning("gauge", "1: the latest version cannot score; the one before decides.", ("partition",)),
    "engine": Meaning("gauge", "The engine in force; more than one while a marker is on its way.", ("partition",)),
    "policy_enforced": Meaning("gauge", "1: mode enforce; 0: shadow.", ("partition",)),
    "labels": Meaning("counter", "Labels by what became of them.", ("outcome",)),
    "updates": Meaning("counter", "Updates by what became of them.", ("outcome",)),
    "examples": Meaning("counter", "Examples that the learner took.", ("kind",)),
    "examples_matured": Meaning("counter", "Payments that silence has made legitimate."),
    "model_versions": Meaning("counter", "Versions that the learner made.", ("outcome",)),
    "label_clock_timestamp_seconds": Meaning("gauge", "The labels' clock.", ("stage", "partition")),
    "newest_payment_timestamp_seconds": Meaning("gauge", "The highest event time of a payment.", ("partition",)),
    "maturity_lag_seconds": Meaning("gauge", "The newest payment's time less the labels' clock.", ("partition",)),
    # ---- the process
    "checkpoint_duration_seconds": Meaning("histogram", "From freezing the state to the group's commit."),
    "last_checkpoint_timestamp_seconds": Meaning("gauge", "When the last checkpoint was committed; 0: none yet."),
    "group_member": Meaning("gauge", "1: the group has this process as a member, and lately said so."),
    "group_generation": Meaning("gauge", "The group's generation; -1: none."),
    "disk_full": Meaning("gauge", "1: something waits for room on the disk, a checkpoint or a restore."),
    "snapshot_failing": Meaning("gauge", "1: the last snapshot of some partition could not be stored, or read."),
    "producer_queue_records": Meaning("gauge", "Records that wait for the brokers' word."),
    "producer_waits": Meaning("counter", "Times that a full queue was waited for."),
    "fetched_records": Meaning("counter", "Records fetched."),
    "fetch_blocked_seconds": Meaning("counter", "Time in which fetching waited for room."),
    "fetch_errors": Meaning("counter", "Errors after which fetching went on.", ("error",)),
    "loop_delay_seconds": Meaning("gauge", "Since the event loop last took its turn."),
}

_SUFFIXES: Final[dict[Kind, tuple[str, ...]]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


def shown_names() -> frozenset[str]:
    """The names as a scrape shows them.

    >>> "fraudstream_payments_total" in shown_names(), "fraudstream_payments" in shown_names()
    (True, False)
    """
    return frozenset(PREFIX + name + end for name, what in METRICS.items() for end in _SUFFIXES[what.kind])


class Distribution(NamedTuple):
    """A histogram. `counts[i]`: observations in (bounds[i-1], bounds[i]]; one more at the end, above all bounds."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


class Sample(NamedTuple):
    """One value of one metric; `labels` in the order of its `Meaning`."""

    name: str
    value: float | Distribution
    labels: tuple[str, ...] = ()


class Samples:
    """A collector for prometheus_client: asks `gather` at each scrape."""

    def __init__(self, gather: Callable[[], Iterable[Sample]]) -> None:
        self._gather = gather

    def describe(self) -> Iterable[Metric]:
        """Nothing is gathered to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric of METRICS, those without a value too."""
        by_name: dict[str, list[Sample]] = {name: [] for name in METRICS}
        for sample in self._gather():
            by_name[sample.name].append(sample)
        for name, samples in by_name.items():
            yield _family(PREFIX + name, METRICS[name], samples)


def _family(name: str, what: Meaning, samples: Sequence[Sample]) -> Metric:
    if what.kind == "histogram":
        histogram = HistogramMetricFamily(name, what.text, labels=what.labels)
        for _, value, labels in samples:
            assert isinstance(value, Distribution)
            histogram.add_metric(labels, _cumulated(value), value.total)
        return histogram
    if what.kind == "info":
        info = InfoMetricFamily(name, what.text)
        for _, _, labels in samples:
            info.add_metric((), dict(zip(what.labels, labels, strict=True)))
        return info
    family = (CounterMetricFamily if what.kind == "counter" else GaugeMetricFamily)(name, what.text, labels=what.labels)
    for _, value, labels in samples:
        family.add_metric(labels, cast(float, value))
    return family


def _cumulated(value: Distribution) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
        below += int(count)
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), below))
    return buckets


def safe_text(text: str) -> str:
    """A failure's text as it may be shown: short, and no card number in it."""
    return mask_card_numbers(text[:TEXT_CHARS_MAX].encode("utf-8", "replace")).decode()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    address_family = socket.AF_INET

    def server_bind(self) -> None:
        # Not WSGIServer's, which asks the resolver for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Request(WSGIRequestHandler):
    timeout = REQUEST_S_MAX

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """Scrapes are not logged."""


class MetricsServer:
    """Answers scrapes in threads of its own. `health`, `ready`: whether it is, and what to show as JSON."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        gather: Callable[[], Iterable[Sample]],
        health: Callable[[], tuple[bool, Shown]],
        ready: Callable[[], tuple[bool, Shown]],
    ) -> None:
        """`port` 0: a free one. Raises `ConfigurationError` if the port is taken."""
        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(cast(Any, Samples(gather)))
        self._metrics = make_wsgi_app(registry)
        self._pages = {"/health": health, "/ready": ready}
        try:
            self._server = (_Server6 if ":" in host else _Server)((host, port), _Request)
        except OSError as error:
            raise ConfigurationError(f"metrics cannot be served on {host}:{port}: {error}") from error
        self._server.set_app(self._app)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics, health and readiness on http://%s:%d", f"[{host}]" if ":" in host else host, self.port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _app(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _reply(start_response, "405 Method Not Allowed", {"error": "GET only"})
        if path == "/metrics":
            return self._metrics(environ, start_response)
        page = self._pages.get(path)
        if page is None:
            return _reply(start_response, "404 Not Found", {"pages": ["/metrics", *self._pages]})
        good, shown = page()
        return _reply(start_response, "200 OK" if good else "503 Service Unavailable", shown)


def _reply(start_response: Any, status: str, shown: Shown) -> Iterable[bytes]:
    body = msgspec.json.encode(shown) + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
