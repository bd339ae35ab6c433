"""What an evaluation leaves in its folder, and whether it belongs to the network that is packaged.

Every stage can be run by hand, with any folders, and stopped at any moment. So `train.json`, which is written last,
notes by digest what was trained on and what the training left, and `metrics.json`, which is written last too, what was
measured and what else the evaluation wrote.
"""

from pathlib import Path
from typing import Any

from blastwatch import package as layout
from blastwatch.digests import file_digest
from blastwatch.errors import DataError, LeakFound
from blastwatch.manifest import SPLIT_FACTS, Cells, read_json, write_json
from blastwatch.package import REPORT, WEIGHTS
from training.pack import Packed
from training.parameters import ImageParameters

TRAINED = "train.json"
PREDICTIONS, METRICS, CALIBRATION = "test_predictions.parquet", "metrics.json", "calibration.json"
BASELINE_PREDICTIONS = "baseline_predictions.parquet"  # the columns of PREDICTIONS, and `model`
NOTED = (PREDICTIONS, CALIBRATION, REPORT)  # what travels in a package, or decides what stands in it


def forget_evaluation(folder: Path) -> None:
    """Remove what an earlier evaluation left: one that is stopped on its way must not pass with the rest of another."""
    for name in (METRICS, BASELINE_PREDICTIONS, *NOTED):
        (folder / name).unlink(missing_ok=True)


