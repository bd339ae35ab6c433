"""Every Prometheus metric of the service. Label values are bounded: known routes, outcomes, reasons, classes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from blastwatch.decision import CLASS_NAMES
from serving.gpus import open_gpus
from serving.live_folder import REASONS
from serving.metric_files import take_room
from serving.problems import CALLER_GONE, RATE_LIMITED

if TYPE_CHECKING:
    from serving.lane import Lane

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # set by BentoML for its workers

# Seconds. BentoML writes bucket bounds into file names, so they must be floats.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SWAP_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
SHADOW_DIFFERENCE = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BATCH_CELLS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class ServiceMetrics:
    """The metrics of one worker; with several workers BentoML's folder joins them on export."""

    def __init__(self, registry: CollectorRegistry) -> None:
        take_room()
        self.registry = registry
        self.requests = Counter(
            "blastwatch_requests",
            "Requests by route and outcome (ok, refused, limited, overloaded, aborted, failed).",
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
        self.queue_cells = Gauge(
            "blastwatch_queue_cells", "Cells that wait for the engine.", registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.cache = Counter(
            "blastwatch_cache_lookups", "Images looked up among the remembered outputs: hit or miss.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.predictions = Counter(
            "blastwatch_predictions", "Predictions by label and decision.", ["label", "decision"], registry=registry
        )
        self.rejected = Counter(
            "blastwatch_rejected_images", "Images that were refused, by reason.", ["reason"], registry=registry
        )
        self.kept_out = Counter(
            "blastwatch_kept_out_requests", "Requests that were kept out before they were read, by problem.",
            ["problem"], registry=registry,
        )  # fmt: skip
        self.audit_failures = Counter(
            "blastwatch_audit_failures", "Lines of the audit log that could not be written.", registry=registry
        )
        self.capture = Counter(
            "blastwatch_capture_predictions",
            "Predictions stored or dropped by the capture, and failed attempts to write.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "blastwatch_capture_waiting_predictions", "Predictions that wait on disk while their database is away.",
            registry=registry, multiprocess_mode="livemax",  # one file for all workers
        )  # fmt: skip
        self.images = Counter(
            "blastwatch_capture_images",
            "Pictures of answered cells stored or dropped by the capture, and failed attempts to write.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.labels = Counter(
            "blastwatch_labels", "Labels that came later and were stored, by label.", ["label"], registry=registry
        )
        self.model = Gauge(
            "blastwatch_model_info", "1 for the model version that serves.",
            ["version", "digest", "engine", "synthetic"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self.swaps = Counter(
            "blastwatch_model_swaps", "Versions that a worker swapped in or refused.", ["outcome"], registry=registry
        )
        for outcome in ("swapped", "refused"):  # from 0 on: of a series that begins with 1 Prometheus sees no increase
            self.swaps.labels(outcome)
        for label in CLASS_NAMES:
            self.labels.labels(label)
        self.swap_seconds = Histogram(
            "blastwatch_model_swap_duration_seconds", "Time to verify, load, warm up and check a version beside the "
            "running one.", buckets=SWAP_SECONDS, registry=registry,
        )  # fmt: skip
        self.refused = Gauge(
            "blastwatch_follow_refused", "1 while what the alias names does not serve, by reason.",
            ["alias", "reason"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self.reached = Gauge(
            "blastwatch_registry_reached_timestamp_seconds",
            "When the registry last answered, or following began; 0 where this service does not follow.",
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

        self.shadow_cells = Counter(
            "blastwatch_shadow_cells",
            "Cells for the challenger in shadow: compared (and stored), of these flipped (another label), shed because "
            "no core was free, failed, seen (one of the two learned from the image).",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.shadow_difference = Histogram(
            "blastwatch_shadow_probability_difference",
            "Distance of the challenger's probability of a blast from the champion's.",
            buckets=SHADOW_DIFFERENCE, registry=registry,
        )  # fmt: skip
        self.shadow_restarts = Counter(
            "blastwatch_shadow_restarts", "Times that the challenger's process ended or hung.", registry=registry
        )
        self.canary_answers = Counter(
            "blastwatch_canary_answers", "Cells that the challenger answered, by label and decision.",
            ["label", "decision"], registry=registry,
        )  # fmt: skip

    def observe_batch(self, cells: int, seconds: float) -> None:
        self.batch_cells.observe(cells)
        self.step_seconds.labels("infer").observe(seconds)

    def observe_request(self, route: str, status: int, seconds: float, *, problem: str = "") -> None:
        """Count one answer; `problem` is the name of the problem that it told, "" where it told none."""
        self.requests.labels(route, outcome(status, problem)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def tell_model(self, new: "Lane", old: "Lane | None" = None) -> None:
        """Let the info gauge name the version that serves, and only that."""
        if old is not None:
            self.model.labels(*_info(old)).set(0)
        self.model.labels(*_info(new)).set(1)

    def tell_swap(self, seconds: float) -> None:
        self.swaps.labels("swapped").inc()
        self.swap_seconds.observe(seconds)

    def tell_following(self, alias: str, reached: float, reason: str | None) -> None:
        """What the follower knows, seen by this worker."""
        if reached:
            self.reached.set(reached)
        for word in REASONS:
            self.refused.labels(alias, word).set(word == reason)

    def export(self, environment: Mapping[str, str] = os.environ) -> bytes:
        """The text that Prometheus scrapes: of all workers where there are several."""
        exported = CollectorRegistry()
        folder = environment.get(MULTIPROCESS_VARIABLE)
        if folder:
            _forget_dead(Path(folder))
            exported.register(_Present(MultiProcessCollector(None, folder)))  # type: ignore[no-untyped-call]
        else:
            exported.register(_Present(self.registry))
        gpus = open_gpus()
        if gpus is not None:
            exported.register(gpus)
        return generate_latest(exported)

    def close(self, environment: Mapping[str, str] = os.environ) -> None:
        """Take this worker's gauges out of the joined export."""
        if environment.get(MULTIPROCESS_VARIABLE):
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


class _Present(Collector):
    """Leaves out the versions that serve no more: several processes cannot remove a series, only set it to 0."""

    def __init__(self, source: "CollectorRegistry | MultiProcessCollector") -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for metric in self._source.collect():
            if metric.name == "blastwatch_model_info":
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


def _forget_dead(folder: Path) -> None:
    """Take the gauges of workers that were killed out of the export; those that ended took their own."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


def _info(lane: "Lane") -> tuple[str, str, str, str]:
    package = lane.served.package
    return lane.version, package.digest, lane.engine_name, str(package.info.synthetic).lower()


def outcome(status: int, problem: str = "") -> str:
    """`ok`, `refused` (the caller's fault), `limited` (the caller is beyond its own limit), `overloaded` (too many wait
    here), `aborted` (the caller went), or `failed` (ours). Both that are to come later have one status, 429."""
    if problem == RATE_LIMITED:
        return "limited"
    if status == 429:
        return "overloaded"
    if status == CALLER_GONE:
        return "aborted"
    if status < 400:
        return "ok"
    return "refused" if status < 500 else "failed"
