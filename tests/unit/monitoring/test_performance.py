"""Estimated and realised performance against enumeration, scikit-learn and scipy, and what the check finds."""

import itertools
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from scipy import stats
from sklearn import metrics

from monitoring.metrics import MonitorMetrics
from monitoring.performance import (
    CELL,
    CELLS,
    CONFIRMED,
    FEWEST_CELLS,
    FEWEST_PATIENTS,
    KEYS,
    OPEN,
    PATIENT,
    PATIENTS,
    UNCHECKED,
    UNTRUSTED,
    Limits,
    Units,
    performance,
    reference_performance,
)
from monitoring.performance_report import PATIENTS_NOW, _latest, report, windows
from monitoring.store import open_store
from tests.answered import accuracy, answers
from tests.cohorts import START, as_records, draw_cohort, unsealed_package

LIMITS = Limits(tolerance=0.02, margin=0.05)
KNOWN = {
    kind: {"accuracy": {"value": accuracy(2.0), "low": 0.9, "high": 0.97}} for kind in ("estimated", "realised")
}  # fmt: skip


def drawn(seed=0, **options):
    return answers(np.random.default_rng(seed), **options)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=7))
def test_the_estimate_is_the_mean_over_every_truth_that_there_could_be(blast):
    """Every assignment of labels, weighed by its probability; the figure of each by plain counting."""
    blast = np.array(blast)
    said = blast >= 0.5
    weights, right, hits, blasts = [], [], [], []
    for bits in itertools.product((0, 1), repeat=len(blast)):
        truth = np.array(bits, bool)
        weights.append(np.where(truth, blast, 1 - blast).prod())
        right.append((truth == said).mean())
        hits.append((truth & said).sum())
        blasts.append(truth.sum())
    table = pd.DataFrame(
        {"id": [str(n) for n in range(len(blast))], "patient": "", "probability": blast,
         "label": np.where(said, "all", "hem"), "truth": None}
    )  # fmt: skip
    found = performance(table, LIMITS)["estimated"]
    assert found["accuracy"]["value"] == pytest.approx(np.dot(weights, right))
    assert found["sensitivity"]["value"] == pytest.approx(np.dot(weights, hits) / np.dot(weights, blasts))


def test_the_realised_figures_are_those_of_scikit_learn():
    cells = drawn(labelled=0.5)
    known = cells.dropna(subset=["truth"])
    found = performance(cells, LIMITS)
    assert found["labelled"] == len(known) and found["cells"] == len(cells)
    values = {name: interval["value"] for name, interval in found["realised"].items()}
    assert values == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(known["truth"], known["label"]),
            "sensitivity": metrics.recall_score(known["truth"], known["label"], pos_label="all"),
            "specificity": metrics.recall_score(known["truth"], known["label"], pos_label="hem"),
        }
    )


def test_intervals_by_cell_are_those_of_scipy():
    cells = drawn(keyed=False, patients=10)
    found = performance(cells, LIMITS)
    assert found["unit"] == CELL and "too narrow" in found["assumes"] and found["patients"] is None
    ill = cells[cells["truth"] == "all"]
    for figure, part in (("accuracy", cells), ("sensitivity", ill)):
        hits = int((part["truth"] == part["label"]).sum())
        wanted = stats.binomtest(hits, len(part)).proportion_ci(0.95, "exact")
        interval = found["realised"][figure]
        assert (interval["low"], interval["high"]) == pytest.approx((wanted.low, wanted.high))
    sure = np.maximum(cells["probability"], 1 - cells["probability"])
    gaps = (cells["truth"] == cells["label"]) - sure
    wanted = stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
    difference = found["check"]["difference"]
    assert (difference["low"], difference["high"]) == pytest.approx(wanted)


def test_intervals_by_patient_hold_and_those_by_cell_do_not():
    held = {PATIENT: 0, CELL: 0}
    for seed in range(100):
        cells = drawn(seed, patients=30, cells=20, distance=1.5)
        right = (cells["truth"] == cells["label"]).to_numpy(np.float64)
        for unit, keys in ((PATIENT, cells["patient"]), (CELL, cells["id"])):
            interval = Units(keys, unit).ratio(right, np.ones(len(right)))
            held[unit] += interval["low"] <= accuracy(1.5) <= interval["high"]
    assert held[PATIENT] >= 88 and held[CELL] < 75


