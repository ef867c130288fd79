"""Serves a pool's figures to Prometheus over HTTP, from a thread of the supervisor."""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from samplerpool.config.arguments import host_and_port
from samplerpool.errors import UsageError
from samplerpool.pool.metrics import Metric, MetricsBook
from samplerpool.wire.figures import Buckets

MAX_CONNECTIONS = 16
"""At a time; more are closed at once, so that nobody takes up the supervisor's descriptors and threads."""
CONNECTION_TIMEOUT_S = 5.0


def check_metrics(address: str | None) -> None:
    """Refuse what cannot be served, before anything is started.

    Raises:
        UsageError: the package ``prometheus_client`` is missing.
        InvalidParameter: the address is not one.
    """
    if address is None:
        return
    host_and_port("metrics", address)
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(
            "--metrics needs the package prometheus_client, which is not installed. "
            "Install it with: pip install 'samplerpool[metrics]'"
        )


class Exporter:
    """Answers HTTP requests on an address until ``close``.

    Args:
        address: ``HOST:PORT``; port 0 means any that is free.
        pool: its name, for the labels.
        book: read at each request.

    Raises:
        UsageError: the address cannot be bound, or the package ``prometheus_client`` is missing.
    """

    def __init__(self, address: str, pool: str, book: MetricsBook) -> None:
        check_metrics(address)
        host, port = host_and_port("metrics", address)
        self._server = _bind(host, port, address)
        self._server.set_app(_application(pool, book))
        bound = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="samplerpool-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the socket and end the thread. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _bind(host: str, port: int, address: str) -> _Server:
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _Server(family, (str(place[0]), port))
    except OSError as error:  # a name that is not known as well
        reason = error.strerror or str(error)
        raise UsageError(
            f"The figures cannot be served on {address}: {reason}. Give --metrics another HOST:PORT, or leave it out."
        ) from error


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, place: tuple[str, int]) -> None:
        self.address_family = family
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        """Without the lookup of the host's full name, which may take seconds where no name server answers."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left in the middle is no news."""


class _Handler(WSGIRequestHandler):
    timeout = CONNECTION_TIMEOUT_S

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes come by the thousand."""


def _application(pool: str, book: MetricsBook) -> Any:
    from prometheus_client import CollectorRegistry, make_wsgi_app

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(pool, book))
    return make_wsgi_app(registry)


class _Collector:
    """What ``prometheus_client`` asks for the present figures."""

    def __init__(self, pool: str, book: MetricsBook) -> None:
        self._pool = pool
        self._book = book

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        for metric in self._book.metrics():
            yield self._family(metric)

    def _family(self, metric: Metric) -> Any:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
        family = kinds[metric.kind](metric.name, metric.help, labels=["pool", *metric.labels])
        for labels, value in metric.samples.items():
            names = [self._pool, *labels]
            if isinstance(value, Buckets):
                family.add_metric(names, _cumulative(metric.bounds, value), sum_value=value.total)
            else:
                family.add_metric(names, value)
        return family


def _cumulative(bounds: tuple[float, ...], buckets: Buckets) -> list[tuple[str, float]]:
    """Each upper bound with the number of values up to it, as Prometheus counts."""
    sums, total = [], 0
    for bound, count in zip((*map(str, bounds), "+Inf"), buckets.counts, strict=True):
        total += count
        sums.append((bound, float(total)))
    return sums
