"""When an estimate is in doubt, and where that is said: the page, the gauges, `blastwatch labels report`."""

import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from blastwatch.settings import load
from monitoring.doubts import DRIFT, LABELS, PATIENTS, REASONS, doubts
from monitoring.label_commands import labels
from monitoring.metrics import MonitorMetrics
from monitoring.performance import STATES
from monitoring.status import Status
from monitoring.store import open_store
from tests.cohorts import START, as_records, draw_cohort, unsealed_package
from tests.drift_status import NOW, Told, drawn_patients, drawn_performance, report

HOUR = timedelta(hours=1)


def labelled(*, state="open", lacks=None, hours=0):
    """Labelled cells from so many hours after noon on; None: there are none."""
    since = None if hours is None else (NOW + hours * HOUR).isoformat()
    return {"since": since, "check": {"state": state, "lacks": lacks}}


def since(hours):
    return {"at": (NOW + hours * HOUR).isoformat(), "at_least": False, "reports": 3}


def reasons(*args, **words):
    return [doubt["reason"] for doubt in doubts(*args, **({"patients": None} | words))]


def test_drift_is_a_doubt_until_the_check_goes_by_cells_since_then_alone():
    assert reasons(labelled(), drifted=False, since=since(-9)) == []  # since when all is calm
    assert reasons(labelled(), drifted=True, since=since(1)) == [DRIFT]
    assert reasons(labelled(), drifted=True, since=since(0)) == []
    assert reasons(labelled(lacks="patients"), drifted=True, since=since(0)) == [DRIFT]
    assert reasons(labelled(hours=None, state="unchecked", lacks="cells"), drifted=True, since=since(0)) == [DRIFT]
    assert doubts(labelled(), drifted=True, since=None, patients=None) == [{"reason": DRIFT, "since": None}]


def test_what_labels_refute_is_a_doubt_whatever_else_is_known():
    refuted = labelled(state="untrusted")
    assert reasons(refuted, drifted=False, since=None) == [LABELS]
    assert reasons(refuted, drifted=True, since=since(1)) == [LABELS, DRIFT]


def test_other_patients_are_a_doubt_since_the_first_change_that_stands():
    columns = [
        {"drifted": False, "since": (NOW - 9 * HOUR).isoformat()},  # whose patients are deleted
        {"drifted": True, "since": (NOW + 2 * HOUR).isoformat()},
        {"drifted": True, "since": (NOW + HOUR).isoformat()},
    ]
    found = doubts(labelled(), drifted=False, since=None, patients={"drifted": True, "columns": columns})
    assert found == [{"reason": PATIENTS, "since": (NOW + HOUR).isoformat()}]
    assert reasons(labelled(hours=1), drifted=False, since=None, patients={"drifted": True, "columns": columns}) == []


@given(st.sampled_from(STATES), st.integers(-5, 5), st.integers(-5, 5), st.booleans())
def test_more_labels_since_then_never_make_a_doubt(state, hours, changed, drifted):
    at_first = reasons(labelled(state=state, hours=hours), drifted=drifted, since=since(changed))
    later = reasons(labelled(state=state, hours=hours + 1), drifted=drifted, since=since(changed))
    assert set(later) <= set(at_first)


def test_the_document_of_the_page_names_them_and_forgets_them_with_the_version(tmp_path):
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path)}), Told())

    def watch(version):
        info = SimpleNamespace(synthetic=True)
        package = SimpleNamespace(digest=version * 64, info=info)
        status.watch(SimpleNamespace(entry=SimpleNamespace(version=version), package=package))

    watch("2")
    assert status.doubts() == []
    status.see(performance=drawn_performance(), patients=drawn_patients(others=False))
    status.judge(report(NOW, "2", {"od_red": 0.5}))
    status.fail("")
    assert status.document()["doubts"] == status.doubts() == []
    status.judge(report(NOW, "2", {"od_red": 1.5}))
    status.see(patients=drawn_patients(others=True))
    status.fail("This look failed.")
    assert [doubt["reason"] for doubt in status.document()["doubts"]] == [DRIFT, PATIENTS]
    watch("3")
    assert status.doubts() == [] and "doubts" not in status.document()


def test_each_reason_has_its_gauge():
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.tell_doubts([{"reason": DRIFT, "since": None}])
    values = [metrics.registry.get_sample_value("blastwatch_estimate_doubted", {"reason": name}) for name in REASONS]
    assert values == [0, 1, 0]


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What `labels report` says of a version with 480 predictions of which the first 300 have labels."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    cohort = draw_cohort(np.random.default_rng(2), patients=24, cells=20)
    package = unsealed_package(tmp_path / "package", cohort)
    asked = SimpleNamespace(package=package, entry=SimpleNamespace(version="2"))
    monkeypatch.setattr("monitoring.asked.asked", lambda *_: asked)
    records = as_records(cohort, digest=package.digest)
    with open_store(load().predictions_url) as store:
        store.add(records)
        store.add_labels([(one.id, one.label, START) for one in records[:300]])

    def tell(*words):
        return CliRunner().invoke(labels, ["report", *words], catch_exceptions=False)

    tell.folder, tell.digest = load().drift, package.digest
    return tell


def write_report(folder, digest, moment, ratio, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    document = report(moment, "2", {"od_red": ratio}) | {"digest": digest} | facts
    (folder / f"drift-{moment:%Y%m%dT%H%M%S.%fZ}-v2.json").write_text(json.dumps(document))


def test_labels_report_says_that_the_cells_drifted_and_changes_nothing_in_the_monitors_folder(told):
    found = told()
    assert "No drift report of this version lies here" in found.stderr and "do not rely" not in found.stdout
    write_report(told.folder, told.digest, NOW - HOUR, 0.5)
    write_report(told.folder, told.digest, NOW, 1.5)
    write_report(told.folder, told.digest, NOW + HOUR, 0.5, on_request=True)
    write_report(told.folder, "another", NOW + 2 * HOUR, 0.5)
    before = sorted(path.name for path in told.folder.iterdir())
    found = told()
    words = f"The cells have drifted since {NOW.isoformat()}: do not rely on the estimate before the labelled cells"
    assert words in found.stdout and "No drift report" not in found.stderr
    found = json.loads(told("--json").stdout)
    assert found["doubts"] == [{"reason": DRIFT, "since": NOW.isoformat()}] and found["drift_reported"]
    assert sorted(path.name for path in told.folder.iterdir()) == before


def test_of_a_span_that_somebody_names_drift_of_now_is_not_told(told):
    write_report(told.folder, told.digest, NOW, 1.5)
    found = told("--since", "2020-01-01", "--json")
    assert not {"doubts", "drift_reported"} & json.loads(found.stdout).keys()
    assert "drifted" not in told("--since", "2020-01-01").stdout