def write_metrics(metrics: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The last step of an evaluation: write and return the metrics, with the SHA-256 of each of `NOTED` as `files`."""
    noted = metrics | {"files": {name: file_digest(folder / name) for name in NOTED}}
    write_json(folder / METRICS, noted)
    return noted


def check_trained_on(
    facts: dict[str, Any], trained: Path, *, cells: Cells, split: Path, packed: Packed, pack: Path
) -> None:
    """Refuse cells, a split or a pack that are not those of a training.

    Args:
        facts: what train.json in `trained` says.

    Raises:
        LeakFound: where the split is another, which may test patients who trained.
        DataError: where cells, pack or the weights beside train.json are others, or it does not say which pack it was.
    """
    own, trained_on = read_json(split / SPLIT_FACTS, made_by="blastwatch data split")["digest"], facts["split_digest"]
    if own != trained_on:
        raise LeakFound(
            f"Expected the split that the network in {trained} was trained on ({trained_on[:12]}) but {split} is "
            f"another ({own[:12]}): it may test patients who trained. Name that split, or train on this one."
        )
    if cells.digest != facts["data_digest"]:
        raise DataError(
            f"Expected the cells that the network in {trained} was trained on ({facts['data_digest'][:12]}) but "
            f"{cells.folder} holds others ({cells.digest[:12]}). Name those, or train on these."
        )
    if "pack_digest" not in facts or "image" not in facts:
        raise DataError(
            f"train.json in {trained} does not say which pack the network was trained on, so whether it was {pack} "
            "is not known. Train again: blastwatch train, or dvc repro --force --single-item train"
        )
    known, found = ImageParameters(**facts["image"]), packed.preprocessing
    if (found.crop, found.size) != (known.crop, known.size) or packed.digest != facts["pack_digest"]:
        raise DataError(
            f"Expected the pack that the network in {trained} was trained on (image.crop={known.crop}, "
            f"image.size={known.size}, {facts['pack_digest'][:12]}) but {pack} is another ({found.crop}, {found.size}, "
            f"{packed.digest[:12]}). Name that pack, or train on this one."
        )
    check_weights(facts, digest_of_weights(trained), trained)


def digest_of_weights(trained: Path) -> str:
    """SHA-256 of the weights that a training left. Raises `DataError` where they are gone."""
    path = trained / WEIGHTS
    if not path.is_file():
        raise DataError(
            f"Expected the weights that {TRAINED} in {trained} is about but {path} is missing. Train again: "
            "blastwatch train"
        )
    return file_digest(path)


def check_weights(facts: dict[str, Any], found: str, trained: Path) -> None:
    """Refuse weights that are not those which train.json was written for, as a training that could not be written to
    its end may leave them.

    Args:
        facts: what train.json in `trained` says; one of before it noted them says nothing, and nothing can be checked.
        found: SHA-256 of the weights.

    Raises:
        DataError: saying both.
    """
    noted = facts.get("weights_sha256", found)
    if noted != found:
        raise DataError(
            f"Expected the weights of run {facts.get('run_id')} ({noted[:12]}) in {trained}, as {TRAINED} there notes, "
            f"but found others ({found[:12]}). Train again: blastwatch train"
        )


def check_out_of_fold(facts: dict[str, Any], path: Path) -> None:
    """Refuse answers to training patients that lie beside a training and are another's.

    Args:
        facts: what train.json says. One of before it noted digests tells no more than that a training of the whole
            network leaves no such answers. path: of the answers.

    Raises:
        DataError: where they are another's.
    """
    own = f"Expected the answers to training patients of run {facts.get('run_id')} in {path}"
    noted, fit = facts.get("out_of_fold_sha256"), facts.get("parameters", {}).get("fit", "gradient")
    if noted is None and ("weights_sha256" in facts or fit != "logistic"):
        raise DataError(
            f"{own} but that training left none, and these are another's. Train with train.fit=logistic, or set "
            "evaluate.calibrate_on=calibration."
        )
    if noted is not None and noted != (found := file_digest(path)):
        raise DataError(
            f"{own} ({noted[:12]}, as {TRAINED} there notes) but found others ({found[:12]}). Train again: blastwatch "
            "train"
        )


def check_evaluated(metrics: dict[str, Any], facts: dict[str, Any], trained: Path, evaluated: Path) -> None:
    """Refuse evidence of other weights or pixels, or of which a part is another evaluation's: a training or a packing
    since leaves the folders as valid as before.

    Args:
        metrics: what metrics.json in `evaluated` says. facts: what train.json in `trained` says.

    Raises:
        DataError: saying what is another's.
    """
    weights = digest_of_weights(trained)
    if (metrics.get("weights_sha256"), metrics.get("run_id")) != (weights, facts["run_id"]):
        raise DataError(
            f"Expected the evaluation of the network in {trained} (run {facts['run_id']}, weights {weights[:12]}) but "
            f"{evaluated} measured another (run {metrics.get('run_id')}, weights "
            f"{str(metrics.get('weights_sha256'))[:12]}). Measure it: blastwatch evaluate"
        )
    if metrics.get("pack_digest") != facts["pack_digest"]:
        raise DataError(
            f"Expected an evaluation on the pack of the training in {trained} ({facts['pack_digest'][:12]}) but "
            f"{evaluated} measured another ({metrics.get('pack_digest', 'unknown')[:12]}). Measure it: blastwatch "
            "evaluate"
        )
    noted = metrics.get("files", {})
    others = [
        name for name in NOTED if not (evaluated / name).is_file() or noted.get(name) != file_digest(evaluated / name)
    ]
    if others:
        raise DataError(
            f"Expected {', '.join(others)} in {evaluated} as {METRICS} there notes by digest but found none or others. "
            "Measure again: blastwatch evaluate"
        )


def check_copied(
    package: Path, metrics: dict[str, Any], facts: dict[str, Any], trained: Path, evaluated: Path
) -> None:  # fmt: skip
    """Refuse a package, at its end, whose files are not those that were measured, or that rests on two trainings: one
    that ended in the same folder during these minutes left other weights or answers there.

    Args:
        package: its folder. metrics, facts: what metrics.json in `evaluated` and train.json in `trained` said when it
            was begun.

    Raises:
        DataError: saying what is another's.
    """
    noted = metrics["files"]
    measured = {WEIGHTS: metrics["weights_sha256"], layout.PREDICTIONS: noted[PREDICTIONS], REPORT: noted[REPORT]}
    others = [name for name, digest in measured.items() if file_digest(package / name) != digest]
    if others or read_json(trained / TRAINED, made_by="blastwatch train") != facts:
        raise DataError(
            f"Expected the training in {trained} and its evaluation in {evaluated} to stay as they were while they "
            f"were packaged, but others came ({', '.join(others) or TRAINED}). Nothing was packaged. Measure again: "
            "blastwatch evaluate; then package again."
        )
    check_evaluated(metrics, facts, trained, evaluated)
