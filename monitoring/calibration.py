"""Drift thresholds that hold their false-alarm rate, calibrated on the reference by resampling whole patients.

Cells of one patient are not independent: a window of 300 cells may hold three patients, and three patients differ
from the other thirty. Thresholds for independent rows, and Evidently's defaults, therefore alarm where nothing drifts.

    1. A window is simulated as it would arrive: a few whole groups, then cells of each. Its groups leave the reference
       side, since a new patient was never in it.
    2. Each column gets the score that Evidently gives it (`monitoring.scores`).
    3. Column j's threshold is c * s_j: s_j, the column's 0.9 quantile over the windows, makes the columns comparable,
       and c is the quantile of max_j(score_j / s_j) at the stated rate (the max-statistic of Westfall & Young 1993,
       Resampling-Based Multiple Testing). One window alarms at that rate over all its columns together. Of many
       patients, each is in few windows, and the quantile is higher (`scale_quantile`): a column in which one patient
       is odd has to carry that itself, or c carries it into every column.
    4. The windows share a dozen groups, so the spread between patients is itself an estimate. As for a mean whose
       variance is estimated, the tail is Student's and not the normal one: c is multiplied by the ratio of their
       quantiles with groups - 1 degrees of freedom, at the stated rate shared among the columns (Bonferroni).
    5. Statistics of an image are of the same use whether a network learned from it or not, its answers are not. So
       where patients trained on are in the reference, what is measured has thresholds from all patients and what is
       answered from the others, each at its columns' share of the stated rate.
    6. A direction (`monitoring.directions`) is one along which the patients whom it was fitted to hardly differ. So
       each window is scored along directions fitted without its patients, as those of a new patient are. What a
       direction is fitted with takes degrees of freedom (`monitoring.signatures.effective_parameters`), as in T-squared
       (Hotelling 1931, doi:10.1214/aoms/1177732979); where fewer than `FEWEST_FREEDOMS` are left, there are none.

The rate holds for windows of at least `PATIENTS` patients out of the population that the reference was drawn from
(what is held against it has two at least, by their effective number: `monitoring.windows`), and from `ENOUGH_GROUPS`
groups upwards: fewer may happen to be much alike, which no factor mends. Alarms found at the stated 1 %, on windows of
three new patients:

    simulated cohorts, 1,600 windows each          6, 9, 12, 20 reference patients    5.0, 1.8, 0.8, 0.6 %
    C-NMC cells, 360 windows each                  8, 12, 16 reference patients       0.3, 0.3, 0.8 %

On the C-NMC cells a linear model stood in the network's place, and Evidently's defaults alarmed in every window. The
price: with 12 patients, a third of the windows is noticed whose optical density rose by a fifth in red and fell by
15 % in blue.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blastwatch.errors import DataError
from blastwatch.package import DriftReference
from monitoring.directions import DIRECTIONS, directions_of
from monitoring.scores import ANSWERED, METHODS, OF_IMAGES, SMALLEST_THRESHOLD, Floats, Scorer

FORMAT = 1
FALSE_ALARM_RATE = 0.001
"""Of a window: one in three years of daily ones. What is found on real cells is more, and at most one in a year was
wanted (docs/drift.md)."""

PATIENTS = 3
WINDOW_SIZES = (30, 100, 300)
RESAMPLES = 1000
FEWEST_GROUPS = 2
ENOUGH_GROUPS = 10
FEWEST_FREEDOMS = 5
SCALE_QUANTILE = 0.9


def calibrate(
    reference: DriftReference,
    *,
    signatures: dict[str, Any] | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    patients: int = PATIENTS,
    window_sizes: tuple[int, ...] = WINDOW_SIZES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibrate every column's threshold; the result is what stands in `drift.json`.

    Args:
        reference: answered cells of two groups or more.
        signatures: of the reference (`monitoring.signatures`), along which is looked too (`monitoring.directions`).
        false_alarm_rate: share of windows without drift that alarm, over all columns together; 0 to 1, both excluded.
        patients: groups in a simulated window; fewer where the reference has no more than that.
        window_sizes: cells in a window; a real window takes the thresholds of the largest size that it reaches.
        resamples: simulated windows of each size.

    Returns:
        What was asked (as above), `groups` and `cells` of the reference, `answered_groups`, `enough_groups` (false
        where the rate is not to be relied on), `methods` by column, `left_out` (columns that do not vary) and
        `windows`: per size its `cells` and the `thresholds` by column.

    Raises:
        DataError: for fewer than two groups.
    """
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"Expected `false_alarm_rate` between 0 and 1 but got {false_alarm_rate}")
    for name, value in (("patients", patients), ("resamples", resamples), ("window_sizes", min(window_sizes))):
        if value < 1:
            raise ValueError(f"Expected `{name}` to be at least 1 but got {value}")
    groups = reference.answered["group"].nunique()
    if groups < FEWEST_GROUPS:
        raise DataError(
            f"Expected at least {FEWEST_GROUPS} patients in the reference but got {groups}: thresholds "
            "cannot be told without a second patient. Put more patients on the calibration side of the split."
        )
    scorers = scorers_of(reference, _usable(signatures, reference.cells["group"].nunique(), patients))
    share = false_alarm_rate / sum(len(scorer.columns) for scorer in scorers)
    generator = np.random.default_rng(seed)
    sizes = []
    for cells in sorted(window_sizes):
        thresholds: dict[str, float] = {}
        for scorer in scorers:
            windows, sides = simulate(
                scorer.groups, cells=cells, patients=patients, count=resamples, generator=generator
            )
            thresholds |= _thresholds(scorer, scorer(windows, sides), share, patients)
        sizes.append({"cells": cells, "thresholds": thresholds})
    return {
        "format": FORMAT,
        "false_alarm_rate": false_alarm_rate,
        "patients": min(patients, groups - 1),
        "resamples": resamples,
        "seed": seed,
        "groups": scorers[0].group_count,
        "cells": len(reference.cells),
        "answered_groups": groups,
        "enough_groups": groups >= ENOUGH_GROUPS,
        "methods": {name: METHODS[name] for scorer in scorers for name in scorer.columns},
        "left_out": [name for scorer in scorers for name in scorer.left_out],
        "windows": sizes,
    }


