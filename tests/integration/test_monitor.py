"""The monitor as a process of its own: registered champion, captured rows, gauges over HTTP, clean stop."""

import json
import os
import re
import signal
import subprocess
import time
from datetime import datetime, timedelta

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from blastwatch.errors import DataError
from blastwatch.package import DIGESTS, seal
from blastwatch.registry import Registry
from monitoring.image_store import open_image_store
from monitoring.label_commands import labels
from monitoring.metrics import MonitorMetrics
from monitoring.store import open_store
from monitoring.watch import Monitor
from monitoring.windows import CAUTION
from tests.cohorts import START, as_records, draw_cohort, pictured, window_of, write_reference
from tests.packages import make_package
from tests.patient_streams import visits
from tests.running import get
from tests.service_packages import give_alias

GAUGE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@pytest.fixture
def cohort():
    return draw_cohort(np.random.default_rng(2), patients=16, cells=40)


@pytest.fixture
def reference(cohort):
    return cohort[cohort["group"] < "P012"].reset_index(drop=True)


@pytest.fixture
def champion(settings, tmp_path, reference):
    """A registered and crowned version whose reference is the simulated cohort."""
    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.create_experiment("test", artifact_location=settings.artifacts.as_uri())
    folder = make_package(tmp_path / "package", run_id=client.create_run(experiment).info.run_id)
    (folder / DIGESTS).unlink()
    write_reference(folder, reference)
    seal(folder)
    registry = Registry(settings)
    entry = registry.register(folder)
    return give_alias(registry, entry)


@pytest.fixture
def environment(settings, free_port):
    return os.environ | {
        "BLASTWATCH_HOME": str(settings.home),
        "BLASTWATCH_MONITOR_PORT": str(free_port()),
        "BLASTWATCH_DRIFT_INTERVAL": "0.5",
        "BLASTWATCH_DRIFT_WINDOW": "120",
    }


