"""What a reader must know before the figures of several evaluations: whether the cells were drawn, whether the split
leaks, and with which weights each network began."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blastwatch.errors import DataError
from blastwatch.manifest import read_json
from training.evidence import METRICS
from training.initial_weights import UNKNOWN

MADE_BY = "blastwatch evaluate"


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
