"""The model card says what the run's own facts give, and no more."""

import re

import pytest

from blastwatch import DISCLAIMER
from blastwatch.manifest import SIDES
from tests.unit.training.test_export import facts
from training.card import model_card
from training.checklists import CLAIM, TRIPOD, UNKNOWN


def evidence(*, auroc: float = 0.9, leaky: bool = False, patients: int = 5) -> dict:
    figure = {"value": 0.7, "low": 0.6, "high": 0.8}
    covered = {
        "calibration_patients": 4, "aimed_error": 0.2, "guaranteed_error": 0.4, "coverage_by_patient": figure,
        "inside": True, "expected": {"low": 0.5, "high": 1.0},
    }  # fmt: skip
    sides = {side: {label: {"cells": 40, "groups": patients} for label in ("all", "hem")} for side in SIDES}
    return {
        "metrics": {
            "cells": {"auroc": {"value": auroc, "low": 0.5, "high": 0.99}, "referred": figure},
            "patients": {"worst_quarter_accuracy": figure},
            "size_baseline": {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}},
            "leaky": leaky,
            "counts": {"cells": 80, "groups": 8},
            "calibration": {"on": "calibration", "ece_before": 0.1, "ece_after": 0.05, "temperature": 1.25},
            "operating": {"threshold": 0.4, "cells": {"sensitivity": figure}},
            "size_matched": {"network": figure},
            "cameras": {
                "cells": 40,
                "patients": 8,
                "strength": 1.0,
                "plain": {"mean_accuracy": figure, "auroc": figure},
                "rows": [
                    {
                        "name": "white_balance",
                        "figures": {"mean_accuracy": figure},
                        "change": {"value": -0.6, "low": -0.7, "high": -0.5},
                    },
                    {"name": "noise", "figures": {}, "change": None},
                ],
            },
            "comparisons": [
                {"baseline": "sizes", "metric": "auroc", "difference": 0.1, "low": -0.02, "high": 0.2, "p_holm": 0.07}
            ],
            "conformal": {"error": 0.1, "classes": {"hem": covered, "all": covered | {"inside": False}}},
        },
        "split": {
            "by": "group", "leaky": leaky, "parted_groups": ["1"], "crossing": 3, "sides": sides, "groups": {
                "train": ["1", "2", "3"], "validation": ["4", "5", "6"], "calibration": ["7", "8", "9", "10"],
                "test": ["11"]},
        },
        "audit": {"findings": [{"kind": "near"}, {"kind": "exact"}, {"kind": "near"}], "groups": [["1", "2"], ["3"]]},
        "data": {"images": 320, "subjects": 33, "sources": {"fold 1": 120, "fold 0": 200}},
        "params": {
            "train": {"balance": "subject", "weights": "scratch"}, "evaluate": {"resamples": 700},
            "package": {"ood_rate": 0.02},
        },
    }  # fmt: skip


DRIFT = {"cells": 160, "groups": 16, "answered_groups": 8, "false_alarm_rate": 0.01, "enough_groups": True}


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"source": "scratch"}, "trained from scratch"),
        (
            {"source": "imagenet", "name": "a.pth", "digest": "5793" * 16},
            r"ImageNet, `a\.pth` \(SHA-256 `579357935793`\)",
        ),
        (
            {"source": "pretrained", "name": "w.safetensors", "digest": "0" * 64, "subjects": ["1", "2"]},
            "cells of 2 subjects",
        ),
        ({"source": "unknown", "name": "w.pth", "digest": "0" * 64}, "What these have seen is not known"),
    ],
)
def test_card_says_what_the_weights_had_seen_before(start, said):
    known = evidence()
    known["data"]["initial_weights"] = start
    assert re.search(said, model_card(facts(), known, DRIFT))


def test_card_warns_of_drawn_cells_before_any_figure():
    card = model_card(facts(synthetic=True), evidence(), DRIFT)
    assert DISCLAIMER in card
    assert "**Synthetic.**" in card
    assert card.index("**Synthetic.**") < card.index("## Results")
    assert "**Synthetic.**" not in model_card(facts(), evidence(), DRIFT)


