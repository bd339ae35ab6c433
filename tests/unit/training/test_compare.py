"""`blastwatch compare` over folders of evaluations."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import write_json
from tests.answers import draw_models
from training.evidence import BASELINE_PREDICTIONS, METRICS, PREDICTIONS
from training.experiment_commands import _say_comparison, compare
from training.significance import compare_models

SOUND = {"synthetic": False, "leaky": False, "initial_weights": "scratch"}


@pytest.fixture
def folders(tmp_path):
    """Three evaluations of the same cells, the first of them better, and the baselines beside each."""
    tables = draw_models(np.random.default_rng(2), (2.5, 1.0, 0.3), patients=12, cells=20)
    made = dict(zip(("good", "poor", "worse"), tables, strict=True))
    for name, table in made.items():
        folder = tmp_path / name
        folder.mkdir()
        table.to_parquet(folder / PREDICTIONS)
        told = [table.assign(model=model, probability=0.5) for model in ("sizes", "boosted")]
        pd.concat(told).to_parquet(folder / BASELINE_PREDICTIONS)
        write_json(folder / METRICS, SOUND)
    return tmp_path, made


def test_every_other_model_and_the_baselines_are_held_against_the_reference(folders, tmp_path):
    place, made = folders
    call = [*(str(place / name) for name in made), "--params", str(_params(tmp_path)), "--json"]
    told = json.loads(CliRunner().invoke(compare, call, catch_exceptions=False).stdout)
    assert told["reference"] == "good"
    rows = pd.DataFrame(told["comparison"])
    assert list(rows["baseline"].unique()) == ["poor", "worse", "sizes", "boosted"]
    own = compare_models({"good": made["good"], "worse": made["worse"]}, "good", resamples=50, permutations=200, seed=1)
    ours = rows[(rows["baseline"] == "worse") & (rows["metric"] == "auroc")].iloc[0]
    theirs = own[own["metric"] == "auroc"].iloc[0]
    assert ours["difference"] == theirs["difference"] > 0 and ours["p"] == theirs["p"] <= ours["p_holm"]


def test_another_reference_turns_the_difference(folders, tmp_path):
    place, _ = folders
    call = [str(place / "good"), str(place / "poor"), "--params", str(_params(tmp_path))]
    first = CliRunner().invoke(compare, call, catch_exceptions=False).output
    second = CliRunner().invoke(compare, [*call, "--reference", "poor"], catch_exceptions=False).output
    assert "good - poor" in first and "poor - good" in second


def test_figures_near_a_bound_are_not_told_as_the_bound(capsys):
    row = {"metric": "auroc", "baseline": "poor", "difference": 0.0004, "low": 0.0001, "high": 0.99996, "p": 0.00002}
    _say_comparison("good", [row | {"p_holm": 0.99998}])
    told = capsys.readouterr().err
    assert "+0.0004 (+0.0001 to +0.99996), p 0.00002, by Holm 0.99998" in told


def test_folders_without_an_evaluation_or_of_one_name_are_refused(folders, tmp_path):
    place, _ = folders
    parameters = ["--params", str(_params(tmp_path))]
    (place / "empty").mkdir()
    with pytest.raises(UsageError, match="blastwatch evaluate"):
        CliRunner().invoke(compare, [str(place / "empty"), *parameters], catch_exceptions=False)
    shutil.copytree(place / "good", place / "other" / "good")
    with pytest.raises(UsageError, match="different names"):
        CliRunner().invoke(
            compare, [str(place / "good"), str(place / "other/good"), *parameters], catch_exceptions=False
        )


def test_what_makes_figures_too_good_is_said_before_them(folders, tmp_path):
    place, _ = folders
    call = [*(str(place / name) for name in ("good", "poor", "worse")), "--params", str(_params(tmp_path))]
    sound = CliRunner().invoke(compare, call, catch_exceptions=False).output
    assert " cells of 12 patients;" in sound.splitlines()[0] and "synthetic" not in sound
    changed = {
        "good": SOUND | {"synthetic": True, "leaky": True},
        "poor": SOUND | {"leaky": True, "initial_weights": "unknown"},
        "worse": {"synthetic": False, "leaky": False},  # of before that was kept
    }
    for name, facts in changed.items():
        write_json(place / name / METRICS, facts)
    told = CliRunner().invoke(compare, call, catch_exceptions=False).output.splitlines()
    assert told[0].startswith("The split of good, poor leaks: some of those tested were trained on")
    assert told[1].startswith("It is not known what the initial weights of poor had seen")
    assert told[2].startswith("metrics.json of worse does not say with which weights") and "evaluate" in told[2]
    assert "synthetic cells of 12 patients" in told[3]
    as_json = CliRunner().invoke(compare, [*call, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["evaluations"] == changed | {
        "worse": changed["worse"] | {"initial_weights": None}
    }
    assert as_json.stderr.splitlines() == told[:3]


def test_an_evaluation_that_was_stopped_is_not_compared(folders, tmp_path):
    place, _ = folders
    call = [str(place / "good"), str(place / "poor"), "--params", str(_params(tmp_path))]
    (place / "poor" / METRICS).write_text("{}")
    with pytest.raises(DataError, match="true or false as synthetic and leaky in .* but got None and None"):
        CliRunner().invoke(compare, call, catch_exceptions=False)
    (place / "poor" / METRICS).unlink()
    with pytest.raises(DataError, match=r"poor/metrics.json is missing\. Make it with: blastwatch evaluate"):
        CliRunner().invoke(compare, call, catch_exceptions=False)


def _params(folder):
    (folder / "params.yaml").write_text("evaluate: {resamples: 50, permutations: 200}\n")
    return folder / "params.yaml"
