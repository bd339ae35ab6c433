"""One report through Evidently: its scores are ours, its verdict follows the package's thresholds."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blastwatch.errors import DataError
from monitoring.calibration import thresholds_for
from monitoring.drift import MOST_COMPARED, TooFewPredictions, compare, names_of, prune
from monitoring.scores import ANSWERED, EMBEDDING_SCORE
from tests.cohorts import as_predictions, draw_cohort, scores_of, unanswered, unsealed_package, window_of


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(2), patients=16, cells=40)


@pytest.fixture(scope="module")
def reference(cohort):
    return cohort[cohort["group"] < "P012"].reset_index(drop=True)


@pytest.fixture(scope="module")
def package(tmp_path_factory, reference):
    return unsealed_package(tmp_path_factory.mktemp("drift") / "package", reference)


@pytest.fixture(scope="module")
def window(cohort):
    return window_of(cohort, ["P012", "P013", "P014", "P015"], 120, np.random.default_rng(0))


@pytest.fixture(scope="module")
def report(package, window, tmp_path_factory):
    current = as_predictions(window, digest=package.digest, keyed=True)
    moment, folder = datetime(2026, 11, 24, 9, 30, tzinfo=UTC), tmp_path_factory.mktemp("reports")
    return compare(package, current, version="3", folder=folder, timestamp=moment, repeated=7)


def test_the_document(report, package):
    document = report.document
    told = ["version", "digest", "window", "basis", "compared", "on_request", "drifted", "columns", "causes", "report"]
    assert list(document) == told and document["on_request"] is False
    assert document["causes"] == []
    assert document["digest"] == package.digest
    assert document["version"] == "3" and document["window"]["cells"] == 120
    assert document["window"]["since"] == "2026-11-01T00:00:00+00:00"
    whose = [document["window"][name] for name in ("patients", "effective_patients", "repeated", "caution")]
    assert whose == [4, 4.0, 7, None]
    assert document["drifted"] is False
    page = Path(document["report"])
    assert page.name == "drift-20261124T093000.000000Z-v3.html" and page.stat().st_size > 1_000_000
    assert "first principal axis" in page.read_text()  # of the version: every report has the same
    assert json.loads(page.with_suffix(".json").read_text()) == document


def test_evidently_gives_the_scores_that_calibration_works_with(report, reference, window):
    ours = scores_of(reference, window)
    for column in report.document["columns"]:
        assert column["score"] == pytest.approx(ours[column["name"]], rel=1e-9), column["name"]


def test_statistics_are_held_against_patients_trained_on_too_and_answers_are_not(cohort, window, tmp_path):
    held_out, learned = cohort[cohort["group"] < "P005"], cohort[cohort["group"].between("P005", "P011")]
    package = unsealed_package(tmp_path / "package", held_out, unanswered(learned))
    current = as_predictions(window, digest=package.digest)
    found = compare(package, current, version="3", folder=tmp_path).document
    both, answered = scores_of(pd.concat([held_out, learned]), window), scores_of(held_out, window)
    for column in found["columns"]:
        name = column["name"]
        expected = answered if name in ANSWERED else both
        assert column["score"] == pytest.approx(expected[name], rel=1e-9), name
    assert both["focus"] != pytest.approx(answered["focus"], rel=1e-3)
    assert both["probability"] != pytest.approx(answered["probability"], rel=1e-3)


def test_the_thresholds_are_the_packages(report, package):
    limits = thresholds_for(package.drift(), 120)
    assert {column["name"]: column["threshold"] for column in report.document["columns"]} == limits


def test_a_stain_shift_drifts(package, window, reference, tmp_path):
    stained = window.assign(od_blue=window["od_blue"] + 6 * reference["od_blue"].std())
    found = compare(package, as_predictions(stained, digest=package.digest), version="3", folder=tmp_path).document
    assert found["drifted"] is True
    assert [column["name"] for column in found["columns"] if column["drifted"]] == ["od_blue"]


def test_of_a_large_window_some_cells_are_compared_evenly_spaced(package, reference, window, tmp_path):
    """All of a day's cells would need a kernel of tens of gigabytes."""
    many = pd.concat([window] * 21, ignore_index=True)
    found = compare(package, as_predictions(many, digest=package.digest), version="3", folder=tmp_path).document
    assert (found["window"]["cells"], found["compared"]) == (2520, MOST_COMPARED)
    chosen = many.iloc[np.linspace(0, 2519, MOST_COMPARED).round().astype(int)]
    assert (chosen.index[0], chosen.index[-1]) == (0, 2519) and chosen.index.is_unique
    ours = scores_of(reference, chosen)
    for column in found["columns"]:
        # Beyond 1,000 cells Evidently takes the width of the embeddings' kernel from a sample of them.
        close = 1e-2 if column["name"] == EMBEDDING_SCORE else 1e-9
        assert column["score"] == pytest.approx(ours[column["name"]], rel=close), column["name"]


def test_too_few_get_no_verdict(package, window, tmp_path):
    current = as_predictions(window.iloc[:29], digest=package.digest)
    with pytest.raises(TooFewPredictions, match=r"at least 30 predictions of version 3 .* but got 29.*--since"):
        compare(package, current, version="3", folder=tmp_path, minimum=1, on_request=True)
    # Of the monitor's window nobody chose the span: the page says how far it is.
    with pytest.raises(TooFewPredictions, match=r"^29 of the 30 cells that a verdict takes are here\.$"):
        compare(package, current, version="3", folder=tmp_path, minimum=1)
    with pytest.raises(TooFewPredictions, match="of the 500 cells"):
        compare(package, as_predictions(window, digest=package.digest), version="3", folder=tmp_path, minimum=500)
    assert list(tmp_path.iterdir()) == []


def test_predictions_of_another_model_are_refused(package, window, tmp_path):
    with pytest.raises(DataError, match="some of another"):
        compare(package, as_predictions(window, digest="another"), version="3", folder=tmp_path)


def test_values_that_are_not_finite_are_refused(package, window, tmp_path):
    current = as_predictions(window.assign(focus=np.inf), digest=package.digest)
    with pytest.raises(DataError, match="finite values for drift but focus"):
        compare(package, current, version="3", folder=tmp_path)


def test_a_package_older_than_a_statistic_is_compared_without_it(cohort, reference, window, tmp_path):
    """Its predictions may lie in a database in which older rows have no value of it."""
    older = unsealed_package(tmp_path / "older", reference.drop(columns="chroma_noise"))
    current = as_predictions(window, digest=older.digest)
    current.loc[current.index[:5], "chroma_noise"] = np.nan
    found = compare(older, current, version="1", folder=tmp_path).document
    names = {column["name"] for column in found["columns"]}
    assert found["drifted"] is False and "chroma_noise" not in names and "focus" in names


def test_after_a_clock_that_ran_ahead_a_report_is_still_the_last_and_keeps_its_page(package, window, tmp_path):
    """Sixty reports of a day ahead, then one at the right time."""
    moment = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
    for number in range(60):
        ahead = moment + timedelta(days=1, minutes=number)
        for ending in ("html", "json"):
            (tmp_path / f"drift-{ahead:%Y%m%dT%H%M%S.%fZ}-v3.{ending}").write_text("")
    (tmp_path / "drift-of-somebody.html").write_text("")
    current = as_predictions(window, digest=package.digest)
    page = Path(compare(package, current, version="3", folder=tmp_path, timestamp=moment).document["report"])
    prune(tmp_path)
    assert page.name == "drift-20261125T102900.000001Z-v3.html" and page.exists()
    assert names_of(tmp_path, ".json")[-1] == page.with_suffix(".json").name
