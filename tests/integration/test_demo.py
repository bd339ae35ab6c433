"""What the demo leaves behind, and what a user does next."""

import json

import psutil
import pytest

from blastwatch.package import open_package


def test_the_summary_says_what_happened(demo):
    for word in ("SYNTHETIC", "weighted_f1", "three size numbers alone", "version 1", "not a medical device"):
        assert word in demo.said


def test_no_process_is_left(demo):
    left = []
    for process in psutil.process_iter():
        try:
            if any(str(demo.folder) in part for part in process.cmdline()):
                left.append(process.cmdline())
        except psutil.Error:
            continue
    assert not left


def test_another_stain_moves_more_than_clean_cells(demo):
    """Five reference patients are too few for a verdict, so the scores are compared; the full demo has eleven."""
    documents = [json.loads(path.read_text()) for path in sorted((demo.folder / "home/drift").rglob("*.json"))]
    before, after, *_ = (
        {row["name"]: row["score"] for row in document["columns"]} for document in documents if "columns" in document
    )
    assert after["od_green"] > 2 * before["od_green"]


def test_dvc_knows_the_figures_and_the_plots(demo):
    assert "cells.weighted_f1" in demo.run("dvc", "metrics", "show")
    plots = demo.run("dvc", "plots", "show", "--json")
    assert "roc.csv" in plots and "curves.csv" in plots


def test_a_changed_parameter_runs_only_what_depends_on_it(demo):
    assert "Running stage" not in demo.run("dvc", "repro", "--dry")
    params = demo.folder / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("resamples: 50", "resamples: 60"))
        said = demo.run("dvc", "repro", "--dry")
    finally:
        params.write_text(before)
    assert "'evaluate'" in said and "'package'" in said
    assert not [stage for stage in ("import", "audit", "split", "pack", "train") if f"Running stage '{stage}'" in said]


def test_the_package_is_sealed_and_loads_through_pyfunc(demo, monkeypatch):
    import numpy as np

    package = open_package(demo.folder / "results/package")
    assert package.info.synthetic and set(package.info.precision) == {"openvino-bf16", "openvino-int8", "torch-bf16"}
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{demo.folder / 'home/mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{demo.folder / 'home/mlflow.db'}")
    loaded = mlflow.pyfunc.load_model("models:/blastwatch/1")
    answers = loaded.predict(np.zeros((2, 3, 32, 32), np.float32))
    assert list(answers["probability"].between(0, 1)) == [True, True]


def test_a_second_version_is_trained_promoted_and_rolled_back(demo):
    def served():
        return json.loads(demo.run("blastwatch", "registry", "show", "champion", "--json"))["version"]

    again = ("--set", "train.seed=2", "--set", "train.epochs=1")
    demo.run("blastwatch", "train", *again, "--out", "second/train")
    demo.run("blastwatch", "evaluate", "--trained", "second/train", "--out", "second/evaluate",
             "--summary", "second/summary.json")  # fmt: skip
    demo.run("blastwatch", "package", "--trained", "second/train", "--evaluated", "second/evaluate",
             "--out", "second/package")  # fmt: skip
    entry = json.loads(demo.run("blastwatch", "registry", "register", "second/package", "--json"))
    assert entry["version"] == "2" and entry["aliases"] == ["candidate"]
    result = json.loads(demo.run("blastwatch", "registry", "promote", "2", "--json", BLASTWATCH_PROMOTION_MARGIN="1.0"))
    assert result["promoted"] and [gate["passed"] for gate in result["gates"]] == [True, True, True]
    assert served() == "2"
    demo.run("blastwatch", "registry", "rollback", "--reason", "a test")
    assert served() == "1"
    told = json.loads(demo.run("blastwatch", "registry", "history", "--json"))
    assert [(row["action"], row["after"]) for row in told] == [
        ("register", ""), ("promote", "1"), ("register", "1"), ("promote", "2"), ("rollback", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data", "import", "home", "--kind", "folder", "--out", "x"), "image"),
        (("registry", "show", "9"), "There is no version 9"),
        (("train", "--set", "train.epochs=none"), "train.epochs"),
    ],
)
def test_wrong_calls_say_what_is_wrong(demo, arguments, said):
    import subprocess

    from blastwatch.processes import script

    done = subprocess.run(
        [script("blastwatch"), *arguments], cwd=demo.folder, env=demo.environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr
