"""A darker lamp in what is sent to a real service pages somebody through Prometheus and Alertmanager, and no longer
once it is gone or is known of that version; so does a service that ends."""

import io
import os
import subprocess

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.engines import open_engine
from blastwatch.images import crop_cell, decode
from blastwatch.package import DIGESTS, open_package, seal
from blastwatch.processes import Processes
from blastwatch.registry import Registry
from monitoring.reference import build_reference
from monitoring.shifts import shift
from monitoring.statistics import image_statistics
from serving.client import Client
from tests.alerting import listening, start_alerting
from tests.cohorts import write_reference
from tests.running import Running, get, until
from tests.service_packages import give_alias, make_servable
from training.synthesis import synthesise

pytestmark = [pytest.mark.system, pytest.mark.slow]

PATIENTS, CELLS = 20, 12
OF_THE_REFERENCE = 16  # patients; the others are sent
PAGED = 60.0  # seconds


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Path, subject, group and label of the cells of a drawn cohort."""
    folder = tmp_path_factory.mktemp("cohort")
    synthesise(folder, patients=PATIENTS, cells=CELLS, seed=5, duplicates=0)
    paths = sorted(folder.rglob("*.bmp"))
    subjects = [path.stem.split("_")[1] for path in paths]
    rows = pd.DataFrame({"path": paths, "subject": subjects, "group": subjects})
    return rows.assign(label=[path.stem.rsplit("_", 1)[1] for path in paths])


@pytest.fixture
def champion(settings, tmp_path, cells):
    """A version whose reference is what it says of the first patients."""
    client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    run = client.create_run(client.create_experiment("alerts", settings.artifacts.as_uri()))
    folder = make_servable(tmp_path / "package", run_id=run.info.run_id)
    package, known = open_package(folder), cells[_is_known(cells)].reset_index(drop=True)
    shape = package.info.preprocessing
    crops = np.stack([crop_cell(decode(path.read_bytes()), shape) for path in known["path"]])
    outputs = open_engine(package, "openvino-f32").infer(crops)
    blast = probabilities(outputs.logits, package.info.temperature)[:, POSITIVE]
    reference = build_reference(
        known, statistics=[image_statistics(crop, shape) for crop in crops],
        answers=(blast, package.projection()(outputs.embeddings)),
    )  # fmt: skip
    (folder / DIGESTS).unlink()
    write_reference(folder, reference)
    seal(folder)
    registry = Registry(settings)
    return give_alias(registry, registry.register(folder))


def _is_known(cells):
    return cells["subject"].isin(sorted(cells["subject"].unique())[:OF_THE_REFERENCE])


def test_a_darker_lamp_pages_until_it_is_gone(settings, champion, cells, free_port, commands, tmp_path):
    images = [np.asarray(Image.open(path)) for path in cells[~_is_known(cells)]["path"]]
    random = np.random.default_rng(0)
    darker = [shift(image, "darker", 1.0, random=random) for image in images]
    ports = {name: free_port() for name in ("9090", "9093", "3001")}
    service = Running(settings, free_port(), BLASTWATCH_FOLLOW_SECONDS="0").wait_until_ready()
    environment = {**os.environ, "BLASTWATCH_HOME": str(settings.home), "BLASTWATCH_MONITOR_PORT": str(ports["3001"]),
                   "BLASTWATCH_DRIFT_INTERVAL": "1", "BLASTWATCH_DRIFT_WINDOW": str(len(images))}  # fmt: skip
    try:
        with listening() as pager, Processes(environment, tmp_path / "logs") as children:
            children.start("monitor", [str(commands / "blastwatch"), "drift", "watch"])
            start_alerting(children, tmp_path / "alerting", {**ports, "3000": service.port, "9095": pager.port})
            gauges = f"http://127.0.0.1:{ports['3001']}/drift.json"
            children.wait_for("monitor", gauges)

            def send(cells):
                with Client(service.url) as client:
                    answers = list(client.predict_many([_bytes(cell) for cell in cells]))
                assert {answer["model"]["version"] for answer in answers} == {champion.version}

            def seen():
                return get(gauges, timeout=10).json()

            send(images)
            until(lambda: seen()["state"] == "calm", PAGED)
            assert pager.states("BlastwatchDrift") == []
            send(darker)
            until(lambda: pager.states("BlastwatchDrift") == ["firing"], PAGED)
            send(images)
            until(lambda: pager.states("BlastwatchDrift") == ["firing", "resolved"], PAGED)
            alertmanager = f"http://127.0.0.1:{ports['9093']}"
            _silence(alertmanager, f"version={champion.version}")
            send(darker)
            until(lambda: _silenced(alertmanager) == ["BlastwatchDrift"], PAGED)
            assert pager.states("BlastwatchDrift") == ["firing", "resolved"]
            assert service.stop() == []
            until(lambda: pager.states("BlastwatchServiceDown") == ["firing"], PAGED)
            told = pager.words("BlastwatchDrift")
            assert told["labels"]["severity"] == "page" and told["labels"]["version"] == champion.version
            assert "blastwatch drift report" in told["annotations"]["description"]
            assert pager.states("BlastwatchMonitorDown") == []
    finally:
        if service.process.poll() is None:
            service.stop()


def _silence(alertmanager, matcher):
    """As docs/drift.md has it."""
    subprocess.run(
        ["amtool", f"--alertmanager.url={alertmanager}", "silence", "add",
         'alertname=~"Blastwatch(Patient)?Drift"', matcher,
         "--duration=30d", "--author=somebody", "--comment=A new lamp; labels confirm the answers."],
        check=True, capture_output=True,
    )  # fmt: skip


def _silenced(alertmanager):
    alerts = get(f"{alertmanager}/api/v2/alerts", timeout=10).json()
    return [alert["labels"]["alertname"] for alert in alerts if alert["status"]["silencedBy"]]


def _bytes(cell):
    buffer = io.BytesIO()
    Image.fromarray(cell).save(buffer, "BMP")
    return buffer.getvalue()
