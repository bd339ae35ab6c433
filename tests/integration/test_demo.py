"""What the demo leaves behind, and what a user does next."""

import contextlib
import json
import re
import shutil
import socket
import subprocess

import openvino
import psutil
import pytest

from blastwatch.engines import open_engine
from blastwatch.evidence_gates import groups_gate
from blastwatch.golden import check_golden, read_golden
from blastwatch.graph_engine import open_graph_engine
from blastwatch.manifest import read_cells, read_split
from blastwatch.package import open_package
from blastwatch.processes import Processes, script
from blastwatch.seen import read_seen
from tests.policies import lenient
from tests.running import get
from training.pack import open_pack


def test_the_summary_says_what_happened(demo):
    for word in ("SYNTHETIC", "weighted_f1", "three size numbers alone", "version 1", "not a medical device"):
        assert word in demo.said


def test_the_summary_names_a_held_out_cell_to_try(demo):
    rows = read_split(demo.folder / "data/cells", demo.folder / "data/split")
    named = re.search(r"^Try +(\S+)$", demo.said, re.MULTILINE)[1]
    [side] = [row.side for row in rows.itertuples() if named.endswith(f"/{row.path}")]
    assert side == "test"


def test_the_version_knows_the_images_that_it_learned_from(demo):
    rows = read_split(demo.folder / "data/cells", demo.folder / "data/split")
    seen = read_seen(open_package(demo.folder / "results/package"))
    assert seen.among(rows["pixel_sha256"]).tolist() == (rows["side"] != "test").tolist()
    assert len(seen) == rows.loc[rows["side"] != "test", "pixel_sha256"].nunique()


def processes_of(folder):
    """Command lines of the running processes that name a folder, or hold a file open in it, as each does its log."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(folder in part for part in [*process.cmdline(), *(file.path for file in process.open_files())]):
                found.append(process.cmdline())
    return found


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_no_process_is_left(demo):
    assert not processes_of(str(demo.folder))


def test_another_stain_moves_more_than_clean_cells(demo):
    """Five reference patients are too few for a verdict, so the scores are compared; the full demo has eleven."""
    pages = re.findall(r"drift-\S+\.html", demo.said)
    documents = [json.loads(path.read_text()) for path in sorted((demo.folder / "home/drift").glob("drift-*.json"))]
    asked = len(list((demo.folder / "restained").rglob("*.bmp")))
    clean = next(one for one in documents if one["window"]["cells"] + one["window"]["repeated"] == asked)
    stained = next(one for one in documents if one["report"].endswith(pages[0]))
    before, after = ({row["name"]: row["score"] for row in document["columns"]} for document in (clean, stained))
    assert after["od_green"] > 2 * before["od_green"]
    assert len(re.findall(r"(?:no drift|DRIFT in .*); gauge blastwatch_drift_detected [01]", demo.said)) == 2


def test_dvc_knows_the_figures_and_the_plots(demo):
    assert "cells.weighted_f1" in demo.run("dvc", "metrics", "show")
    plots = demo.run("dvc", "plots", "show", "--json")
    assert "roc.csv" in plots and "curves.csv" in plots


def test_the_package_is_sealed_and_loads_through_pyfunc(demo, monkeypatch):
    import numpy as np

    package = open_package(demo.folder / "results/package")
    assert package.info.synthetic and set(package.info.precision) == {
        "openvino-f32", "openvino-bf16", "openvino-int8", "torch-bf16", "torch-f16-graphs",
    }  # fmt: skip
    assert all(0 <= row.decision_flip_rate <= 1 for row in package.info.precision.values())
    assert {name for name, row in package.info.precision.items() if not row.speed} == {"torch-f16-graphs"}  # emulated
    assert package.info.precision["openvino-f32"].flip_rate == 0
    plain = {name for name, row in package.info.precision.items() if row.is_plain}
    # No other gives the logits of float32 as they are; on a processor that has no bf16 it is computed in float32.
    computes = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert plain == {"openvino-f32"} | (set() if "BF16" in computes else {"openvino-bf16"})
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{demo.folder / 'home/mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{demo.folder / 'home/mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{demo.folder / 'home/mlflow.db'}")  # or it keeps that of an earlier test
    loaded = mlflow.pyfunc.load_model("models:/blastwatch/1")
    answers = loaded.predict(np.zeros((2, 3, 32, 32), np.float32))
    assert list(answers["probability"].between(0, 1)) == [True, True]


@pytest.mark.slow
def test_a_second_version_is_promoted_and_rolled_back_and_the_restarted_service_follows(
    demo, second_package, tmp_path, free_port
):
    """On a copy of the demo's home, so that the order of the tests does not matter."""
    shutil.copytree(demo.folder / "home", tmp_path / "home")
    port = str(free_port())
    address = f"http://127.0.0.1:{port}"
    environment = {
        "BLASTWATCH_HOME": str(tmp_path / "home"), "BLASTWATCH_URL": address,
        "BLASTWATCH_POLICY": str(lenient(tmp_path, non_inferiority={"margin": None})),
    }  # fmt: skip
    cell = str(next((demo.folder / "data/source").rglob("*.bmp")))

    def run(*arguments):
        return json.loads(demo.run("blastwatch", *arguments, "--json", **environment))

    def answering():
        """The version that a freshly started service names in its answer, and what its model says of itself."""
        with Processes(demo.environment | environment, tmp_path / "logs") as children:
            children.start("service", [str(demo.commands / "blastwatch"), "serve", "--port", port])
            children.wait_for("service", f"{address}/readyz")
            [answer] = run("predict", cell)
            assert answer["model"]["version"] == get(f"{address}/v1/model").json()["version"]
            return answer["model"]["version"], answer["model"]["digest"]

    first = answering()
    entry = run("registry", "register", str(second_package))
    assert entry["version"] == "2" and entry["aliases"] == ["candidate"]
    result = run("registry", "promote", "2")
    assert result["promoted"] and all(gate["passed"] for gate in result["gates"])
    second = answering()
    demo.run("blastwatch", "registry", "rollback", "--reason", "a test", **environment)
    third = answering()
    assert first[0] == "1" and second[0] == "2" and third == first and second[1] == open_package(second_package).digest
    told = run("registry", "history")
    assert [(row["action"], row["alias"], row["before"], row["after"]) for row in told] == [
        ("register", "candidate", "", "1"), ("promote", "champion", "", "1"), ("register", "candidate", "", "2"),
        ("promote", "champion", "1", "2"), ("rollback", "champion", "2", "1"),
    ]  # fmt: skip
    assert run("registry", "verify")["intact"]


