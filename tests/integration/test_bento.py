"""A bento, built from a version and started by itself: only what it pins is there, and no registry."""

import contextlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from packaging.utils import canonicalize_name

from blastwatch.entry import Entry
from blastwatch.package import DIGESTS, ONNX, open_package, seal
from serving.bento import SOURCES, build_bento
from serving.live import Served, hand_over
from tests.running import START_SECONDS, environment, get, reached, until
from tests.service_packages import make_servable, write_cell

DEPLOY = Path(__file__).parents[2] / "deploy"


def hide_what_is_not_in(requirements, folder):
    """Processes with the folder on their path import no distribution that these requirements leave out."""
    pinned = {line.split("==")[0] for line in requirements.splitlines()}
    owners = importlib.metadata.packages_distributions()
    hidden = {name for name, of in owners.items() if not pinned & set(map(canonicalize_name, of))} - set(SOURCES)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"""
import sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden)
""")


def workers_of(supervisor):
    """The ids of its processes that answer."""
    found = set()
    for child in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "_bentoml_impl.worker.service" in child.cmdline():
                found.add(child.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"BENTOML_CONTAINERIZED": "true"}, {"BLASTWATCH_WORKERS": "2"}], ids=["image", "two"])
def test_a_service_of_which_no_worker_can_start_ends(tmp_path, free_port, more):
    """Started again and again inside, they would be a container that runs and answers nobody."""
    folder = make_servable(tmp_path / "package")
    (folder / ONNX).write_bytes(b"no graph")
    (folder / DIGESTS).unlink()
    seal(folder)
    package = open_package(folder)
    entry = Entry(version="5", digest=package.digest, run_id="", created="", synthetic=True, registered_by="tester")
    handed = hand_over(Served(entry=entry, package=package, alias="champion"), tmp_path / "live.json")
    variables = environment(
        BENTOML_HOME=str(tmp_path / "bentoml"), BLASTWATCH_HOME=str(tmp_path / "home"), BLASTWATCH_LIVE=str(handed),
        BLASTWATCH_ENGINE="openvino-f32", **more,
    )  # fmt: skip
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Blastwatch", "--host", "127.0.0.1"]
    done = subprocess.run(
        [*command, "--port", str(free_port())], cwd=DEPLOY.parent, env=variables, capture_output=True, text=True,
        timeout=3 * START_SECONDS, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "PackageError" in said, said
    assert said.count("Application startup failed") == 2 * int(more.get("BLASTWATCH_WORKERS", "1")), "none is replaced"
    assert "Expected at least one worker that serves but all ended at their start" in said.splitlines()[-1], said


@pytest.mark.slow
def test_a_bento_serves_by_itself(tmp_path, free_port):
    """Built here, started elsewhere, with no registry to ask: it answers and stores, in as many workers as are set."""
    package = open_package(make_servable(tmp_path / "package"))
    entry = Entry(
        version="5", digest=package.digest, run_id="run", created="", synthetic=True, registered_by="tester"
    )  # fmt: skip
    built = build_bento(Served(entry=entry, package=package, alias="champion"), tmp_path / "bento")
    requirements = (built.folder / "env" / "python" / "requirements.txt").read_text()
    assert "://" not in requirements
    assert "mlflow" not in requirements
    assert "\nhttptools==" in requirements and "\nuvloop==" in requirements  # nobody there asks for them
    python = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    if python in (checked_in := (DEPLOY / "Dockerfile.gpu").read_text()):
        assert built.dockerfile == checked_in, (
            "make it anew: blastwatch bento --out DIR --dockerfile deploy/Dockerfile.gpu"
        )
    port = free_port()
    hide_what_is_not_in(requirements, tmp_path / "hidden")
    variables = environment(
        BENTOML_HOME=str(tmp_path / "home"), MLFLOW_TRACKING_URI="http://127.0.0.1:9", BLASTWATCH_WORKERS="2",
        PYTHONPATH=str(tmp_path / "hidden"), BENTOML_CONTAINERIZED="true",  # as in its image
    )  # fmt: skip
    command = [sys.executable, "-m", "bentoml", "serve", str(built.folder), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            try:
                version = get(f"http://127.0.0.1:{port}/v1/model", timeout=5).json()["version"]
                break
            except httpx.TransportError:
                time.sleep(0.2)
        assert version == "5"
        cell = {"image": write_cell(tmp_path / "cell.bmp").read_bytes()}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict", files=cell, timeout=60, verify=False)
        assert answer.json()["model"]["version"] == "5"
        stored = 'blastwatch_capture_predictions_total{outcome="stored"} 1.0'
        until(lambda: stored in get(f"http://127.0.0.1:{port}/metrics", timeout=5).text)
        first = workers_of(process.pid)
        assert len(first) == 2, "as BLASTWATCH_WORKERS says"
        assert reached(psutil.Process(process.pid)) == {port}
        os.kill(killed := min(first), signal.SIGKILL)
        until(lambda: len(workers_of(process.pid) - {killed}) == 2, START_SECONDS)  # nobody else sees one die
        assert reached(psutil.Process(process.pid)) == {port}
    finally:
        process.terminate()
        process.wait(30)
