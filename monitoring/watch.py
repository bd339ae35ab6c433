"""The monitor: looks at the latest predictions of the serving version again and again, and exports what it found.

A look that fails is counted, said, and tried again at the next interval; the monitor itself goes on.
"""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

from blastwatch.addresses import is_loopback
from blastwatch.console import say
from blastwatch.entry import Entry
from blastwatch.errors import AliasNotSet, BlastwatchError, RegistryError
from blastwatch.policy import load_policy
from blastwatch.registry import CHALLENGER, Fetched, Registry
from blastwatch.settings import Settings
from monitoring.catching_up import CatchingUp
from monitoring.database import is_made
from monitoring.drift import DriftReport, TooFewPredictions, compare, prune
from monitoring.examples import ExampleCells
from monitoring.followed import Followed
from monitoring.log_lines import patient_sentence as patient_sentence
from monitoring.log_lines import sentence
from monitoring.metrics import MonitorMetrics
from monitoring.patient_report import PatientWatch
from monitoring.performance_report import report as performance_report
from monitoring.retention import MOST_AT_ONCE, Retention, Usage, open_retention, retain
from monitoring.retraining import Findings, Retraining
from monitoring.shadow_report import report as shadow_report
from monitoring.shadow_store import ShadowStore, open_shadow_store
from monitoring.status import Status
from monitoring.store import Store, open_store
from monitoring.windows import AHEAD, Window, latest

NOTHING_YET = "Nothing to watch yet"  # where no version serves, which is no failure
NO_VERSION = "no version serves. See blastwatch registry list, and promote one: blastwatch registry promote REF"
FOLLOWED_WITHIN = timedelta(minutes=15)  # of a promotion, services have loaded the version or refused it