def test_card_says_what_another_camera_does():
    card = model_card(facts(), evidence(), DRIFT)
    assert "40 of the test cells, evenly of 8 patients" in card
    assert "| as they are | 0.700 |  | 0.700 |" in card
    assert "| white balance | 0.700 | -0.600 (-0.700 to -0.500) | unknown |" in card
    assert "| noise | unknown | unknown | unknown |" in card
    known = evidence()
    for metrics in (
        {**known["metrics"], "cameras": None},
        {k: v for k, v in known["metrics"].items() if k != "cameras"},
    ):
        assert "It was not measured" in model_card(facts(), known | {"metrics": metrics}, DRIFT)


def test_card_says_which_cameras_the_last_layer_was_kept_from_reading():
    known = evidence()
    kept = "kept from reading these same simulations (strengths 0.5 and 1)"
    assert "kept from reading" not in model_card(facts(), known, DRIFT)
    known["params"]["train"] |= {"fit": "logistic", "nuisances": 60}
    assert f"{kept}, so this is no test of an unseen camera." in model_card(facts(), known, DRIFT)
    known["metrics"]["cameras"]["rows"] += [
        {"name": "stain", "simulated": True, "figures": {}, "change": None},
        {"name": "more contrast", "simulated": False, "figures": {}, "change": None},
    ]
    card = model_card(facts(), known, DRIFT)
    assert f"{kept}, but for those that were not simulated in training (more contrast): these alone are a" in card
    assert "no test of an unseen camera" not in card


@pytest.mark.parametrize(("on", "said"), [
    ("calibration", "from those of 7 validation and calibration patients than all but a share of 0.125 of a new"),
    ("out-of-fold", "from those of 10 validation, calibration and (on axes fitted to the others) training patients "
     "than all but a share of 0.091 of a new"),
])  # fmt: skip
def test_card_states_the_rate_of_strangers_that_its_patients_can_give(on, said):
    """Seven patients can show a share of 1 / 8, whatever was asked for; enough of them what was asked for."""
    known = evidence()
    known["metrics"]["calibration"]["on"] = on
    assert said in model_card(facts(), known, DRIFT)
    known["split"]["groups"]["calibration"] = [str(number) for number in range(200)]  # of which 4 to 6 validate too
    assert "a share of 0.020 of a new patient's cells" in model_card(facts(), known, DRIFT)
    assert f"{200} validation" in model_card(facts(), known, DRIFT)


def test_card_does_not_call_patients_unseen_where_the_initial_weights_may_have_seen_them():
    known = evidence()
    known["data"]["initial_weights"] = {"source": "unknown", "name": "w.pth", "digest": "0" * 64}
    card = model_card(facts(), known, DRIFT)
    assert "nothing before had read" not in card
    assert "of 8 patients, of whom it is not known whether the initial weights had seen them." in card
    assert card.index("**Initial weights of unknown origin.**") < card.index("## Intended use")
    leaky = evidence(leaky=True)
    leaky["data"] = known["data"]
    assert "some of whom were trained on" in model_card(facts(), leaky, DRIFT)
    known["data"]["initial_weights"]["source"] = "imagenet"
    card = model_card(facts(), known, DRIFT)
    assert "nothing before had read" in card and "unknown origin" not in card


def test_card_says_where_too_few_patients_were_answered_for_the_thresholds():
    said = "Too few were answered to rely on that rate"
    assert said in model_card(facts(), evidence(), DRIFT | {"enough_groups": False})
    assert said not in model_card(facts(), evidence(), DRIFT)


def test_card_does_not_count_what_an_earlier_audit_wrote_of_a_split_as_pairs_of_images():
    known = evidence()
    told = "3 pairs of images (1 exact, 2 near)"
    assert told in model_card(facts(), known, DRIFT)
    known["audit"]["findings"] += [{"kind": "subject"}] * 55
    assert told in model_card(facts(), known, DRIFT)