@pytest.fixture
def blastwatch(environment, commands):
    """Runs a command and returns the finished process."""

    def run(*words):
        return subprocess.run(
            [commands / "blastwatch", *words],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    return run


def gauges(port):
    text = get(f"http://127.0.0.1:{port}/metrics").text
    return {name + (f"{{{labels}}}" if labels else ""): float(value) for name, labels, value in GAUGE.findall(text)}


def wait_for(port, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = gauges(port)
        except httpx.HTTPError:
            found = {}
        if condition(found):
            return found
        assert time.monotonic() < deadline, f"waited in vain; last seen {found}"
        time.sleep(0.2)


def wait_for_page(port, condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition(told := get(f"http://127.0.0.1:{port}/drift.json").json()):
        assert time.monotonic() < deadline, f"waited in vain; last seen {told}"
        time.sleep(0.1)
    return told


@pytest.mark.slow
def test_watch_serves_gauges_follows_the_stream_and_stops(settings, champion, cohort, reference, environment, commands):
    random, new = np.random.default_rng(0), ["P012", "P013", "P014", "P015"]
    calm = window_of(cohort, new, 120, random)
    stained = calm.assign(od_blue=calm["od_blue"] + 6 * reference["od_blue"].std())
    port = int(environment["BLASTWATCH_MONITOR_PORT"])
    process = subprocess.Popen(
        [commands / "blastwatch", "drift", "watch"],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        found = wait_for(port, lambda seen: any(key.startswith("blastwatch_drift_model_info") for key in seen))
        assert found["blastwatch_drift_last_look_timestamp_seconds"] > 0
        assert found["blastwatch_drift_window_cells"] == 0
        assert found["blastwatch_drift_last_report_timestamp_seconds"] == 0
        model = f'blastwatch_drift_model_info{{digest="{champion.digest}",version="1"}}'
        assert found[model] == 1
        with open_store(settings.predictions_url) as store:
            records = as_records(calm, digest=champion.digest)
            store.add(records)
            store.add_labels([(record.id, record.label, START) for record in records[:9]])
            store.add_labels([(records[9].id, "all" if records[9].label == "hem" else "hem", START)])
            found = wait_for(port, lambda seen: seen.get("blastwatch_drift_last_report_timestamp_seconds", 0) > 0)
            assert found["blastwatch_drift_detected"] == 0 and found["blastwatch_drift_window_cells"] == 120
            assert found['blastwatch_drift_score{column="od_blue"}'] > 0
            store.add(as_records(stained, digest=champion.digest, start=START + timedelta(hours=1)))
        found = wait_for(port, lambda seen: seen.get("blastwatch_drift_detected") == 1)
        limit = found['blastwatch_drift_threshold{column="od_blue"}']
        assert found['blastwatch_drift_score{column="od_blue"}'] > limit
        assert found["blastwatch_drift_failures_total"] == 0
        assert found["blastwatch_labelled_cells"] == 10
        assert found["blastwatch_labelled_agreement_ratio"] == pytest.approx(0.9)
        realised = found['blastwatch_performance_ratio{bound="value",figure="accuracy",kind="realised"}']
        assert realised == pytest.approx(0.9) and found['blastwatch_estimate_state{state="open"}'] == 1
        told = wait_for_page(port, lambda told: told["state"] == "drift")  # the gauge is set before the look is over
        assert told["doubts"] == [{"reason": "drift", "since": told["since"]["at"]}]
        assert gauges(port)['blastwatch_estimate_doubted{reason="drift"}'] == 1
        assert told["model"] == {"version": "1", "digest": champion.digest, "synthetic": True}
        assert [(move["version"], move["who"]) for move in told["promotions"]] == [("1", "tester")]
        assert told["stored"]["predictions"] == 240 and told["timeline"]
        process.send_signal(signal.SIGTERM)
        output, words = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, words
    assert output == ""
    assert "drift in" in words and "od_blue" in words
    assert len(list(settings.drift.glob("drift-*.html"))) == len(list(settings.drift.glob("drift-*.json"))) >= 2
    from evidently.ui.workspace import Workspace

    workspace = Workspace.create(str(settings.drift / "workspace"))
    (project,) = workspace.list_projects()
    assert len(workspace.list_runs(project.id)) >= 2


@pytest.fixture
def other_patients(cohort):
    """Names of two dozen patients as those of the reference are, then of three dozen who are all healthy."""
    healthy = cohort.loc[cohort["label"] == "hem", "group"].unique()
    random = np.random.default_rng(1)
    return [*random.choice(cohort["group"].unique(), 24), *random.choice(healthy, 36)]


@pytest.mark.slow
def test_another_mix_of_patients_is_found_told_and_called(settings, champion, cohort, other_patients, blastwatch):
    def looked():
        metrics = MonitorMetrics(CollectorRegistry())
        monitor = Monitor(settings, metrics)
        monitor.look()
        monitor.close()
        return monitor.status.document()["patients"], metrics.registry.get_sample_value

    with open_store(settings.predictions_url) as store:
        store.add(visits(cohort, other_patients[:24], digest=champion.digest, start=START))
        assert not looked()[0]["drifted"]
        changed = START + timedelta(days=12)
        store.add(visits(cohort, other_patients[24:], digest=champion.digest, start=changed, every=timedelta(hours=8)))
    told, value = looked()
    assert told["drifted"] and (told["known"], told["answered"], told["entered"]) == (12, 12, 60)
    column = next(column for column in told["columns"] if column["name"] == "probability")
    assert column["drifted"] and column["evidence"] >= 1 and column["now"] < 0.2 < 0.5 < column["before"]
    assert abs(datetime.fromisoformat(column["since"]) - changed) <= timedelta(days=2)
    assert told["causes"][0]["cause"] == "unknown" and "packaged anew" in told["causes"][0]["evidence"]
    assert value("blastwatch_patient_drift_detected") == 1 and value("blastwatch_patient_drift_patients") == 60
    assert value("blastwatch_patient_drift_evidence", {"column": "probability"}) == column["evidence"]
    done = blastwatch("drift", "patients", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == told
    done = blastwatch("drift", "patients")
    assert "60 patients count, 12 are known" in done.stdout and "Other patients than before." in done.stderr
    assert "Probable cause: unknown" in done.stdout
    done = blastwatch("drift", "watch", "--once")
    assert "Other patients: " in done.stderr and f"probability since {column['since']}" in done.stderr


@pytest.mark.slow
def test_the_commands(settings, champion, cohort, blastwatch, tmp_path):
    done = blastwatch("drift", "report")
    assert done.returncode == 1 and "at least 30 predictions of version 1" in done.stderr
    rows = window_of(cohort, ["P012", "P013", "P014"], 90, np.random.default_rng(0))
    records = as_records(rows, digest=champion.digest)
    with open_store(settings.predictions_url) as store:
        store.add(records)
        store.add(as_records(rows, digest="other", start=START + timedelta(days=1)))
    done = blastwatch("drift", "watch", "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["window"]["cells"] == 90
    done = blastwatch("drift", "report", "--since", "2026-11-01T00:00:30Z", "--until", "2026-11-01T00:01:10", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["window"] == {
        "since": "2026-11-01T00:00:30+00:00", "until": "2026-11-01T00:01:09+00:00", "cells": 40,
        "patients": None, "effective_patients": None, "repeated": 0, "caution": CAUTION,
    }  # fmt: skip
    done = blastwatch("drift", "calibrate", "--patients", "5", "--resamples", "100")
    assert done.returncode == 2 and "--resamples to be 1000 or more for a false-alarm rate of 0.001" in done.stderr
    few = ("--resamples", "100", "--false-alarm-rate", "0.01")
    done = blastwatch("drift", "calibrate", "--patients", "5", *few, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["patients"] == 5
    truth = tmp_path / "truth.csv"
    truth.write_text(f"id,label\n{records[0].id},all\n{records[1].id},hem\n")
    done = blastwatch("labels", "add", str(truth), "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"labels": 2, "changed": 2})
    truth.write_text(f"id,label\n{records[2].id},all\nnobody,hem\n")
    done = blastwatch("labels", "add", str(truth))
    assert done.returncode == 1 and "nobody is not among them" in done.stderr
    assert blastwatch("drift", "report", "--since", "yesterday").returncode == 2


@pytest.mark.slow
def test_labels_are_asked_for_added_and_told(settings, champion, cohort, monkeypatch, tmp_path):
    """In this process: each command of its own would take seconds to load."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    rows = window_of(cohort, ["P012", "P013", "P014", "P015"], 120, np.random.default_rng(0))
    with open_store(settings.predictions_url) as store:
        store.add(as_records(rows, digest=champion.digest))
    file = tmp_path / "review.csv"

    def run(*words, code=0):
        done = CliRunner().invoke(labels, words)
        assert done.exit_code == code, (done.output, done.exception)
        return done

    with open_image_store(settings.predictions_url) as images:
        images.add([pictured(one.id) for one in as_records(rows, digest="")[::2]])
    pictures = tmp_path / "pictures"
    options = ("--count", "40", "--pictures", str(pictures), "--json")
    words = json.loads(run("review", "--out", str(file), *options).stdout)
    found = sorted(path.stem for path in pictures.iterdir())
    assert words == {"cells": 40, "reasons": {"uncertain": 20, "unlike": 20}, "patients": 0, "repeated": 0,
                     "file": str(file), "pictures": len(found)}  # fmt: skip
    kept = {one.id for one in as_records(rows, digest="")[::2]}
    assert found == sorted(kept & set(pd.read_csv(file, dtype=str)["id"])) and found
    done = run("review", "--out", str(file), code=1)
    assert isinstance(done.exception, DataError) and "Expected a new file" in str(done.exception)
    asked = pd.read_csv(file, dtype=str, keep_default_na=False)
    asked["label"] = np.where(np.arange(40) < 35, "all", "")
    asked.to_csv(file, index=False)
    done = run("add", str(file), code=1)
    assert "passed over with --skip-empty" in str(done.exception)
    assert run("add", "--skip-empty", str(file)).output == "35 labels, 35 of them new or changed.\n"
    found = json.loads(run("report", "--json").stdout)
    assert (found["now"]["latest"]["cells"], found["now"]["labelled"]["cells"]) == (120, 35)
    assert found["now"]["labelled"]["unit"] == "cell" and found["windows"][0]["labelled"] == 35
    called = {record.id: record.label for record in as_records(rows, digest="")}
    right = np.mean([called[id_] == "all" for id_ in asked["id"][:35]])
    assert found["now"]["labelled"]["realised"]["accuracy"]["value"] == pytest.approx(right)
    lines = run("report").output
    assert (
        "Intervals by cell: cells are independent, which" in lines
        and f"the estimate is {found['now']['labelled']['check']['state']}" in lines
    )
    assert run("report", "--until", "2020-01-01").output.count("unknown") == 7