def basis(calibration: dict[str, Any]) -> dict[str, Any] | None:
    """How much a verdict by these thresholds says: patients they are from, the `answered` of them, and in words, with a
    `caution` where they are too few. None of a package from before these were written down."""
    if not {"groups", "answered_groups", "enough_groups"} <= set(calibration):
        return None
    patients, answered = calibration["groups"], calibration["answered_groups"]
    of = "" if answered == patients else f", {answered} of them with answers"
    few = (
        f"The thresholds for what the network says are from {answered} patients and {ENOUGH_GROUPS} are needed: how "
        "often they alarm falsely is not known, and only a large drift is seen."
    )
    return {
        "patients": patients,
        "answered": answered,
        "said": f"from {patients} known patients{of}",
        "caution": None if calibration["enough_groups"] else few,
    }


def scorers_of(reference: DriftReference, signatures: dict[str, Any] | None = None) -> list[Scorer]:
    """One where all cells were answered; else one of what is measured, of all patients, and one of the answers."""
    if len(reference.answered) == len(reference.cells):
        return [Scorer(reference.cells, signatures=signatures)]
    return [Scorer(reference.cells, OF_IMAGES, signatures=signatures), Scorer(reference.answered, ANSWERED)]


def thresholds_for(calibration: dict[str, Any], cells: int) -> dict[str, float]:
    """The thresholds by column for a window of so many cells.

    Raises:
        DataError: for a window smaller than any that was calibrated, or another format of `drift.json`.
    """
    if calibration.get("format") != FORMAT:
        raise DataError(f"Expected drift thresholds of format {FORMAT} but got {calibration.get('format')!r}.")
    fitting = [window for window in calibration["windows"] if window["cells"] <= cells]
    if not fitting:
        smallest = min(window["cells"] for window in calibration["windows"])
        raise DataError(f"Expected at least {smallest} predictions for a verdict on drift but got {cells}.")
    return dict(max(fitting, key=lambda window: int(window["cells"]))["thresholds"])