def test_with_many_patients_the_interval_is_the_one_of_the_bootstrap(monkeypatch):
    cells = drawn(patients=300, cells=6)
    at_once = performance(cells, LIMITS)
    monkeypatch.setattr("monitoring.performance.MANY_PATIENTS", 1000)
    drawn_ones = performance(cells, LIMITS)
    for kind in ("estimated", "realised"):
        for figure, interval in at_once[kind].items():
            assert interval == pytest.approx(drawn_ones[kind][figure], abs=0.005) and interval["low"] < interval["high"]


def test_where_no_cell_is_wrong_patients_are_counted_and_the_interval_has_a_width():
    cells = drawn(distance=9, patients=12)
    interval = performance(cells, LIMITS)["realised"]["accuracy"]
    assert interval == pytest.approx({"value": 1, "low": stats.binomtest(12, 12).proportion_ci().low, "high": 1})
    interval = performance(drawn(distance=9, patients=201, cells=2), LIMITS)["realised"]["accuracy"]
    assert interval == pytest.approx({"value": 1, "low": stats.binomtest(201, 201).proportion_ci().low, "high": 1})


@pytest.mark.parametrize("distance", [2.0, 1.2, 0.8])
def test_a_harder_mix_is_seen_without_a_label_and_the_estimate_stands(distance):
    cells = drawn(distance=distance, patients=400)
    found = performance(cells, LIMITS, known=KNOWN)
    estimated, realised = found["estimated"]["accuracy"]["value"], found["realised"]["accuracy"]["value"]
    assert abs(estimated - realised) < 0.02 and abs(estimated - accuracy(distance)) < 0.02
    assert found["check"]["state"] in (OPEN, CONFIRMED)
    assert found["fell"]["estimated"] == (distance < 2)


def test_a_version_that_is_too_sure_is_untrusted_once_labels_come():
    cells = drawn(distance=1.0, sure=3.0, patients=100)
    before = performance(cells.assign(truth=None), LIMITS, known=KNOWN)
    assert before["check"] == {"state": UNCHECKED, "difference": None, "tolerance": 0.02, "lacks": CELLS}
    assert before["fell"] == {"estimated": False, "realised": None}  # the blind spot of the estimate
    after = performance(cells, LIMITS, known=KNOWN)
    assert after["check"]["state"] == UNTRUSTED and after["check"]["difference"]["high"] < -0.02
    assert after["fell"]["realised"]


def test_labels_for_the_most_uncertain_cells_are_no_fall():
    cells = drawn(patients=100)
    sure = (cells["probability"] - 0.5).abs()
    chosen = cells.assign(truth=cells["truth"].where(sure < sure.quantile(0.1)))
    found = performance(chosen, LIMITS, known=KNOWN)
    assert found["realised"]["accuracy"]["high"] < KNOWN["realised"]["accuracy"]["value"] - LIMITS.margin
    assert found["fell"]["realised"] is False and found["check"]["state"] != UNTRUSTED


def test_enough_labels_confirm_and_few_leave_it_open():
    cells = drawn(patients=800, cells=4, distance=3.0)
    assert performance(cells, LIMITS)["check"]["state"] == CONFIRMED
    wrong = cells.assign(truth=np.where(cells["label"] == "all", "hem", "all"))
    few = wrong[wrong["patient"].isin(wrong["patient"].unique()[: FEWEST_PATIENTS - 1])]
    assert len(few) > FEWEST_CELLS and performance(few, LIMITS, known=KNOWN)["check"]["state"] == OPEN
    assert performance(few, LIMITS)["check"]["lacks"] == PATIENTS
    assert performance(few, LIMITS, known=KNOWN)["fell"] == {"estimated": None, "realised": None}
    enough = wrong[wrong["patient"].isin(wrong["patient"].unique()[:FEWEST_PATIENTS])]
    assert performance(enough, LIMITS)["check"]["state"] == UNTRUSTED
    assert performance(wrong, LIMITS)["check"]["state"] == UNTRUSTED


