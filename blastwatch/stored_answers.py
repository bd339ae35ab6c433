"""Are a package's stored answers those of its whole test side, and do they and its figures follow from its logits?

The floors read `evidence/metrics.json`, the comparison with the champion reads the answers themselves: a package that
kept only the answers it got right would pass by these.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from blastwatch.baseline import number_of
from blastwatch.decision import CLASS_NAMES, POSITIVE, probabilities
from blastwatch.errors import PackageError
from blastwatch.gate import Gate
from blastwatch.package import HEADLINE, PREDICTIONS, Package
from blastwatch.rounding import against

if TYPE_CHECKING:
    import pandas as pd

COUNTED = {"cells": "path", "subjects": "subject", "groups": "group"}
"""What `evidence/split.json` counts on a side by label, and the column of the answers of which it is the number."""

HALF = 0.5  # probability from which a cell is called a blast
BINS = 15  # of equal width, of the calibration error
OF_LOGITS = 1e-6  # how far a stored probability may lie from what its logits give, where float32 was kept
ROUNDING = 1e-9  # of a share: both sides take the same means, in another order

_HEALTHY, _ILL = CLASS_NAMES[1 - POSITIVE], CLASS_NAMES[POSITIVE]
FIGURES = {"sensitivity_over_ill": _ILL, "specificity_over_healthy": _HEALTHY}
"""Figures of the patients in `evidence/metrics.json`, and the label of the cells of which they are."""


def answers_gate(package: Package) -> Gate:
    """Every test cell of the split has one answer, and what is judged and told of them is what the answers give."""
    limit = "one of every test cell, and the figures of the metrics follow from them"
    try:
        tested = package.predictions()
        wrong = list(_faults(package, tested))
    except PackageError as error:
        return Gate(name="answers", passed=False, value=str(error), limit=limit)
    value = "; ".join(wrong) if wrong else f"{len(tested)} cells of {tested['group'].nunique()} patients"
    return Gate(name="answers", passed=not wrong, value=value, limit=limit)


def unusable(tested: "pd.DataFrame") -> str:
    """What is wrong with the probabilities of stored answers, "" for nothing: one that is no number compares with
    nothing, and would count as the answer `hem`."""
    blast = tested["probability"]
    fit = blast.between(0, 1) if blast.dtype.kind == "f" else blast.isna() & False
    return "" if fit.all() else f"{int((~fit).sum())} answers of {PREDICTIONS} are no probability from 0 to 1"


def _faults(package: Package, tested: "pd.DataFrame") -> Iterator[str]:
    if not len(tested):
        yield f"{PREDICTIONS} has no answer"
        return
    if said := unusable(tested):
        yield said
        return
    split = package.evidence("split")
    yield from _faults_of_number(tested, split)
    yield from _other_than_logits(package, tested)
    metrics = package.metrics()
    yield from differing(tested, metrics.get("patients"))
    yield from _otherwise_told(tested, metrics)


def _faults_of_number(tested: "pd.DataFrame", split: dict[str, Any]) -> Iterator[str]:
    sides, named = split.get("sides"), split.get("groups")
    counts = sides.get("test") if isinstance(sides, dict) else None
    if not isinstance(counts, dict) or set(counts) != set(CLASS_NAMES):
        yield "evidence/split.json does not say how many cells of each label are tested"
        return
    for label in CLASS_NAMES:
        of_label = tested[tested["label"] == label]
        for name, column in COUNTED.items():
            wanted, found = number_of(counts[label], name), int(of_label[column].nunique())
            if found != wanted:
                told = "an unknown number of" if wanted is None else f"{wanted:.0f}"
                yield f"answers of {found} {name} of label {label} where the split tests {told}"
    twice = len(tested) - int(tested["path"].nunique())
    if twice:
        yield f"{twice} cells are answered more than once"
    strange = sorted(set(tested["label"]) - set(CLASS_NAMES), key=str)
    if strange:
        yield f"answers of label {', '.join(map(str, strange))}"
    groups = named.get("test") if isinstance(named, dict) else None
    missing = sorted(set(map(str, groups if isinstance(groups, list) else [])) - set(tested["group"].astype(str)))
    if missing:
        yield f"no answer of the tested {', '.join(missing[:5])}"


def _other_than_logits(package: Package, tested: "pd.DataFrame") -> Iterator[str]:
    """Answers that are not what the stored logits give at the package's temperature."""
    logits = tested[["logit_hem", "logit_all"]].to_numpy()
    if logits.dtype.kind != "f":
        yield f"the logits of {PREDICTIONS} are no numbers"
        return
    given = probabilities(logits, package.info.temperature)[:, POSITIVE]
    other = int((~(np.abs(given - tested["probability"].to_numpy()) <= OF_LOGITS)).sum())  # NaN is other too
    if other:
        yield f"{other} answers of {PREDICTIONS} are not what their logits give at the package's temperature"


def differing(tested: "pd.DataFrame", patients: Any) -> Iterator[str]:
    """Mean over patients of the share of their cells of a label that are answered rightly, against the metrics."""
    right = (tested["probability"] >= HALF) == (tested["label"] == _ILL)
    for name, label in FIGURES.items():
        said = number_of(patients.get(name) if isinstance(patients, dict) else None, "value")
        of_label = tested["label"] == label
        found = float(right[of_label].groupby(tested.loc[of_label, "group"].astype(str)).mean().mean())
        if said is None:
            yield f"evidence/metrics.json says no {name}"
        elif not abs(found - said) <= ROUNDING:
            ours, theirs = against(found, said)
            yield f"{name} of the answers is {ours} but evidence/metrics.json says {theirs}"


def _otherwise_told(tested: "pd.DataFrame", metrics: dict[str, Any]) -> Iterator[str]:
    """Figures over cells that are told wherever the version is named, and the calibration error that a gate judges. One
    that the metrics lack is neither told nor judged by."""
    cells, calibration = metrics.get("cells"), metrics.get("calibration")
    for name, found in over_cells(tested).items():
        row = cells.get(name) if isinstance(cells, dict) else None
        said = number_of(calibration, "ece_after") if name == "ece_after" else number_of(row, "value")
        if said is not None and not abs(found - said) <= ROUNDING:
            ours, theirs = against(found, said)
            yield f"{name} of the answers is {ours} but evidence/metrics.json says {theirs}"


def over_cells(tested: "pd.DataFrame") -> dict[str, float]:
    """The figures of `HEADLINE` and the expected calibration error after scaling (Naeini et al. 2015, AAAI), each cell
    weighing the same; none that cells of one label cannot have."""
    from sklearn.metrics import f1_score, recall_score, roc_auc_score

    blast = tested["probability"].to_numpy(np.float64)
    ill, said = (tested["label"] == _ILL).to_numpy(), blast >= HALF
    bins = np.minimum((blast * BINS).astype(int), BINS - 1)
    found = {"ece_after": float(np.abs(np.bincount(bins, blast - ill, BINS)).sum() / len(blast))}
    if ill.all() or not ill.any():
        return found
    headline = {
        "weighted_f1": f1_score(ill, said, average="weighted"),
        "auroc": roc_auc_score(ill, blast),
        "sensitivity": recall_score(ill, said),
        "specificity": recall_score(~ill, ~said),
    }
    return found | {name: float(headline[name]) for name in HEADLINE}
