"""Every metric that the monitor exports, in its own registry, passed in and never global."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from blastwatch.policy import FINDINGS
from monitoring.doubts import REASONS
from monitoring.performance import STATES
from monitoring.retention import Deleted, Usage

if TYPE_CHECKING:
    from monitoring.retraining import Retraining


class MonitorMetrics:
    """The monitor's gauges; names and units stand here and nowhere else."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.score = Gauge(
            "blastwatch_drift_score", "Drift score of a column in the last report.", ["column"], registry=registry
        )
        self.threshold = Gauge(
            "blastwatch_drift_threshold", "Score from which a column counts as drifted.", ["column"], registry=registry
        )
        self.detected = Gauge(
            "blastwatch_drift_detected", "1 where the last report found drift in any column.", registry=registry
        )
        self.patients = Gauge(
            "blastwatch_patient_drift_patients", "Patients who came to the watched version and count in drift over "
            "patients.", registry=registry,
        )  # fmt: skip
        self.patient_evidence = Gauge(
            "blastwatch_patient_drift_evidence", "Evidence of a column that patients changed, over what is needed.",
            ["column"], registry=registry,
        )  # fmt: skip
        self.patient_drift = Gauge(
            "blastwatch_patient_drift_detected", "1 while patients are other than before, in any column.",
            registry=registry,
        )  # fmt: skip
        self.window_cells = Gauge(
            "blastwatch_drift_window_cells", "Predictions in the window of the last look.", registry=registry
        )
        self.ahead = Gauge(  # exported by `tell_ahead`
            "blastwatch_drift_ahead_predictions", "Predictions that carry a time more than five minutes ahead of the "
            "monitor's clock; no look counts them before it comes. Absent until the first look.", registry=None,
        )  # fmt: skip
        self._ahead_told = False
        self.last_report = Gauge(
            "blastwatch_drift_last_report_timestamp_seconds", "When the last report was made.", registry=registry
        )
        self.window_end = Gauge(
            "blastwatch_drift_window_end_timestamp_seconds", "When the newest prediction in the last report was made.",
            registry=registry,
        )  # fmt: skip
        self.last_look = Gauge(
            "blastwatch_drift_last_look_timestamp_seconds", "When the monitor last looked and nothing failed; "
            "at first, its start.", registry=registry,
        )  # fmt: skip
        self.interval = Gauge(
            "blastwatch_drift_interval_seconds", "Time between two looks of the monitor, as it is set.",
            registry=registry,
        )  # fmt: skip
        self.report_seconds = Gauge(
            "blastwatch_drift_report_duration_seconds", "How long the last report took.", registry=registry
        )
        self.failures = Counter(
            "blastwatch_drift_failures", "Looks of the monitor that failed.", registry=registry
        )  # exported as blastwatch_drift_failures_total
        self.model = Gauge(
            "blastwatch_drift_model_info", "1 for the version that is watched.", ["version", "digest"],
            registry=registry,
        )  # fmt: skip
        self.labelled_cells = Gauge(
            "blastwatch_labelled_cells", "Predictions of the watched version that got a label later.", registry=registry
        )
        self.labelled_agreement = Gauge(
            "blastwatch_labelled_agreement_ratio", "Share of these whose label the model gave.", registry=registry
        )
        self.performance = Gauge(
            "blastwatch_performance_ratio", "Performance of the watched version, with the bounds of its interval: "
            "estimated on the latest predictions, realised on the latest labelled ones, reference on its reference.",
            ["kind", "figure", "bound"], registry=registry,
        )  # fmt: skip
        self.performance_cells = Gauge(
            "blastwatch_performance_cells", "Cells behind the performance.", ["kind", "unit"], registry=registry
        )
        self.performance_fell = Gauge(
            "blastwatch_performance_fell", "1 where an accuracy lies below the reference's by more than the margin.",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.performance_verdict = Gauge(
            "blastwatch_performance_verdict", "1 where it can be said whether that accuracy fell, 0 where not.",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.estimate_difference = Gauge(
            "blastwatch_estimate_difference_ratio", "Realised minus expected accuracy of the labelled predictions.",
            ["bound"], registry=registry,
        )  # fmt: skip
        self.estimate_state = Gauge(
            "blastwatch_estimate_state", "1 for the state of the estimate after its check on labels.", ["state"],
            registry=registry,
        )  # fmt: skip
        self.estimate_doubted = Gauge(
            "blastwatch_estimate_doubted", "1 where the estimate is not to be relied on, by reason: labels refute it, "
            "or cells or patients changed, and labels of those since are too few.", ["reason"], registry=registry,
        )  # fmt: skip
        self.stored = Gauge("blastwatch_store_predictions", "Predictions in the database.", registry=registry)
        self.stored_images = Gauge(
            "blastwatch_store_images", "Pictures of answered cells in the database.", registry=registry
        )
        self.stored_bytes = Gauge(
            "blastwatch_store_size_bytes", "What they take, with labels and shadow.", registry=registry
        )
        self.stored_oldest = Gauge(
            "blastwatch_store_oldest_timestamp_seconds", "When the oldest prediction was made.", registry=registry
        )
        self.deleted = Gauge(
            "blastwatch_store_deleted_predictions", "Predictions ever deleted from it.", ["reason"], registry=registry
        )
        self.deleted_images = Gauge(
            "blastwatch_store_deleted_images", "Pictures ever deleted from it.", ["reason"], registry=registry
        )
        self.retraining_started = Counter(
            "blastwatch_retraining_started", "Times that a finding started the command of the policy.", ["finding"],
            registry=registry,
        )  # fmt: skip
        for finding in FINDINGS:  # from 0 on: of a series that begins with 1 Prometheus sees no increase
            self.retraining_started.labels(finding)
        self.retraining_running = Gauge("blastwatch_retraining_running", "1 while it runs.", registry=registry)
        self.retraining_failed = Gauge(
            "blastwatch_retraining_failed",
            "1 where the last one, for the watched version, failed or could not be started.",
            registry=registry,
        )
        self.shadow_agreement = Gauge(
            "blastwatch_shadow_agreement_ratio", "Share of the cells to which challenger and champion give one label.",
            registry=registry,
        )  # fmt: skip
        self.shadow_units = Gauge(
            "blastwatch_shadow_compared_units", "Units (patients or cells) in the comparison on labels.", ["unit"],
            registry=registry,
        )  # fmt: skip
        self.shadow_difference = Gauge(
            "blastwatch_shadow_accuracy_difference", "Accuracy of the challenger minus that of the champion: the mean, "
            "and the bounds that hold at any time of looking.", ["bound"], registry=registry,
        )  # fmt: skip
        self.shadow_evidence = Gauge(
            "blastwatch_shadow_evidence", "E-value that the challenger is better, or worse by more than the margin.",
            ["question"], registry=registry,
        )  # fmt: skip

    def tell_ahead(self, count: int) -> None:
        """What a look counted. There is no sample before: to the alert on its changes, a 0 between what was counted
        before a restart and the same number after it would be two."""
        self.ahead.set(count)
        if not self._ahead_told:
            self.registry.register(self.ahead)
            self._ahead_told = True

    def tell_shadow(self, found: Mapping[str, Any] | None) -> None:
        """What `monitoring.shadow_report.report` found; None where there is no challenger."""
        for gauge in (self.shadow_units, self.shadow_difference, self.shadow_evidence):
            gauge.clear()
        agreement = found["agreement"] if found else None
        self.shadow_agreement.set(float("nan") if agreement is None else agreement)
        if not found:
            return
        compared = found["comparison"]
        self.shadow_units.labels(compared["unit"]).set(compared["units"])
        for question in ("better", "worse"):
            self.shadow_evidence.labels(question).set(compared[question]["e"])
        for bound, value in compared["difference"].items():
            self.shadow_difference.labels(bound).set(float("nan") if value is None else value)

    def tell_patients(self, found: Mapping[str, Any]) -> None:
        """What `monitoring.patient_report` found."""
        self.patients.set(found["entered"])
        for column in found["columns"]:
            self.patient_evidence.labels(column["name"]).set(column["evidence"])
        self.patient_drift.set(found["drifted"])

    def tell_performance(self, found: Mapping[str, Any]) -> None:
        """What `monitoring.performance_report.report` found of the watched version."""
        # What an alert waits on is never cleared: a scrape in between would start its waiting anew.
        for gauge in (self.performance, self.performance_cells, self.estimate_difference):
            gauge.clear()
        latest, labelled = found["now"]["latest"], found["now"]["labelled"]
        of_kind = {"estimated": latest["estimated"], "realised": labelled["realised"]}
        for kind, figures in (of_kind | {"reference": found["reference"]["realised"]}).items():
            for figure, interval in figures.items():
                for bound, value in interval.items():
                    self.performance.labels(kind, figure, bound).set(value)
        for kind, part in (("estimated", latest), ("realised", labelled)):
            self.performance_cells.labels(kind, part["unit"]).set(part["cells"])
            self.performance_fell.labels(kind).set(bool(part["fell"][kind]))
            self.performance_verdict.labels(kind).set(part["fell"][kind] is not None)
        for bound, value in (labelled["check"]["difference"] or {}).items():
            self.estimate_difference.labels(bound).set(value)
        for state in STATES:
            self.estimate_state.labels(state).set(state == labelled["check"]["state"])

    def tell_doubts(self, found: Iterable[Mapping[str, Any]]) -> None:
        """What `monitoring.doubts` found."""
        reasons = {doubt["reason"] for doubt in found}
        for reason in REASONS:
            self.estimate_doubted.labels(reason).set(reason in reasons)

    def tell_retraining(self, retraining: "Retraining") -> None:
        """Of the last command that a finding started."""
        self.retraining_running.set(retraining.running())
        self.retraining_failed.set(retraining.failed)

    def tell_store(self, usage: Usage, deleted: Mapping[str, Deleted]) -> None:
        """What `monitoring.retention` found in the database."""
        self.stored.set(usage.predictions)
        self.stored_images.set(usage.images)
        self.stored_bytes.set(usage.bytes)
        self.stored_oldest.set(usage.oldest.timestamp() if usage.oldest else float("nan"))
        for reason, gone in deleted.items():
            self.deleted.labels(reason).set(gone.predictions)
            self.deleted_images.labels(reason).set(gone.images)

    def watch_model(self, version: str, digest: str) -> None:
        """Another version is watched: forget what was said of the one before."""
        self.model.clear()
        self.model.labels(version, digest).set(1)
        self.no_verdict()
        self.patient_evidence.clear()
        self.patient_drift.set(0)
        for count in (self.patients, self.window_cells, self.labelled_cells):
            count.set(0)
        self.labelled_agreement.set(float("nan"))
        for figures in (self.performance, self.performance_cells, self.estimate_difference):
            figures.clear()
        self.tell_shadow(None)
        for kind in ("estimated", "realised"):
            self.performance_fell.labels(kind).set(0)
            self.performance_verdict.labels(kind).set(0)
        for state in STATES:
            self.estimate_state.labels(state).set(0)
        self.tell_doubts(())
        self.last_report.set(0)
        self.window_end.set(0)

    def no_verdict(self) -> None:
        """There is none on drift, or no longer."""
        self.score.clear()
        self.threshold.clear()
        self.detected.set(0)
