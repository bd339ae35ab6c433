"""The evaluation report and the model card where people look for them: in the package, and with the run in MLflow."""

import json

from mlflow import MlflowClient


def test_report_and_card_are_in_the_package_and_with_the_run(demo):
    package = demo.folder / "results/package"
    report = (package / "report.html").read_text()
    assert report == (demo.folder / "results/evaluate/report.html").read_text()
    assert "SYNTHETIC" in report and "not a medical device" in report
    sealed = json.loads((package / "digests.json").read_text())
    assert {"report.html", "card.md"} <= set(sealed["files"])
    run_id = json.loads((demo.folder / "results/train/train.json").read_text())["run_id"]
    client = MlflowClient(f"sqlite:///{demo.folder / 'home' / 'mlflow.db'}")
    logged = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert {"report.html", "card.md", "metrics.json", "plots"} <= logged
    assert client.get_run(run_id).data.tags["blastwatch.initial_weights.source"] == "scratch"
    assert "It was trained from scratch." in (package / "card.md").read_text()
    drawn = {artifact.path for artifact in client.list_artifacts(run_id, "plots")}
    assert {"plots/errors.png", "plots/parts.png", "plots/patients.png"} <= drawn