@dataclass(frozen=True)
class Look:
    """What one look saw: a report, or in a few words why there is none; and what `monitoring.patient_report` found.

    verdict: whether there is one, of this report or of the last. problem: what hindered the look, "" for nothing.
    """

    report: DriftReport | None
    reason: str = ""
    verdict: bool = True
    patients: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class Monitor:
    """Looks once at a time; keeps the package and the last report between looks.

    Args:
        fetch: gives the version to watch; None follows the alias that serves.
    """

    def __init__(
        self, settings: Settings, metrics: MonitorMetrics, *, fetch: Callable[[], Fetched] | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._registry = Registry(settings)
        self.status = Status(settings, self._registry)
        self._champion = Followed(self._registry, settings.model_alias, self._package_of)
        self._challenger = Followed(self._registry, CHALLENGER, lambda entry: entry, withdrawn=True)
        self._fetch = fetch or self._champion.look
        self._fetched: Fetched | None = None
        self._store: Store | None = None
        self._shadow_store: ShadowStore | None = None
        self._retention: Retention | None = None
        self._retraining = Retraining(settings, load_policy(settings.policy).retraining)
        self._examples = ExampleCells(settings)
        self._patients: PatientWatch | None = None
        self._past: CatchingUp | None = None
        self._seen: dict[tuple[str, str | None], datetime] = {}  # when a version was first watched, by its promotion
        self._window: list[str] | None = None  # ids of the predictions in the last report
        self._problems: list[str] = []  # of this look
        self._retained = False  # in this look

    def look(self) -> Look:
        """Compare the latest predictions with the reference, once.

        Raises:
            AliasNotSet: no version serves yet.
            BlastwatchError, OSError: registry, database, Evidently or the disk could not do their part.
        """
        self._problems, self._retained = [], False
        try:
            return self._look()
        except (BlastwatchError, OSError) as error:
            self._retain_all_the_same(error)
            raise

    def _look(self) -> Look:
        fetched = self._watched()
        self._store = self._store or open_store(self._settings.predictions_url)
        digest = fetched.package.digest
        ahead = datetime.now(UTC) + AHEAD
        past = self._catch_up(self._store, fetched, ahead)
        window = latest(self._store, model_digest=digest, size=self._settings.drift_window, until=ahead)
        self._metrics.window_cells.set(len(window.cells))
        self._tell_labels(self._store, digest)
        performance = self._tell_performance(self._store, fetched, ahead)
        challenger = self._tell_shadow(fetched.entry)
        patients = self._tell_patients(self._store, fetched)
        look = self._compare(fetched, window)
        past.looked(window)
        self._metrics.tell_doubts(self.status.doubts())
        usage = self._retain()
        found = Findings(report=look.report, verdict=look.verdict, patients=patients, performance=performance)
        self._retrain(fetched.entry.version, found)
        if usage.newest is not None and usage.newest >= ahead:
            self._note_ahead(self._store.count(since=ahead), usage.newest)
        else:
            self._metrics.tell_ahead(0)
            self._note_others(self._store, fetched, challenger, usage)
        look = replace(look, patients=patients, problem=" ".join(filter(None, self._problems)))
        self._tell_status(self._store, fetched, look, usage)
        self._metrics.last_look.set(time.time())
        return look

    def close(self) -> None:
        """Give the database back."""
        for store in (self._store, self._shadow_store, self._retention, self._examples):
            if store is not None:
                store.close()

    def _watched(self) -> Fetched:
        fetched = self._fetch()
        self._problems.append(self._champion.problem)
        if self._fetched is None or _which(fetched) != _which(self._fetched):
            self._window = self._patients = self._past = None
            self._metrics.watch_model(*_which(fetched))
            self.status.watch(fetched)
        self._fetched = fetched
        return fetched

    def _package_of(self, entry: Entry) -> Fetched:
        """A package is fetched and verified only where it is another one than before."""
        if self._fetched is not None and entry.digest == self._fetched.package.digest:
            return Fetched(entry, self._fetched.package)
        return Fetched(entry, self._registry.fetch_entry(entry))

    def _compare(self, fetched: Fetched, window: Window) -> Look:
        ids = window.cells["id"].tolist()
        # All of them: one cell whose time lies a little ahead would stay the newest, whatever comes.
        if ids and ids == self._window:
            return Look(None, "no prediction since the last report")
        started = time.monotonic()
        try:
            report = self._report(fetched, window)
        except TooFewPredictions as error:  # cells behind an earlier verdict may have been deleted
            self._window = None
            self._metrics.no_verdict()
            self.status.judge(None)
            return Look(None, str(error), verdict=False)
        self._window = ids
        self._tell(report, time.monotonic() - started)
        prune(self._settings.drift)
        self._add_run(report, fetched.entry.version)
        return Look(report)

    def _catch_up(self, store: Store, fetched: Fetched, ahead: datetime) -> CatchingUp:
        """The gauges, the page's verdict and what a finding starts go by the latest window, which comes after these."""
        self._past = past = self._past or CatchingUp(store, fetched, self._settings)

        def report(window: Window, dated: datetime) -> DriftReport:
            made = self._report(fetched, window, dated)
            self._add_run(made, fetched.entry.version)
            return made

        past.look(report, until=ahead)
        self._problems.append(past.problem)
        return past

    def _report(self, fetched: Fetched, window: Window, timestamp: datetime | None = None) -> DriftReport:
        return compare(
            fetched.package,
            window.cells,
            version=fetched.entry.version,
            folder=self._settings.drift,
            minimum=self._settings.drift_minimum,
            timestamp=timestamp,
            repeated=window.repeated,
            keyed=window.keyed,
        )

    def _tell(self, report: DriftReport, seconds: float) -> None:
        for column in report.document["columns"]:
            self._metrics.score.labels(column["name"]).set(column["score"])
            self._metrics.threshold.labels(column["name"]).set(column["threshold"])
        self._metrics.detected.set(report.drifted)
        self.status.judge(report.document)
        self._metrics.report_seconds.set(seconds)
        self._metrics.window_end.set(datetime.fromisoformat(report.document["window"]["until"]).timestamp())
        self._metrics.last_report.set(datetime.now(UTC).timestamp())

    def _add_run(self, report: DriftReport, version: str) -> None:
        """Last, and no look fails for it: the report is told and kept without it."""
        # Evidently takes seconds to load: only where there is a report.
        from monitoring.workspace import WorkspaceFailed, add_run

        try:
            add_run(self._settings.drift / "workspace", report.snapshot, name=f"version {version}")
        except WorkspaceFailed as error:
            self._metrics.failures.inc()
            self._problems.append(str(error))

    def _note_ahead(self, count: int, newest: datetime) -> None:
        """Say that there are predictions which no look sees; whose are the newest then, nobody can tell."""
        self._metrics.tell_ahead(count)
        self._problems.append(
            f"{count} predictions carry a time ahead of this clock, up to {newest.isoformat(timespec='seconds')}, and "
            "are no part of any window before it comes. Set the clocks of the service and the monitor right."
        )

    def _note_others(self, store: Store, fetched: Fetched, challenger: Entry | None, usage: Usage) -> None:
        """Say where the newest predictions are of a version that is not watched, but for a challenger which answers
        beside it, in a canary: a service refuses the watched one, or has not heard of it."""
        newest, promoted = store.newest(model_digest=fetched.package.digest), fetched.entry.promoted_at
        # Whatever time a clock that ran ahead gave its promotion, it was promoted before it was first seen.
        seen = self._seen.setdefault((fetched.entry.version, promoted), datetime.now(UTC))
        if usage.newest is None or (newest is not None and newest >= usage.newest):
            return
        followed = None if promoted is None else min(datetime.fromisoformat(promoted), seen) + FOLLOWED_WITHIN
        since = max((moment for moment in (followed, newest) if moment is not None), default=None)
        beside = newest is not None and usage.newest - newest < FOLLOWED_WITHIN
        known = {fetched.package.digest} | ({challenger.digest} if challenger and beside else set())
        other = store.newest_of_others(known, since=since)
        if other is not None:
            self._problems.append(
                f"The newest predictions are of version {other}, and version {fetched.entry.version} is watched. See "
                "which one serves, and why: GET /v1/model of the service."
            )

    def _tell_labels(self, store: Store, digest: str) -> None:
        labelled, agreeing = store.agreement(model_digest=digest)
        self._metrics.labelled_cells.set(labelled)
        self._metrics.labelled_agreement.set(agreeing / labelled if labelled else float("nan"))

    def _tell_patients(self, store: Store, fetched: Fetched) -> dict[str, Any]:
        if self._patients is None:
            version = fetched.entry.version
            self._patients = PatientWatch(store, fetched.package, version=version, settings=self._settings, keeps=True)
        found = self._patients.look(datetime.now(UTC))
        self._problems.append(self._patients.problem)
        self._metrics.tell_patients(found)
        self.status.see(patients=found)
        return found

    def _tell_performance(self, store: Store, fetched: Fetched, ahead: datetime) -> dict[str, Any]:
        version, settings = fetched.entry.version, self._settings
        found = performance_report(store, fetched.package, version=version, settings=settings, until=ahead)
        self._metrics.tell_performance(found)
        self.status.see(performance=found)
        return found

    def _retain(self) -> Usage:
        """After the look, so that what it compares is never cut short by what it deletes."""
        self._retained = True
        self._retention = self._retention or open_retention(self._settings.predictions_url)
        retain(self._retention, self._settings, most=MOST_AT_ONCE)
        usage = self._retention.usage()
        self._metrics.tell_store(usage, self._retention.counted())
        self.status.hold(usage)
        return usage

    def _retain_all_the_same(self, failed: Exception) -> None:
        """Nothing is kept for longer, and no disk stays full, since something else hinders a look.

        Raises:
            BlastwatchError: this failed too; it says both.
        """
        if self._retained or not is_made(self._settings.predictions_url):
            return
        try:
            self._retain()
        except (BlastwatchError, OSError) as error:
            first, second = (str(one).rstrip(".") for one in (failed, error))
            why = "" if first == second else f": {second}"
            raise BlastwatchError(f"{first}. Nor was anything deleted that is too old or too much{why}.") from failed

    def _retrain(self, version: str, findings: Findings) -> None:
        started = self._retraining.look(version, findings, at=datetime.now(UTC))
        if started is not None:
            self._metrics.retraining_started.labels(started.finding).inc()
        self._metrics.tell_retraining(self._retraining)

    def _tell_status(self, store: Store, fetched: Fetched, look: Look, usage: Usage) -> None:
        known, calm_until = self.status.standing()
        examples = self._examples.choose(store, fetched.package, known, calm_until=calm_until)
        self.status.tell(look.reason, usage, self._retraining.document(), examples, problem=look.problem)

    def _tell_shadow(self, champion: Entry) -> Entry | None:
        """Returns the challenger, None where there is none or nobody has said yet who it is."""
        try:
            challenger = self._challenger.look()
        except AliasNotSet:
            self._metrics.tell_shadow(None)
            return None
        except RegistryError as error:
            self._problems.append(f"The challenger is not known: {error}")
            return None
        if self._challenger.problem:
            self._problems.append(f"The challenger: {self._challenger.problem}")
        self._shadow_store = self._shadow_store or open_shadow_store(self._settings.predictions_url)
        self._metrics.tell_shadow(shadow_report(self._shadow_store, champion, challenger, at=datetime.now(UTC)))
        return challenger


def _which(fetched: Fetched) -> tuple[str, str]:
    """Version and digest."""
    return fetched.entry.version, fetched.package.digest


def watch_once(settings: Settings) -> Look:
    """One look without a port, for scripts and the demo."""
    from prometheus_client import CollectorRegistry

    monitor = Monitor(settings, MonitorMetrics(CollectorRegistry()))
    try:
        return monitor.look()
    except AliasNotSet as error:
        return Look(None, f"{NOTHING_YET}: {error}")
    finally:
        monitor.close()


def watch(settings: Settings, *, stop: threading.Event | None = None) -> None:
    """Look every `drift_interval` seconds and serve page and gauges until told to stop (`monitoring.page`).

    SIGTERM and SIGINT end it cleanly; a look in progress is finished first.

    Raises:
        BlastwatchError: the port is taken, or there is no such address.
    """
    from prometheus_client import CollectorRegistry

    from monitoring.page import HOST, PageServer, build_app

    metrics = MonitorMetrics(CollectorRegistry())
    stop = stop or threading.Event()
    before = _on_signals(stop)
    monitor = Monitor(settings, metrics)
    server = PageServer(build_app(metrics.registry, monitor.status), settings.monitor_port, settings.monitor_host)
    try:
        address = f"http://{HOST}:{settings.monitor_port}"
        say(f"Drift: {address}/drift, gauges: {address}/metrics, every {settings.drift_interval:g} s")
        if not is_loopback(settings.monitor_host):
            say(f"Other machines get the gauges alone: port {settings.monitor_port} of {settings.monitor_host}")
        _loop(monitor, metrics, settings.drift_interval, stop)
    finally:
        monitor.close()
        server.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _loop(monitor: Monitor, metrics: MonitorMetrics, interval: float, stop: threading.Event) -> None:
    said = ""
    metrics.last_look.set(time.time())
    metrics.interval.set(interval)
    while not stop.is_set():
        started = time.monotonic()
        try:
            look = monitor.look()
            line = look.reason if look.report is None else sentence(look.report.document)
            line = " ".join(filter(None, [line, *patient_sentence(look.patients), look.problem]))
        except AliasNotSet as error:
            metrics.last_look.set(time.time())
            line = f"{NOTHING_YET}: {error}"
            monitor.status.begin(f"{NOTHING_YET}: {NO_VERSION}")  # for the page, without an address
        except (BlastwatchError, OSError) as error:  # the second where the disk of the reports is full
            metrics.failures.inc()
            line = f"This look failed and will be tried again: {error}"
            monitor.status.fail(line)
        if line != said:
            say(line)
            said = line
        stop.wait(max(interval - (time.monotonic() - started), 0))


def _on_signals(stop: threading.Event) -> dict[signal.Signals, Any]:
    """Stop on SIGTERM and SIGINT; returns the handlers that were there. Only the main thread may set any."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    return {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
