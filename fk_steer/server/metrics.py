"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "path", "status")
        self.errors = self._counter("errors", "Requests answered by an error, by its code.", "code")
        self.gone = self._counter("disconnected", "Requests whose sender left before the reply.")
        self.images = self._counter("images", "Images scored.", "reward")
        self.seconds = Histogram(
            "fk_steer_request_seconds", "Seconds from head to reply.", ["path"], registry=self.registry
        )
        self.batches = Histogram(
            "fk_steer_batch_images", "Images of a batch.", ["reward"], buckets=BATCHES, registry=self.registry
        )
        self.scoring = Histogram(
            "fk_steer_scoring_seconds", "Seconds that a batch took.", ["reward"], registry=self.registry
        )
        self._queue = Gauge("fk_steer_queue_images", "Images that wait.", ["reward"], registry=self.registry)
        self._memory = Gauge("fk_steer_memory_bytes", "Bytes that requests hold.", registry=self.registry)
        self._under_way = Gauge("fk_steer_requests_under_way", "Requests under way.", registry=self.registry)

    def watch(
        self, queues: dict[str, Callable[[], int]], memory: Callable[[], int], under_way: Callable[[], int]
    ) -> None:
        """Ask these for what is so at the time."""
        for reward, length in queues.items():
            self._queue.labels(reward).set_function(length)
        self._memory.set_function(memory)
        self._under_way.set_function(under_way)

    def batch(self, reward: str, images: int, seconds: float) -> None:
        """Count a batch."""
        self.images.labels(reward).inc(images)
        self.batches.labels(reward).observe(images)
        self.scoring.labels(reward).observe(seconds)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"fk_steer_{name}", what, labels, registry=self.registry)