def test_card_warns_of_a_split_that_leaks():
    assert "**Leaks.**" in model_card(facts(), evidence(leaky=True), DRIFT)


@pytest.mark.parametrize(("patients", "warned"), [(1, True), (4, True), (5, False)])
def test_card_warns_where_too_few_patients_were_tested_for_an_interval(patients, warned):
    card = model_card(facts(), evidence(patients=patients), DRIFT)
    assert ("**Too few test patients**" in card) is warned
    assert ("The intervals below say little of what another patient would show." in card) is warned


def test_card_says_on_whose_cells_engines_were_compared():
    told = "Compared on 9 cells of test patients."
    assert f"## Engines\n\n{told} Speed in batches" in model_card(facts(), evidence(), DRIFT, compared_on=told)


SIZE_NUMBERS = "a logistic regression on three size numbers (AUROC"


@pytest.mark.parametrize(("low", "high", "said"), [
    (0.01, 0.2, f" The network beats {SIZE_NUMBERS} +0.100 (+0.010 to +0.200), 95 % interval by patient)."),
    (-0.02, 0.2, f"**The network cannot be told apart from {SIZE_NUMBERS} +0.100 (-0.020 to +0.200), 95 % interval by "
     "patient): nothing shows that it sees more than they do.**"),
    (-0.2, -0.01, f"**The network does not beat {SIZE_NUMBERS} +0.100 (-0.200 to -0.010), 95 % interval by patient): "
     "do not use it.**"),
])  # fmt: skip
def test_card_says_plainly_whether_size_alone_does_as_well(low, high, said):
    """Of 0.9 and 0.8 alone nobody can tell: the interval of their difference says it."""
    known = evidence(auroc=0.9)
    [row] = known["metrics"]["comparisons"]
    row |= {"low": low, "high": high}
    card = model_card(facts(), known, DRIFT)
    assert said in card and card.count("three size numbers (AUROC") == 1
    few = evidence(patients=4, auroc=0.9)
    few["metrics"]["comparisons"][0] |= {"low": low, "high": high}
    assert ("so few test patients that is no evidence.**" in model_card(facts(), few, DRIFT)) is (low > 0)
    del known["metrics"]["comparisons"][0]
    assert "beats a logistic regression on three size numbers is not known.**" in model_card(facts(), known, DRIFT)


@pytest.mark.parametrize(
    "said",
    [
        "| auroc | 0.900 | 0.500 to 0.990 |", "| patients: worst quarter accuracy | 0.700 |", "| referred | 0.700 |",
        "| openvino-int8 | 500 | 1.20% | unknown | 0.200 | unknown |",
        "| test | 40 | 5 | 40 | 5 |", "from fold 0 (200), fold 1 (120)",
        "160 cells of 16 patients, and answers to 8 of them",
        "at the chosen threshold 0.400: sensitivity | 0.700", "cell area | 0.700",
        "| sizes: auroc | +0.100 | -0.020 to +0.200 | 0.0700 |", "as it does not",
        "| `hem` | 4 | 0.800 | 0.600 | 0.700 (0.600 to 0.800) | 0.500 to 1.000, as it does |",
        "700 draws of whole patients", "what weighs the same in training is the subject", "weights scratch",
        "3 pairs of images (1 exact, 2 near) that show one cell, and joined subjects into patients (1 of several",
        "An unknown number of images were refused", "no patient on two sides",
        "Run `run-1`, code `c0ffee`", "`ffffffffffff`", "Temperature 1.250", "0.800 upwards, `hem` up to 0.200",
    ],
)  # fmt: skip
def test_card_states(said):
    assert said in model_card(facts(), evidence(), DRIFT)


def test_the_card_says_that_more_coverage_than_expected_is_no_fault():
    known = evidence()
    covered = known["metrics"]["conformal"]["classes"]["hem"]
    covered["expected"] = {"low": 0.5, "high": 0.65}  # 0.700 was found
    assert "0.700 (0.600 to 0.800) | 0.500 or more, as it does |" in model_card(facts(), known, DRIFT)
    assert "more coverage than that is no fault" in model_card(facts(), known, DRIFT)