def test_cells_without_a_patient_key_give_figures_and_no_verdict():
    wrong = drawn(distance=1.0, sure=3.0, patients=100)
    keyed, keyless = (performance(cells, LIMITS, known=KNOWN) for cells in (wrong, wrong.assign(patient="")))
    assert (keyed["unit"], keyed["check"]["state"], keyed["fell"]["realised"]) == (PATIENT, UNTRUSTED, True)
    assert (keyless["unit"], keyless["check"]["state"]) == (CELL, OPEN)
    assert (keyed["check"]["lacks"], keyless["check"]["lacks"]) == (None, KEYS)
    assert performance(wrong.assign(patient="").head(FEWEST_CELLS - 1), LIMITS)["check"]["lacks"] == CELLS
    assert keyless["fell"] == {"estimated": None, "realised": None} and "no verdict" in keyless["assumes"]
    for figure, interval in keyed["realised"].items():
        assert keyless["realised"][figure]["value"] == interval["value"]
    assert keyless["check"]["difference"]["high"] < -LIMITS.tolerance


@pytest.mark.parametrize("patients", [3, 5, FEWEST_PATIENTS])
def test_an_exact_version_is_seldom_refuted_however_few_its_patients_and_with_keys_or_without(patients):
    base = {kind: {"accuracy": {"value": accuracy(1.2)}} for kind in ("estimated", "realised")}
    random, refuted, fell = np.random.default_rng(1), 0, 0
    for _ in range(100):
        cells = answers(random, patients=patients, cells=500 // patients, distance=1.2)
        for window in (cells, cells.assign(patient="")):
            found = performance(window, LIMITS, known=base)
            refuted += found["check"]["state"] == UNTRUSTED
            fell += any(found["fell"].values())
    assert refuted <= 8 and fell == 0


def test_the_unit_is_said_and_what_is_left_out_is_counted():
    cells = drawn(patients=10, cells=10)
    cells.loc[:39, "patient"] = ""
    found = performance(cells, LIMITS)
    assert (found["unit"], found["cells"], found["cells_left_out"]) == (PATIENT, 60, 40)
    cells.loc[:59, "patient"] = ""
    found = performance(cells, LIMITS)
    assert (found["unit"], found["cells"], found["cells_left_out"]) == (CELL, 100, 0)


def test_no_cells_and_one_class():
    nothing = performance(drawn().iloc[:0], LIMITS, known=KNOWN)
    assert nothing["cells"] == 0 and nothing["realised"] == {} and nothing["estimated"] == {}
    healthy = drawn()[lambda rows: rows["truth"] == "hem"]
    assert set(performance(healthy, LIMITS)["realised"]) == {"accuracy", "specificity"}


def test_windows_begin_at_midnight_and_share_nothing():
    cells = drawn(patients=100, cells=40)  # 4,000 minutes
    found = windows(cells, LIMITS, KNOWN, days=1)
    assert [window["since"][:10] for window in found] == ["2026-11-02", "2026-11-03", "2026-11-04"]
    assert [window["cells"] for window in found] == [1440, 1440, 1120]
    assert found[0]["until"] == found[1]["since"]
    assert not any(window["cut"] for window in found)
    assert windows(cells.iloc[:0], LIMITS, KNOWN, days=7) == []


def test_labels_of_cells_that_later_ones_displaced_reach_their_windows():
    cells = drawn(patients=100, cells=40, labelled=0.5)
    cells.loc[cells["time"] >= cells["time"].iloc[0] + pd.Timedelta(days=1.5), "truth"] = None
    whole = windows(cells, LIMITS, KNOWN, days=1)
    latest, labelled = cells.tail(2000), cells.dropna(subset=["truth"])
    found = windows(latest, LIMITS, KNOWN, days=1, labelled=labelled)
    assert [window["since"] for window in found] == [window["since"] for window in whole]
    assert [window["cut"] for window in found] == [True, True, False]
    assert [window["cells"] for window in found] == [0, 880, 1120]
    for name in ("labelled", "expected", "realised", "check"):
        assert [window[name] for window in found] == [window[name] for window in whole], name
    assert found[0]["estimated"] == {} and found[0]["fell"] == {"estimated": None, "realised": False}
    assert found[1]["estimated"] == performance(latest.head(880), LIMITS)["estimated"]
    assert found[2] == whole[2]


def test_a_report_reads_labels_beyond_the_latest_predictions(settings, tmp_path, monkeypatch):
    cohort = draw_cohort(np.random.default_rng(2), patients=12, cells=40)
    package = unsealed_package(tmp_path / "package", cohort)
    records = as_records(cohort, digest=package.digest)  # 480 cells, one a second
    settings = replace(settings, performance_days=1, drift_window=50)
    monkeypatch.setattr("monitoring.performance_report.MOST_CELLS", 300)
    with open_store(settings.predictions_url) as store:
        store.add([replace(one, time=START + timedelta(minutes=10 * n)) for n, one in enumerate(records)])
        store.add_labels([(one.id, "all", START) for one in records[:150:2]])
        found = report(store, package, version="1", settings=settings)
        every = report(store, package, version="1", settings=settings, since=START + timedelta(days=2))
    told = [(window["cut"], window["cells"], window["labelled"]) for window in found["windows"]]
    assert told == [(True, 0, 72), (True, 108, 3), (False, 144, 0), (False, 48, 0)] and found["truncated"]
    span = [datetime.fromisoformat(found["now"]["labelled"][end]) for end in ("since", "until")]
    assert found["now"]["labelled"]["cells"] == 50 and span[1] == START + timedelta(minutes=10 * 148)
    assert not every["truncated"] and [window["cut"] for window in every["windows"]] == [False, False]


def test_each_image_of_a_patient_counts_once_with_its_label(settings, tmp_path):
    cohort = draw_cohort(np.random.default_rng(2), patients=12, cells=10)
    package = unsealed_package(tmp_path / "package", cohort)
    records = as_records(cohort, digest=package.digest, keyed=True)
    again = [replace(one, id=f"again {n}", time=START + timedelta(hours=1, seconds=n)) for n, one in enumerate(records)]
    with open_store(settings.predictions_url) as store:
        store.add([*records, *again[:50], replace(again[0], id="of another", patient="somebody")])
        store.add_labels([(one.id, one.label, START) for one in again[:20]])
        found = report(store, package, version="1", settings=settings)
    assert found["repeated"] == 50 and found["now"]["latest"]["cells"] == 121
    assert found["now"]["labelled"]["cells"] == 20


def test_who_was_learned_from_says_nothing_of_new_patients(settings, tmp_path):
    """Of one patient one image was seen, of one all; and one image without a patient. 100 of 120 cells are left."""
    cohort = draw_cohort(np.random.default_rng(2), patients=12, cells=10)
    package = unsealed_package(tmp_path / "package", cohort)
    records = as_records(cohort, digest=package.digest, keyed=True)
    first, second = sorted({one.patient for one in records})[:2]
    own = [one for one in records if one.patient == first]
    records = [replace(one, seen=one.patient == second or one is own[0]) for one in records]
    records += [replace(own[0], id="keyless", patient="", seen=True), replace(own[1], id="another", patient="")]
    with open_store(settings.predictions_url) as store:
        store.add(records)
        store.add_labels([(one.id, "all", START) for one in records])
        found = report(store, package, version="1", settings=settings)
    assert found["seen"] == {"cells": 21, "patients": 2} and found["repeated"] == 0
    for part in found["now"].values():  # "another" has no patient, so it counts for no interval by patient
        assert (part["cells"], part["patients"], part["cells_left_out"]) == (100, 10, 1)


def test_who_was_learned_from_is_known_by_labelled_cells_beyond_the_latest(settings, tmp_path, monkeypatch):
    cohort = draw_cohort(np.random.default_rng(2), patients=12, cells=40)
    package = unsealed_package(tmp_path / "package", cohort)
    records = as_records(cohort, digest=package.digest, keyed=True)
    monkeypatch.setattr("monitoring.performance_report.MOST_CELLS", 300)
    records[0] = replace(records[0], seen=True)
    with open_store(settings.predictions_url) as store:
        store.add(records)
        store.add([replace(one, id=f"late {n}", time=START + timedelta(days=1)) for n, one in enumerate(records[1:9])])
        store.add_labels([(one.id, "all", START) for one in records[:80]])
        found = report(store, package, version="1", settings=settings)
    assert found["truncated"] and found["seen"] == {"cells": 8, "patients": 1}
    assert found["now"]["labelled"]["cells"] == 40


@pytest.mark.parametrize("each", [60, 100, 169])
def test_a_patient_s_cells_that_come_together_leave_patients_enough_for_a_verdict(each):
    cells = in_blocks(patients=40, cells=each, distance=0.6, sure=4.0)
    assert cells.tail(500)["patient"].nunique() < FEWEST_PATIENTS
    for gone in range(0, 15 * each, 37):  # the window moves from patient to patient, and its verdict stays
        window = _latest(cells.head(len(cells) - gone), 500)
        assert window["patient"].nunique() == PATIENTS_NOW and 18 * each < len(window) <= 19 * each + 1
    found = performance(_latest(cells, 500), LIMITS, known=KNOWN)
    assert found["check"]["state"] == UNTRUSTED and None not in found["fell"].values()


def test_no_more_cells_count_than_a_verdict_takes():
    mixed = drawn(patients=40, cells=50)
    assert len(_latest(mixed, 500)) == 500 and len(_latest(mixed, 5000)) == 2000
    blocks = in_blocks(patients=15, cells=100)
    assert _latest(blocks, 500)["patient"].nunique() == 15
    few = blocks[blocks["patient"].isin(blocks["patient"].unique()[: FEWEST_PATIENTS - 1])]
    third = blocks.assign(patient=blocks["patient"].where(blocks.index % 3 == 0, ""))
    for cells in (few, blocks.assign(patient=""), third):
        assert _latest(cells, 500).equals(cells.tail(500))  # no verdict either way
    assert _latest(blocks.iloc[:0], 500).empty


def in_blocks(**options):
    """Patient after patient."""
    return drawn(1, **options).sort_values("patient", kind="stable", ignore_index=True)


def test_a_report_reaches_back_to_patients_enough_and_says_when_they_came(settings, tmp_path):
    cohort = draw_cohort(np.random.default_rng(2), patients=24, cells=20)
    package = unsealed_package(tmp_path / "package", cohort)
    records = [
        replace(one, time=START + timedelta(minutes=n), patient=f"patient {n // 20}")
        for n, one in enumerate(as_records(cohort, digest=package.digest))
    ]
    with open_store(settings.predictions_url) as store:
        store.add(records)
        store.add_labels([(one.id, one.label, START) for one in records[:300]])
        found = report(store, package, version="1", settings=replace(settings, drift_window=50))["now"]
    for name, last, patients in (("latest", 479, 20), ("labelled", 299, 15)):
        first = last + 1 - found[name]["cells"]
        assert found[name]["patients"] == patients and first % 20 == 19  # the latest cell of the first of them
        span = [datetime.fromisoformat(found[name][end]) for end in ("since", "until")]
        assert span == [records[first].time, records[last].time]
    assert found["labelled"]["labelled"] == found["labelled"]["cells"] and found["labelled"]["check"]["lacks"] is None


def test_the_gauges_say_what_was_found():
    cells = drawn(distance=1.0, sure=3.0, patients=100)
    reference = cells.rename(columns={"patient": "group"}).assign(label=cells["truth"])
    known = reference_performance(reference)
    assert known["realised"]["accuracy"]["value"] == (cells["truth"] == cells["label"]).mean()
    part = performance(cells, LIMITS, known=KNOWN)
    told = MonitorMetrics(CollectorRegistry())
    told.tell_performance({"now": {"latest": part, "labelled": part}, "reference": known})

    def value(name, **labels):
        return told.registry.get_sample_value(f"blastwatch_{name}", labels)

    accuracy_ = {"figure": "accuracy", "bound": "low"}
    assert value("performance_ratio", kind="realised", **accuracy_) == part["realised"]["accuracy"]["low"]
    assert value("performance_ratio", kind="estimated", **accuracy_) == part["estimated"]["accuracy"]["low"]
    assert value("performance_cells", kind="estimated", unit="patient") == len(cells)
    assert value("performance_fell", kind="realised") == 1 and value("performance_fell", kind="estimated") == 0
    assert value("performance_verdict", kind="realised") == value("performance_verdict", kind="estimated") == 1
    assert value("estimate_state", state="untrusted") == 1 and value("estimate_state", state="open") == 0
    assert value("estimate_difference_ratio", bound="high") < -0.02
    few = performance(cells.iloc[:9], LIMITS, known=KNOWN)  # figures there are, and no verdict on them
    told.tell_performance({"now": {"latest": few, "labelled": few}, "reference": known})
    assert value("performance_ratio", kind="realised", **accuracy_) is not None
    assert value("performance_verdict", kind="realised") == value("performance_verdict", kind="estimated") == 0
    nothing = performance(cells.iloc[:0], LIMITS, known=KNOWN)
    told.tell_performance({"now": {"latest": nothing, "labelled": nothing}, "reference": known})
    assert value("performance_ratio", kind="realised", **accuracy_) is None
    assert value("estimate_state", state="unchecked") == 1 and value("performance_fell", kind="realised") == 0
