"""What a look of the monitor still does where it fails: what is to be deleted goes, and every failure is told."""

import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.entry import Entry
from blastwatch.errors import AliasNotSet, BlastwatchError, RegistryUnreachable
from blastwatch.registry import Fetched
from blastwatch.settings import load
from monitoring import watch
from monitoring.database import StoreError, StoreUnavailable, is_made
from monitoring.examples import Examples
from monitoring.image_store import open_image_store
from monitoring.metrics import MonitorMetrics
from monitoring.retention import Usage
from monitoring.store import open_store
from monitoring.watch import Monitor, _loop
from tests.cohorts import START, draw_cohort, pictured, record, unsealed_package

NOBODY = AliasNotSet("nobody carries the alias")
AWAY = RegistryUnreachable("MLflow is away.")
FULL = OSError(28, "No space left on device")


@pytest.fixture
def settings(tmp_path):
    return load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_RETENTION_DAYS": "30"})


@pytest.fixture
def cells(settings):
    """One that is too old, and one that is not, each with its picture."""
    now = datetime.now(UTC)
    times = {"old": now - timedelta(days=40), "new": now}
    with open_store(settings.predictions_url) as store, open_image_store(settings.predictions_url) as images:
        store.add([record(id_, time=time) for id_, time in times.items()])
        images.add([pictured(id_, time=time) for id_, time in times.items()])


@pytest.fixture
def monitor(settings):
    """One whose looks fail with `monitor.error`, where it fetches the version."""

    def fetch():
        raise opened.error

    opened = Monitor(settings, MonitorMetrics(CollectorRegistry()), fetch=fetch)
    yield opened
    opened.close()


def stored(settings):
    with open_store(settings.predictions_url) as store:
        return list(store.read()["id"]), list(store.read(pictured=True)["id"])


def value(monitor, name):
    return monitor._metrics.registry.get_sample_value(f"blastwatch_{name}")


def looped(monitor):
    """One look of the loop."""
    stop, look = threading.Event(), monitor.look

    def once():
        stop.set()
        return look()

    monitor.look = once
    _loop(monitor, monitor._metrics, 0.01, stop)


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("error", [NOBODY, AWAY, FULL])
def test_what_is_too_old_goes_though_looks_fail(monitor, settings, error):
    monitor.error = error
    with pytest.raises(type(error)) as raised:
        monitor.look()
    assert raised.value is error
    assert stored(settings) == (["new"], ["new"])
    assert value(monitor, "store_predictions") == 1
    looped(monitor)
    assert value(monitor, "drift_failures_total") == (error is not NOBODY)
    assert monitor.status.document().get("stored", {}).get("predictions") == (None if error is NOBODY else 1)


@pytest.mark.usefixtures("cells")
def test_what_is_too_old_goes_though_no_report_can_be_made(settings, tmp_path, monkeypatch):
    cohort = draw_cohort(np.random.default_rng(2), patients=12, cells=40)
    entry = Entry(
        version="1", run_id="", created="", synthetic=True, registered_by="", digest="d" * 64,
        promoted_at=START.isoformat(),
    )  # fmt: skip
    package = unsealed_package(tmp_path / "package", cohort[cohort["group"] < "P008"])

    def compare(*_, **__):
        raise BlastwatchError("Evidently cannot")

    monkeypatch.setattr(watch, "compare", compare)
    monitor = Monitor(settings, MonitorMetrics(CollectorRegistry()), fetch=lambda: Fetched(entry, package))
    monkeypatch.setattr(monitor, "_tell_shadow", lambda _champion: None)
    with pytest.raises(BlastwatchError, match="^Evidently cannot$"):
        monitor.look()
    monitor.close()
    assert stored(settings) == (["new"], ["new"])


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize("error", [NOBODY, AWAY, FULL])
def test_where_nothing_can_be_deleted_either_both_are_told(monitor, monkeypatch, error):
    """Also where no version serves yet, which alone is no failure."""

    def retain(*_, **__):
        raise StoreError("The database refused it.")

    monkeypatch.setattr(watch, "retain", retain)
    monitor.error = error
    looped(monitor)
    told = monitor.status.document()["problem"]
    first = str(error).rstrip(".")
    assert told == (
        f"This look failed and will be tried again: {first}. Nor was anything deleted that is too old or too much: "
        "The database refused it."
    )
    assert value(monitor, "drift_failures_total") == 1


@pytest.mark.usefixtures("cells")
def test_the_same_reason_is_told_once(monitor, monkeypatch):
    tried = []

    def retain(*_, **__):
        tried.append(1)
        raise StoreUnavailable("The database is away.")

    monkeypatch.setattr(watch, "retain", retain)
    monitor.error = StoreUnavailable("The database is away.")
    with pytest.raises(BlastwatchError) as raised:
        monitor.look()
    assert str(raised.value) == "The database is away. Nor was anything deleted that is too old or too much."
    monkeypatch.setattr(monitor, "_look", monitor._retain)  # a look that fails where it deletes
    with pytest.raises(StoreUnavailable, match="^The database is away.$"):
        monitor.look()
    assert len(tried) == 2


def test_a_look_that_fails_makes_no_database(monitor, settings):
    """The service makes it: else a command in a home that was mistyped would tell that a patient is gone."""
    monitor.error = NOBODY
    with pytest.raises(AliasNotSet):
        monitor.look()
    assert not is_made(settings.predictions_url)


def test_no_picture_is_shown_after_a_look_that_failed(monitor):
    """Whose cells it shows may have been forgotten since."""
    cell = {"id": "a"}
    document = {"policy": "sampled", "statistic": None, "before": None, "now": {"farthest": [cell], "nearest": []}}
    usage = Usage(predictions=1, images=1, image_bytes=3, bytes=3, oldest=None, newest=None)
    monitor.status.tell("", usage, None, Examples(document=document, pictures={"a": b"png"}))
    assert monitor.status.picture("a") == b"png" and monitor.status.document()["examples"] == document
    monitor.error = AWAY
    looped(monitor)
    assert monitor.status.picture("a") is None and monitor.status.document()["examples"] is None
    monitor.status.tell("", usage, None, Examples(document=document, pictures={"a": b"png"}))
    assert monitor.status.picture("a") == b"png"