@pytest.mark.parametrize(("found", "said"), [
    ({"temperature": 0.05}, "With it probabilities are too sure, many of them 0 or 1.**"),
    ({"temperature": 20.0}, "With it all probabilities lie near one half.**"),
    ({"temperature": 0.4, "likeliest": 0.05}, "0.400 was taken, which rests on what is usual for networks more than"),
    ({"temperature": 0.05000019, "likeliest": 0.0500002}, "With it probabilities are too sure, many of them 0 or 1.**"),
    ({"temperature": 13.7, "likeliest": 19.9999}, "hardly apart. 13.700 was taken.**"),
])  # fmt: skip
def test_the_card_says_where_no_patient_bounds_the_temperature(found, said):
    border = "**The calibration patients do not bound the temperature"
    known = evidence()
    assert border not in model_card(facts(), known, DRIFT)
    known["metrics"]["calibration"] |= found
    card = model_card(facts(temperature=found["temperature"]), known, DRIFT)
    assert card.count(border) == 1 and said in card


def test_the_card_says_what_is_an_ensemble():
    assert "No ensemble." in model_card(facts(), evidence(), DRIFT)
    known = evidence()
    known["params"]["train"] = {"architecture": "resnet50", "fit": "gradient", "average": 0.99}
    assert "No ensemble of networks; the weights are a moving average" in model_card(facts(), known, DRIFT)
    known["params"]["train"]["fit"] = "logistic"  # which averages nothing
    assert "No ensemble." in model_card(facts(), known, DRIFT)
    known["params"]["train"] |= {"architecture": "efficientnet_lite0_lite2_stages", "fusion": "scores"}
    card = model_card(facts(), known, DRIFT)
    assert "An ensemble of efficientnet_lite0 and efficientnet_lite2 in one graph" in card and "No ensemble" not in card


def test_the_card_names_the_knobs_that_a_training_read_alone():
    known = evidence()
    known["params"]["train"] = {"fit": "gradient", "epochs": 30, "nuisances": 60}
    assert "of the training: epochs 30, fit gradient, nuisances 60." in model_card(facts(), known, DRIFT)
    known["params"]["train"]["fit"] = "logistic"  # which has no epochs
    assert "of the training: fit logistic, nuisances 60." in model_card(facts(), known, DRIFT)


@pytest.mark.parametrize(("items", "count"), [(TRIPOD, 27), (CLAIM, 44)])
def test_every_item_of_the_guidelines_is_in_the_card_and_points_at_what_is_there(items, count):
    numbers = [item.number for item in items]
    assert len(set(numbers)) == len(numbers)
    assert {int(number.rstrip("abcdefg")) for number in numbers} == set(range(1, count + 1))
    card = model_card(facts(), evidence(), DRIFT)
    headings = {line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")}
    elsewhere = {"report.html", "title of this card", "evidence/params.json", "this package"}
    for item in items:
        assert f"| {item.number} | {item.asks} | {item.answer or UNKNOWN} |" in card
        for part in filter(None, item.answer.split("; ")):
            place = part.split(":")[0].split(",")[0]
            known = place in headings or place in elsewhere or UNKNOWN in part or "this package" in part
            assert known, part


def test_what_only_the_laboratory_knows_is_said_to_be_unknown():
    card = model_card(facts(), evidence(), DRIFT)
    for number, asks in (("17", "ethical approval and consent"), ("18a", "funding"), ("13", "image acquisition")):
        assert f"| {number} | {asks} | not known to the software: to be filled by the laboratory |" in card


def test_card_of_a_leaky_split_does_not_say_that_patients_are_apart():
    assert "patients that are kept apart" in model_card(facts(), evidence(), DRIFT)
    leaky = model_card(facts(), evidence(leaky=True), DRIFT)
    assert "sides that share patients" in leaky
    assert "some of whom were trained on" in leaky and "nothing before had read" not in leaky
