"""Every Prometheus metric of the service. Label values are bounded: known routes, outcomes, reasons, classes."""

import os
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # set by BentoML for its workers

# Seconds. BentoML writes bucket bounds into file names, so they must be floats.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_CELLS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class ServiceMetrics:
    """The metrics of one worker; with several workers BentoML's folder joins them on export."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "blastwatch_requests", "Requests by route and outcome (ok, refused, overloaded, failed).",
            ["route", "outcome"], registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "blastwatch_request_duration_seconds", "Time from the request's first byte to the answer's last.",
            ["route"], buckets=REQUEST_SECONDS, registry=registry,
        )  # fmt: skip
        self.step_seconds = Histogram(
            "blastwatch_step_duration_seconds", "Time of one step: decode (one image) or infer (one batch).",
            ["step"], buckets=STEP_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_cells = Histogram(
            "blastwatch_batch_size_cells", "Cells in one call of the engine.",
            buckets=BATCH_CELLS, registry=registry,
        )  # fmt: skip
        self.predictions = Counter(
            "blastwatch_predictions", "Predictions by label and decision.", ["label", "decision"], registry=registry
        )
        self.rejected = Counter(
            "blastwatch_rejected_images", "Images that were refused, by reason.", ["reason"], registry=registry
        )
        self.capture = Counter(
            "blastwatch_capture_predictions",
            "Predictions stored or dropped by the capture, and failed attempts to write.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.labels = Counter(
            "blastwatch_labels", "Labels that came later and were stored, by label.", ["label"], registry=registry
        )
        self.model = Gauge(
            "blastwatch_model_info", "1 for the model version that serves.",
            ["version", "digest", "engine", "synthetic"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

    def observe_batch(self, cells: int, seconds: float) -> None:
        self.batch_cells.observe(cells)
        self.step_seconds.labels("infer").observe(seconds)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, outcome(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def export(self, environment: Mapping[str, str] = os.environ) -> bytes:
        """The text that Prometheus scrapes: of all workers where there are several."""
        if not environment.get(MULTIPROCESS_VARIABLE):
            return generate_latest(self.registry)
        joined = CollectorRegistry()
        MultiProcessCollector(joined)  # type: ignore[no-untyped-call]
        return generate_latest(joined)

    def close(self, environment: Mapping[str, str] = os.environ) -> None:
        """Take this worker's gauges out of the joined export."""
        if environment.get(MULTIPROCESS_VARIABLE):
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def outcome(status: int) -> str:
    """`ok`, `refused` (the caller's fault), `overloaded`, or `failed` (the service's fault)."""
    if status == 429:
        return "overloaded"
    if status < 400:
        return "ok"
    return "refused" if status < 500 else "failed"
