"""Answers to training patients by fits that had not seen them, which calibrate as answers to other patients do.

Patients who are kept aside to calibrate on are missing in training. Where parts of the training patients were held out
in turn anyway, to choose how strongly a probe is regularised, the answers to them serve as well: the calibrator is
fitted on these, the model is the one of all patients (Platt 1999, Advances in Large Margin Classifiers, section 2.2.2;
`ensemble=False` of scikit-learn's CalibratedClassifierCV).

The limits of the three-way decision are then cross-conformal (Vovk 2015, doi:10.1007/s10472-013-9368-4): about the
coverage that is aimed at, and none that is proven, since the model answers the next patient and another fit answered
those it was calibrated on (Barber et al. 2021, doi:10.1214/20-AOS1965, section 1.2).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE
from blastwatch.errors import DataError, LeakFound, UsageError
from blastwatch.manifest import read_json
from training.evidence import TRAINED, check_out_of_fold
from training.initial_weights import IMAGENET, PRETRAINED, SCRATCH, UNKNOWN, recorded, vouched
from training.loop import Answer

OUT_OF_FOLD = "out_of_fold.parquet"  # in the folder of a training; the columns COLUMNS, a row a training cell
COLUMNS = ("path", "logit_hem", "logit_all")


def write_out_of_fold(folder: Path, paths: Sequence[str], logits: NDArray[np.float64]) -> None:
    """Write the logits of training cells, shape (n, classes), into the folder of their training."""
    table = pd.DataFrame({"path": paths, "logit_hem": logits[:, 1 - POSITIVE], "logit_all": logits[:, POSITIVE]})
    table.to_parquet(folder / OUT_OF_FOLD, index=False)


def calibrating_cells(
    answer: Answer, rows: pd.DataFrame, trained: Path, calibrate_on: str
) -> tuple[pd.DataFrame, NDArray[Any], bool]:
    """The cells that calibrate, logits of each by a fit that had not seen its patient, and whether what is proven of
    limits that are taken from them holds for the network.

    Args:
        answer: of the network. rows: of `read_split`. trained: folder of the training that made the network.
        calibrate_on: `calibration`, that side, or `out-of-fold`, the training side with it.

    Returns:
        Rows of `rows`; logits in their order, shape (n, classes); and whether the network is as new to all their
        patients as to the next one: its own answers, to whom neither a fit nor its initial weights have seen.

    Raises:
        UsageError: where the training left no such answers. DataError: where they are of another split or training.
        LeakFound: where the network began with weights that have seen training patients, or may have.
    """
    held = rows[rows["side"] == "calibration"].sort_values("path")
    logits = answer(held["path"].tolist())
    if calibrate_on == "calibration":
        return held, logits, _new_to(rows, trained)
    known = rows[rows["side"] == "train"].sort_values("path")
    own = out_of_fold_logits(trained, known)
    start = recorded(_facts(trained))
    check_start(
        start, known, wanted="evaluate.calibrate_on=out-of-fold", instead="Set evaluate.calibrate_on=calibration."
    )
    return pd.concat([held, known]), np.concatenate([logits, own]), False


def _new_to(rows: pd.DataFrame, trained: Path) -> bool:
    """Whether the calibration side has no patient whom the training fitted to or stopped by, or its initial weights may
    have seen: only then are they exchangeable with the next patient."""
    groups = {side: set(part["group"].astype(str)) for side, part in rows.groupby("side")}
    fitted_to = groups.get("train", set()) | groups.get("validation", set())
    start = vouched(recorded(_facts(trained)), rows)
    return start["source"] != UNKNOWN and not groups.get("calibration", set()) & fitted_to


def out_of_fold_logits(trained: Path, known: pd.DataFrame) -> NDArray[np.float64]:
    """Logits of all training cells, shape (n, classes), in the order of `known`, by fits that had not seen their
    patient.

    Raises:
        UsageError: where the training left no such answers.
        DataError: where they are of another split or training, or no training came to its end there.
    """
    own = _read(trained).set_index("path")
    if sorted(known["path"]) != sorted(own.index):
        raise DataError(
            f"Expected answers to the {len(known)} training cells of this split in {trained / OUT_OF_FOLD} but got "
            f"those to {len(own)} others. Train again on this split."
        )
    return np.asarray(own.loc[known["path"], list(COLUMNS[1:])].to_numpy(dtype=np.float64))


def check_start(start: Mapping[str, Any], known: pd.DataFrame, *, wanted: str, instead: str) -> None:
    """A fit has not seen a patient whom the weights that it rests on have seen, with a label or without. Who was shown
    to pretrained ones is known by name, and a name that is not found here may be another spelling.

    Args:
        start: of `training.initial_weights`. known: rows of the training side, with `subject`.
        wanted: what asks for answers by such fits; instead: what to do without them, a sentence.

    Raises:
        LeakFound: where the weights have seen one of the patients, or may have.
    """
    if start["source"] in (SCRATCH, IMAGENET):
        return
    seen = start["source"] == PRETRAINED and set(known["subject"]) & set(start["subjects"])
    raise LeakFound(
        f"Expected initial weights that have seen no training patient for {wanted}, but those of {start['name']} "
        f"{'have' if seen else 'may have'}: answers to such patients say nothing of new ones. {instead}"
    )


def _read(trained: Path) -> pd.DataFrame:
    path = trained / OUT_OF_FOLD
    if not path.is_file():
        raise UsageError(
            f"Expected {path} for evaluate.calibrate_on=out-of-fold but there is none: train.fit=logistic leaves it. "
            "Train so, or set evaluate.calibrate_on=calibration."
        )
    check_out_of_fold(_facts(trained), path)
    return pd.read_parquet(path)


def _facts(trained: Path) -> dict[str, Any]:
    return read_json(trained / TRAINED, made_by="blastwatch train")