@pytest.mark.slow
def test_up_starts_every_page_and_leaves_nothing(demo, tmp_path, free_port):
    shutil.copytree(demo.folder / "home", tmp_path / "home")
    ports = {
        f"BLASTWATCH_{name}": str(free_port()) for name in ("PORT", "MLFLOW_PORT", "MONITOR_PORT", "EVIDENTLY_PORT")
    }
    command = subprocess.Popen(
        [script("blastwatch"), "up"], env=demo.environment | {"BLASTWATCH_HOME": str(tmp_path / "home")} | ports,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with command as up:
        try:
            said = {}
            for line in up.stdout:
                if "Stop with Ctrl+C" in line:
                    break
                name, _, address = line.strip().partition(" ")
                said[name] = address.strip()
            assert said.keys() >= {"service", "mlflow", "gauges", "evidently"}, said
            for name in ("service", "mlflow", "gauges", "evidently"):
                assert get(said[name]).is_success, name
            assert "blastwatch_drift_" in get(said["gauges"]).text
        finally:
            up.terminate()
            last = up.stdout.read()
    assert up.returncode == 0, last
    assert not processes_of(str(tmp_path / "home")) and not [port for port in ports.values() if answers(port)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data", "import", "home", "--kind", "folder", "--out", "x"), "image"),
        (("registry", "show", "9"), "There is no version 9"),
        (("train", "--set", "train.epochs=none"), "train.epochs"),
    ],
)
def test_wrong_calls_say_what_is_wrong(demo, arguments, said):
    done = subprocess.run(
        [script("blastwatch"), *arguments], cwd=demo.folder, env=demo.environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr


def test_golden_cells_are_those_of_calibration_patients(demo):
    """No others may travel in a package, and no test patient may say whether an engine serves."""
    data = demo.folder / "data"
    packed = open_pack(data / "pack", read_cells(data / "cells"))
    rows = read_split(data / "cells", data / "split")
    sides = dict(zip(rows["path"], rows["side"], strict=True))
    shown = {crop.tobytes(): sides[path] for path, crop in zip(packed.paths, packed.crops, strict=True)}
    crops, _ = read_golden(open_package(demo.folder / "results/package"))
    assert {shown.get(crop.tobytes()) for crop in crops} == {"calibration"}


def test_the_package_holds_golden_cells_and_the_groups_of_every_side(demo):
    package = open_package(demo.folder / "results/package")
    crops, logits = read_golden(package)
    assert (crops.shape, logits.shape) == ((8, 32, 32, 3), (8, 2))
    for name in ("torch-f32", *package.info.precision):
        if name.endswith("-graphs"):
            check_golden(package, open_graph_engine(package, name, device="cpu"))
        else:
            check_golden(package, open_engine(package, name))
    gate = groups_gate(package)
    assert gate.passed, gate
