"""`report.html`: the evaluation of one model in one file that needs no network, for a person who judges it."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blastwatch import DISCLAIMER
from blastwatch.baseline import FEWEST_TESTED
from blastwatch.decision import CLASS_NAMES
from blastwatch.manifest import SIDES
from blastwatch.rounding import fixed, with_interval
from training.calibration import CALIBRATED_ON, border_told
from training.card import seen_before
from training.card_cameras import change_told, kept_from
from training.conformal import expected_told
from training.initial_weights import UNKNOWN, recorded
from training.pages import render
from training.plots import numbered
from training.significance import COMPARED
from training.tracking import read_knobs

PARTS = {"source": "source", "cell_area": "cell area, px²", "stain": "mean optical density"}
NAMES = {
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "referred": "referred to a person",
    "accuracy_on_decided": "accuracy on decided cells",
    "mean_accuracy": "mean accuracy",
    "worst_quarter_accuracy": "mean accuracy of the worst quarter",
    "auroc_of_mean_probability": "AUROC of the mean probability",
    "specificity_over_healthy": "specificity, mean over healthy patients",
    "sensitivity_over_ill": "sensitivity, mean over ill patients",
    "majority_accuracy": "patients right by the majority of their cells",
    "mean_probability_accuracy": "patients right by the mean probability",
}
"""What figures are called on the page, where the name alone does not say it."""


def write_report(
    metrics: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, Path], path: Path
) -> Path:
    """Write the page.

    Args:
        metrics: what `training.evaluation.run_evaluation` returns.
        facts: `training`, what train.json says; `split`, what split.json says; `data`, what import.json says.
        pictures: PNG files by the names `PICTURES` of `training.plots`; one that is missing is an error.
    """
    tested = {name: int(facts["split"]["sides"]["test"][name]["groups"]) for name in CLASS_NAMES}
    start, train = recorded(facts["training"]), facts["training"]["parameters"]
    unknown = start["source"] == UNKNOWN
    text = render(
        "report.html",
        metrics=metrics,
        facts=facts,
        pictures={name: _data_uri(picture) for name, picture in pictures.items()},
        sides=SIDES,
        classes=CLASS_NAMES,
        calibrated_on=CALIBRATED_ON[metrics["calibration"]["on"]],
        border=border_told(metrics["calibration"]),
        expected=expected_told,
        tested=tested,
        too_few=min(tested.values()) < FEWEST_TESTED,
        fewest=FEWEST_TESTED,
        unknown_start=start["name"] if unknown else "",
        seen_before=seen_before(leaky=metrics["leaky"], unknown_start=unknown),
        kept_from=kept_from(metrics["cameras"], train) if metrics["cameras"] else "",
        knobs=read_knobs(train),
        baselines=list(metrics["baselines"]),
        comparisons=_by_metric(metrics),
        parts=PARTS,
        called=lambda name: NAMES.get(name, name.replace("_", " ")),
        interval=_interval,
        change=lambda row: change_told(row, undefined="–"),
        number=numbered(row["subject"] for row in metrics["per_patient"]),
        p_value=_p_value,
        edge=lambda value: f"{value:,.0f}" if value >= 100 else fixed(value),
        disclaimer=DISCLAIMER,
    )
    path.write_text(text, encoding="utf-8")
    return path


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _by_metric(metrics: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Comparisons of each metric together, as Holm's correction takes them."""
    rows = metrics["comparisons"]
    return [(name, [row for row in rows if row["metric"] == name]) for name in COMPARED]


def _interval(row: Mapping[str, float] | None) -> str:
    """`0.812 (0.701 to 0.893)`, or a dash where the figure is not defined."""
    return "–" if row is None else with_interval(row)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else fixed(value)