def simulate(
    groups: NDArray[np.intp], *, cells: int, patients: int, count: int, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Windows of a few whole groups' cells, and the reference sides without those groups.

    Args:
        groups: number of each reference cell's group, 0 upwards, shape (r,).

    Returns:
        Counts of each cell in the windows, and 1 or 0 for their reference sides; float64, shape (count, r) both. The
        cells of a window are shared out evenly over its groups; no cell comes twice before all of its group came once.
    """
    total = int(groups.max()) + 1
    members = [np.flatnonzero(groups == group) for group in range(total)]
    windows, sides = np.zeros((count, len(groups))), np.ones((count, len(groups)))
    # No more groups in a window than leave one behind.
    size = min(patients, total - 1)
    for row in range(count):
        chosen = generator.choice(total, size=size, replace=False)
        for group, share in zip(chosen, _shares(cells, len(chosen)), strict=True):
            rounds, rest = divmod(share, len(members[group]))
            windows[row, members[group]] += rounds
            windows[row, generator.permutation(members[group])[:rest]] += 1
            sides[row, members[group]] = 0
    return windows, sides


def _shares(cells: int, parts: int) -> list[int]:
    return [cells // parts + (index < cells % parts) for index in range(parts)]


def scale_quantile(groups: int, patients: int) -> float:
    """Share of the windows whose scores of a column are below the column's scale: `SCALE_QUANTILE`, or, where one
    group is in no more windows than lie above that, so many that half of its windows do.

    Args:
        groups: of the reference. patients: groups in a window.
    """
    seen = patients / groups  # share of the windows that any one group is in
    return SCALE_QUANTILE if seen > 1 - SCALE_QUANTILE + 1e-9 else 1 - seen / 2


def _thresholds(scorer: Scorer, scores: Floats, share: float, patients: int) -> dict[str, float]:
    """Of the scores (windows, columns) of windows without drift; share: of these that a column may have alarm."""
    freedoms = dict.fromkeys(scorer.columns, float(scorer.group_count - 1))
    if scorer.signatures is not None:
        freedoms |= dict.fromkeys(DIRECTIONS, _freedoms(scorer.group_count, scorer.signatures))
    scale = np.maximum(np.quantile(scores, scale_quantile(scorer.group_count, patients), axis=0), 1e-9)
    factor = float(np.quantile((scores / scale).max(axis=1), 1 - share * len(scorer.columns)))
    return {
        name: max(factor * _inflation(freedoms[name], share) * float(scale[index]), SMALLEST_THRESHOLD[METHODS[name]])
        for index, name in enumerate(scorer.columns)
    }


def _usable(signatures: dict[str, Any] | None, groups: int, patients: int) -> dict[str, Any] | None:
    """The signatures where they have directions, and enough patients to fit these without those of a window."""
    if signatures is None or not directions_of(signatures):
        return None
    enough = _freedoms(groups, signatures) >= FEWEST_FREEDOMS and groups - patients >= FEWEST_GROUPS
    return signatures if enough else None


def _freedoms(groups: int, signatures: dict[str, Any]) -> float:
    """Degrees of freedom of the spread along a direction."""
    return float(groups - 1 - signatures["parameters"])


def _inflation(freedoms: float, rate: float) -> float:
    """Student's quantile over the normal one, both tails together at `rate`."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedoms, rate / 2) / ndtri(rate / 2))
