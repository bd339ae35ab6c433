"""What the initial weights of a training were, and what is known of the patients they have seen: kept with the version.

A network that did not begin from scratch has seen more than the training side. Which file that was, and whether a
patient of this data set may be behind it, belongs to the evidence like the split does.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.digests import file_digest
from blastwatch.errors import UsageError
from blastwatch.manifest import read_json
from training.packaged_weights import PACKAGED, packaged_files, packages_of
from training.parameters import TrainParameters

SCRATCH, IMAGENET, PRETRAINED, UNKNOWN = "scratch", "imagenet", "pretrained", "unknown"


def initial_weights(parameters: TrainParameters) -> dict[str, Any]:
    """Facts of where a training begins.

    Returns:
        `source`: scratch, imagenet, pretrained (by `blastwatch pretrain`) or unknown (another file). Of a file also
        `name`, and `digest` (SHA-256); torchvision's names carry the beginning of theirs. Of what `pretrain` wrote also
        `subjects`, the names of those it was shown, and the `data_digest`.

    Raises:
        UsageError: where a file or package is not there.
    """
    if parameters.weights == "scratch":
        return {"source": SCRATCH}
    if parameters.weights == "file":
        return _of_file(Path(parameters.weights_file))
    if parameters.architecture in PACKAGED:
        files = packaged_files(parameters.architecture)
        return {
            "source": IMAGENET,
            "package": ", ".join(packages_of(parameters.architecture)),
            "name": ", ".join(file.name for file in files),
            "digest": ", ".join(file_digest(file) for file in files),
        }
    from torchvision.models import get_model_weights

    return {"source": IMAGENET, "name": Path(get_model_weights(parameters.architecture).DEFAULT.url).name}


def check_file(path: Path) -> None:
    """Raise `UsageError` where there is no file of weights."""
    if not path.is_file():
        raise UsageError(f"Expected a file of weights at {path} (train.weights_file) but there is none.")


def facts_beside(weights_file: Path) -> dict[str, Any]:
    """What `blastwatch pretrain` left beside the weights it wrote; {} beside others, of which nothing is known."""
    beside = weights_file.with_suffix(".json")
    return read_json(beside, made_by="blastwatch pretrain") if beside.is_file() else {}


def _of_file(path: Path) -> dict[str, Any]:
    check_file(path)
    facts = {"source": UNKNOWN, "name": path.name, "digest": file_digest(path)}
    known = facts_beside(path)
    if known.get("weights_digest") != facts["digest"]:
        return facts  # none, or of other weights
    return facts | {"source": PRETRAINED, "subjects": known["subjects"], "data_digest": known["data_digest"]}


def recorded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`initial_weights` as `train.json` has them. One from before they were kept knows the parameter alone."""
    if "initial_weights" in facts:
        return dict(facts["initial_weights"])
    parameters = facts["parameters"]
    if parameters["weights"] == SCRATCH:
        return {"source": SCRATCH}
    return {"source": UNKNOWN, "name": Path(parameters["weights_file"]).name or parameters["weights"]}


def vouched(start: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Where a training began, as far as the names of subjects vouch for it: pretrained weights of a subject who is not
    on the training side may have seen a held-out patient under another name, and are of unknown origin.

    Args:
        start: of `recorded`. rows: of the split, with `subject` and `side`.
    """
    if start["source"] == PRETRAINED and (not start["subjects"] or strangers(start["subjects"], rows)):
        return {**start, "source": UNKNOWN}
    return dict(start)


def strangers(subjects: Iterable[str], rows: pd.DataFrame) -> list[str]:
    """Those who are not on the training side of a split, with `subject` and `side`."""
    return sorted(set(subjects) - set(rows.loc[rows["side"] == "train", "subject"]))


def told(facts: dict[str, Any]) -> str:
    """A sentence for people.

    >>> told({"source": "scratch"})
    'It was trained from scratch.'
    """
    names, digests = [facts.get("name", "")], [facts.get("digest", "")]
    if "package" in facts:  # or packages: a name of a file of one's own may have a comma in it
        names, digests = names[0].split(", "), digests[0].split(", ")
    ends = [f" (SHA-256 `{digest[:12]}`)" if digest else "" for digest in digests]
    named = " and ".join(f"`{name}`{end}" for name, end in zip(names, ends, strict=True))
    return {
        SCRATCH: "It was trained from scratch.",
        IMAGENET: f"It began with weights that were trained on ImageNet, {named}: on no blood cells.",
        PRETRAINED: f"It began with weights that were trained without labels on cells of "
        f"{len(facts.get('subjects', []))} subjects of the training side, {named}.",
        UNKNOWN: f"It began with the weights of a file, {named}. What these have seen is not known: where it was a "
        "tested patient, the figures are too good.",
    }[facts["source"]]
