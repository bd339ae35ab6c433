"""What several evaluations left, and what a reader must know before their figures: whether the cells were drawn,
whether the split leaks, and with which weights each network began. And what a promotion will miss in a split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import SIDES, read_json
from blastwatch.policy import Policy
from training.baselines import BASELINES
from training.evidence import BASELINE_PREDICTIONS, METRICS, PREDICTIONS
from training.initial_weights import UNKNOWN

MADE_BY = "blastwatch evaluate"


def read_answers(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """What evaluations left in their folders, by the folder's name, and the answers of the baselines without a network.

    Raises:
        UsageError: where a folder holds no evaluation, or two have one name.
    """
    tables: dict[str, pd.DataFrame] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in tables or name in BASELINES:
            raise UsageError(f"Expected folders of different names, none of them {', '.join(BASELINES)}: got {name!r}.")
        missing = [file for file in (PREDICTIONS, BASELINE_PREDICTIONS) if not (folder / file).is_file()]
        if missing:
            raise UsageError(f"Expected {missing[0]} in {folder} but it is missing. Make it: blastwatch evaluate")
        tables[name] = pd.read_parquet(folder / PREDICTIONS)
    known = pd.read_parquet(folders[0] / BASELINE_PREDICTIONS)
    return tables | {str(name): part.drop(columns="model") for name, part in known.groupby("model", sort=False)}


def read_origins(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By the name of each folder that `blastwatch evaluate` wrote: `synthetic`, `leaky` and `initial_weights`, the
    `source` of `training.initial_weights`, None where the evaluation is of before that was kept.

    Raises:
        DataError: where metrics.json, which an evaluation writes last, is missing, or says none of this.
    """
    found = {}
    for folder in folders:
        metrics = read_json(folder / METRICS, made_by=MADE_BY)
        missing = [name for name in ("synthetic", "leaky") if not isinstance(metrics.get(name), bool)]
        if missing:
            got = " and ".join(str(metrics.get(name)) for name in missing)
            raise DataError(
                f"Expected true or false as {' and '.join(missing)} in {folder / METRICS} but got {got}. Make it anew: "
                f"{MADE_BY}"
            )
        found[folder.resolve().name] = {
            "synthetic": metrics["synthetic"],
            "leaky": metrics["leaky"],
            "initial_weights": metrics.get("initial_weights"),
        }
    return found


def cautions(origins: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences for people on splits and initial weights, none where there is nothing to be careful of.

    Args:
        origins: of `read_origins`.

    >>> cautions({"plain": {"synthetic": False, "leaky": False, "initial_weights": "scratch"}})
    []
    """
    told = (
        ("leaky", True, "The split of {} leaks: some of those tested were trained on, and the figures are too good."),
        (
            "initial_weights",
            UNKNOWN,
            "It is not known what the initial weights of {} had seen: where it was a tested patient, the figures are "
            "too good.",
        ),
        (
            "initial_weights",
            None,
            f"{METRICS} of {{}} does not say with which weights the training began. Measure again: {MADE_BY}",
        ),
    )
    found = ((text, [name for name, row in origins.items() if row[key] == value]) for key, value, text in told)
    return [text.format(", ".join(names)) for text, names in found if names]


def promotion_cautions(rows: pd.DataFrame, policy: Policy, *, calibrate_on: str) -> list[str]:
    """Sentences on a split that has fewer cells or patients than the gates of a promotion ask for, which tell it hours
    later; none where it has enough.

    Args:
        rows: of the split, with label, group and side.
        calibrate_on: of the section `evaluate`: out-of-fold lets training patients into the drift reference.
    """
    train, validation, calibration, test = SIDES
    sides = (validation, calibration, *([train] if calibrate_on == "out-of-fold" else []))
    known, limits = rows[rows["side"].isin(sides)], policy.drift_reference
    asked = {"cells": limits.least_cells, "patients": limits.least_groups}
    found = {"cells": len(known), "patients": int(known["group"].nunique())}
    instead = "or take a policy of your own (BLASTWATCH_POLICY)"
    told = []
    if any(least is not None and found[what] < least for what, least in asked.items()):
        wanted = " and ".join(f"{least} {what}" for what, least in asked.items() if least is not None)
        shares = " and ".join(f"split.{side}" for side in sides)
        told.append(
            f"The drift reference will have {found['cells']} cells of {found['patients']} patients, and no version is "
            f"promoted below {wanted}: import more patients, raise {shares}, {instead}."
        )
    tested = rows[rows["side"] == test].groupby("label")["group"].nunique().reindex(list(CLASS_NAMES), fill_value=0)
    least = policy.non_inferiority.least_patients
    if policy.non_inferiority.margin is not None and tested.min() < least:
        counts = " and ".join(f"{count} of {label}" for label, count in tested.items())
        told.append(
            f"The test side has {counts} patients, and no version replaces a champion below {least} of each label: "
            f"import more patients, raise split.{test}, {instead}."
        )
    return told
