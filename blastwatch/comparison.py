"""What two versions say of the same test cells, of patients on which neither was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.engines import open_engine
from blastwatch.errors import DataError, PackageError
from blastwatch.images import crop_cell, decode, pixel_digest
from blastwatch.inference import in_batches
from blastwatch.package import Package
from blastwatch.patients import TRAINED_SIDES, read_patients
from blastwatch.seen import read_seen
from blastwatch.stored_answers import unusable

if TYPE_CHECKING:
    from blastwatch.manifest import Cells

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What both said of the cells that can be compared.

    answers: one row a cell, with patient (its group in the candidate's split), label, candidate and champion (whether
    each was right). left_out: patients of the candidate's test side on which one of the two was trained. read_again:
    cells of which the champion had no stored answer.
    """

    answers: pd.DataFrame
    left_out: list[str]
    read_again: int


def compare(candidate: Package, champion: Package, data: "Cells | None") -> Comparison:
    """Both on the candidate's test cells, as far as neither was trained on their patients.

    Patients are told apart by the subjects' names, those that the candidate's audit ties to them included. The
    champion's stored answers are used where it was tested on the same pixels; the other cells it reads again.

    Raises:
        PackageError: where a package does not say on which patients it was trained, or an answer of one of the two is
            no probability.
        DataError: where cells must be read again and `data` does not hold them.
    """
    tested = candidate.predictions()
    if said := unusable(tested):
        raise PackageError(f"{said}. Evaluate and package the candidate anew.")
    answered = champion.predictions()
    if said := unusable(answered):
        raise PackageError(f"The champion: {said}. Go back to another: blastwatch registry rollback")
    left_out = seen_patients(candidate, champion)
    compared = tested[~tested["group"].isin(left_out)]
    known = answered.drop_duplicates("pixel_sha256").set_index("pixel_sha256")["probability"]
    theirs = compared["pixel_sha256"].map(known)
    unread = compared.loc[theirs.isna(), "pixel_sha256"]
    if len(unread):
        theirs = theirs.fillna(compared["pixel_sha256"].map(read_again(champion, data, set(unread))))
    truth = compared["label"] == "all"
    answers = pd.DataFrame(
        {
            "patient": compared["group"].astype(str),
            "label": compared["label"],
            "candidate": (compared["probability"] >= 0.5) == truth,
            "champion": (theirs >= 0.5) == truth,
        }
    )
    return Comparison(answers=answers.reset_index(drop=True), left_out=left_out, read_again=len(unread))


def seen_patients(candidate: Package, champion: Package) -> list[str]:
    """Groups of the candidate's test side of which a subject, or a tested image, was trained on, by either version."""
    ours, theirs = read_patients(candidate), read_patients(champion)
    trained = ours.subjects(*TRAINED_SIDES) | theirs.subjects(*TRAINED_SIDES)
    by_name = {name for name in ours.groups["test"] if ours.members[name] & trained}
    tested = candidate.predictions()
    seen = [read_seen(package, *TRAINED_SIDES) for package in (candidate, champion)]
    by_image = [tested["group"][found.among(tested["pixel_sha256"])].astype(str) for found in seen if found]
    return sorted(by_name.union(*by_image))


def read_again(package: Package, data: "Cells | None", wanted: set[str]) -> pd.Series:
    """Calibrated probabilities of a blast for cells of a data set, by pixel digest.

    Raises:
        DataError: where a wanted cell is not in the data set.
    """
    if data is None:
        raise DataError(
            f"The champion was never tested on {len(wanted)} of the candidate's test cells. "
            "Name the imported data set that holds them: --cells DIR"
        )
    rows = data.rows[data.rows["pixel_sha256"].isin(wanted)].drop_duplicates("pixel_sha256")
    if len(rows) < len(wanted):
        raise DataError(
            f"Expected {len(wanted)} test cells of the candidate in {data.folder} but found {len(rows)}. "
            "Name the imported data set that the candidate was tested on: --cells DIR"
        )
    engine = open_engine(package, "openvino-f32")
    shape = package.info.preprocessing
    digests, values = rows["pixel_sha256"].tolist(), []
    paths = [data.root / Path(path) for path in rows["path"]]
    for start in range(0, len(paths), BATCH):
        images = [decode(path.read_bytes()) for path in paths[start : start + BATCH]]
        for image, path, digest in zip(images, paths[start:], digests[start:], strict=False):
            if pixel_digest(image) != digest:
                raise DataError(f"{path} has other pixels than when it was imported. Import the source anew.")
        crops = np.stack([crop_cell(image, shape) for image in images])
        logits = in_batches(engine.infer, crops).logits
        values.append(probabilities(logits, package.info.temperature)[:, POSITIVE])
    return pd.Series(np.concatenate(values), index=digests)
