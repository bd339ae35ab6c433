"""The model card: what a reader must know before using a version, from the run's own facts (Mitchell et al. 2019,
doi:10.1145/3287560.3287596), and where it answers the items of TRIPOD+AI and CLAIM."""

from collections import Counter
from typing import Any

from blastwatch import DISCLAIMER
from blastwatch.baseline import ALIKE, BEATEN, BEATS, FEWEST_TESTED, size_difference
from blastwatch.manifest import SIDES
from blastwatch.network import READ_BY_STAGES
from blastwatch.package import OUT_OF_FOLD, ModelInfo
from blastwatch.rounding import fixed, percent
from training import initial_weights
from training.audit import of_images
from training.calibration import CALIBRATED_ON, border_told
from training.card_cameras import cameras_section, change_told
from training.checklists import CLAIM, TRIPOD, UNKNOWN, checklist_table
from training.conformal import attainable, expected_told
from training.tracking import read_knobs

LEVELS = {
    "group": "no patient on two sides",
    "official": "as the source parts its images",
    "image": "patients parted on purpose",
}
SHOWN = ("weighted_f1", "auroc", "sensitivity", "specificity", "accuracy", "brier", "ece", "referred")

ADVISED = {
    BEATS: "{}.",
    BEATEN: "**{}: do not use it.**",
    ALIKE: "**{}: nothing shows that it sees more than they do.**",
}
BEATS_BY_FEW = "**{}, but with so few test patients that is no evidence.**"


def model_card(
    info: ModelInfo, evidence: dict[str, dict[str, Any]], drift: dict[str, Any], *, compared_on: str = ""
) -> str:
    """Markdown; `evidence` holds metrics, split, audit, data and params as they stand under `evidence/`, `compared_on`
    says on whose cells engines were compared."""
    parts = [
        f"# Model card: {info.architecture} on single blood cells, a deep network developed and evaluated to tell "
        f"leukemic blasts of children from normal cells\n\n{DISCLAIMER}",
        _warnings(info, evidence),
        "## Intended use\n\nResearch on images of single, segmented white blood cells of children: leukemic blast "
        "(`all`) or normal cell (`hem`). It reads cells, not patients, and makes no diagnosis. Whole fields, other "
        "stains and other kinds of image are meant to come back as `refer`: every image is measured first, and one "
        "whose size, outline, stain or focus lies outside of what the model knows is referred to a person, and so is "
        f"one whose embedding lies farther from those of {_out_of_distribution(evidence)} of a new patient's cells. "
        "What it answers there is for a person who knows blood cells to judge.",
        _data(info, evidence),
        _methods(info, evidence),
        _results(evidence),
        cameras_section(evidence),
        _decisions(info, evidence["metrics"]),
        _engines(info, compared_on),
        _drift(drift),
        _made(info, evidence),
        "## Limits\n\nIntervals are by patient and say little where few patients were tested. Cells of one "
        "laboratory say little about another's stain and scanner. The labels are those of the source. Nothing is known "
        "of a person but the name of the subject, no age, sex or origin, so fairness between groups of people was not "
        "assessed. Figures, pictures and parts of the test cells: `report.html`.",
        "## Reporting guidelines\n\nWhere the items of TRIPOD+AI (doi:10.1136/bmj-2023-078378) are answered, in few "
        f'words for each. "{UNKNOWN}" marks what has to be written by whoever publishes.\n\n'
        f"{checklist_table(TRIPOD)}\n\nThe same for CLAIM, update of 2024 (doi:10.1148/ryai.240300):\n\n"
        f"{checklist_table(CLAIM)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _out_of_distribution(evidence: dict[str, dict[str, Any]]) -> str:
    """Whom the limit of the out-of-distribution score was fitted on, and the rate that so many can give."""
    groups, trained = evidence["split"]["groups"], evidence["metrics"]["calibration"]["on"] == OUT_OF_FOLD
    sides = ("validation", "calibration", *(("train",) if trained else ()))
    patients = len(set().union(*(groups[side] for side in sides)))
    who = (
        "validation, calibration and (on axes fitted to the others) training"
        if trained
        else "validation and calibration"
    )
    rate = attainable(patients, evidence["params"]["package"]["ood_rate"])
    return f"{patients} {who} patients than all but a share of {fixed(rate)}"


def _warnings(info: ModelInfo, evidence: dict[str, dict[str, Any]]) -> str:
    lines = []
    if info.synthetic:
        lines.append(
            "> **Synthetic.** Trained and tested on drawn cells. No figure below says anything about patients."
        )
    split = evidence["split"]
    if split["leaky"]:
        lines.append(
            f"> **Leaks.** Split by {split['by']}: {len(split['parted_groups'])} groups of patients stand on several "
            f"sides, and {split['crossing']} findings of the audit cross it. The figures are inflated."
        )
    if _unknown_start(evidence):
        lines.append(f"> **Initial weights of unknown origin.** {initial_weights.told(_start(evidence))}")
    tested = _tested(evidence)
    if min(tested.values()) < FEWEST_TESTED:
        found = ", ".join(f"{count} of `{label}`" for label, count in sorted(tested.items()))
        lines.append(
            f"> **Too few test patients** ({found}; at least {FEWEST_TESTED} of each are wanted). The intervals below "
            "say little of what another patient would show."
        )
    return "\n\n".join(lines)


def _start(evidence: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the training began with, {} where that is not told."""
    return evidence["data"].get("initial_weights") or {}


def _unknown_start(evidence: dict[str, dict[str, Any]]) -> bool:
    return _start(evidence).get("source") == initial_weights.UNKNOWN


def seen_before(*, leaky: bool, unknown_start: bool) -> str:
    """What is known of whether the network had seen the tested patients, to follow that word.

    >>> seen_before(leaky=False, unknown_start=False)
    ' that nothing before had read'
    """
    if leaky:
        return ", some of whom were trained on"
    if unknown_start:
        return ", of whom it is not known whether the initial weights had seen them"
    return " that nothing before had read"


def _tested(evidence: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Test patients of each label."""
    return {label: counts["groups"] for label, counts in evidence["split"]["sides"]["test"].items()}


def _data(info: ModelInfo, evidence: dict[str, dict[str, Any]]) -> str:
    data, audit = evidence["data"], evidence["audit"]
    rows = ["| side | `all` cells | `all` patients | `hem` cells | `hem` patients |", "|---|---|---|---|---|"]
    for side in SIDES:
        counts = evidence["split"]["sides"][side]
        numbers = [str(counts[label][what]) for label in ("all", "hem") for what in ("cells", "groups")]
        rows.append(f"| {side} | {' | '.join(numbers)} |")
    sources = ", ".join(f"{name} ({count})" for name, count in sorted(data["sources"].items()))
    return (
        f"## Data\n\n{data['images']} cells of {data['subjects']} subjects from {sources}, digest "
        f"`{info.data_digest[:12]}`; the audit found {_pairs(audit)} that show one cell, and "
        f"joined subjects into patients ({sum(len(group) > 1 for group in audit['groups'])} of several subjects). "
        f"{_counted(data.get('refused'), 'images were refused')}; a cell has no "
        f"other data that could be missing. Labels are those of the source. Split by {evidence['split']['by']}, "
        f"{LEVELS[evidence['split']['by']]}, digest `{info.split_digest[:12]}`.\n\n" + "\n".join(rows)
    )


def _pairs(audit: dict[str, Any]) -> str:
    """How many pairs of images the audit found, and of which kinds."""
    kinds = Counter(finding["kind"] for finding in of_images(audit["findings"]))
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{kinds.total()} pairs of images ({told})" if told else "no pair of images"


def _counted(number: int | None, what: str) -> str:
    return f"An unknown number of {what}" if number is None else f"{number} {what}"


def _methods(info: ModelInfo, evidence: dict[str, dict[str, Any]]) -> str:
    """How the model was built and measured, as far as it is the same for every run or stands in its parameters."""
    shape, train = info.preprocessing, evidence["params"].get("train", {})
    knobs = evidence["params"].get("evaluate", {})
    calibrating = CALIBRATED_ON[evidence["metrics"]["calibration"]["on"]]
    apart = "sides that share patients" if evidence["split"]["leaky"] else "patients that are kept apart"
    return (
        f"## How it was measured\n\nDevelopment and evaluation in one, retrospective, on {apart}: "
        f"{who_chose(train)}, {calibrating} fit temperature and thresholds, test patients are read once. "
        "The only predictors are the pixels of "
        f"one cell: the centred square of {shape.crop} px at fixed scale, resized to {shape.size} px and normalised. "
        f"Class imbalance: what weighs the same in training is the {train.get('balance', 'unknown')}; the fitted "
        f"temperature and thresholds let every patient weigh the same. {ensemble(train)}\n\n"
        "Figures over cells at a probability of one half and at the threshold that the same patients chose; over "
        "patients; discrimination (AUROC, average precision), calibration (expected calibration error, Brier score, "
        "reliability), decisions. Intervals of 95 % from "
        f"{knobs.get('resamples', 'the')} draws of whole patients. Against baselines on image statistics, which are "
        "three numbers of size in a logistic regression and all statistics in boosted trees: a paired bootstrap over "
        "patients and a permutation test that swaps two models' answers patient by patient, with Holm's correction "
        "over the baselines."
    )


def ensemble(train: dict[str, Any]) -> str:
    """Whether several models answer, or what several steps left in one, by the parameters of the training.

    >>> ensemble({"architecture": "resnet50", "average": 0.0})
    'No ensemble.'
    >>> ensemble({"architecture": "resnet50", "average": 0.99})
    'No ensemble of networks; the weights are a moving average of those after each step (train.average 0.99).'
    """
    if train.get("fusion") != "scores":
        if train.get("fit") == "logistic" or not train.get("average"):
            return "No ensemble."
        return (
            "No ensemble of networks; the weights are a moving average of those after each step (train.average "
            f"{train['average']})."
        )
    return (
        f"An ensemble of {' and '.join(READ_BY_STAGES[train['architecture']])} in one graph: the last layer of each is "
        "fitted by itself, and what counts is the mean of their log odds, each over a temperature that suits its "
        "answers to training patients held out."
    )


def who_chose(train: dict[str, Any]) -> str:
    """What train and validation patients had to do with the final weights, by the parameters of the training.

    >>> who_chose({"keep": "last"})
    "train patients fit the weights, of which the last epoch's are kept, validation patients choose nothing"
    >>> who_chose({"keep": "best", "fit": "logistic"}).split(", ")[-1]
    'validation patients choose nothing'
    """
    if train.get("fit") == "logistic":
        return (
            "train patients fit the last layer and, some of them held out in turn, choose how strongly it is "
            "regularised, validation patients choose nothing"
        )
    if train.get("keep") == "last":
        return "train patients fit the weights, of which the last epoch's are kept, validation patients choose nothing"
    return "train patients fit the weights, validation patients stop the training and choose the epoch"


def _row(name: str, figure: dict[str, float]) -> str:
    return (
        f"| {name.replace('_', ' ')} | {fixed(figure['value'])} | {fixed(figure['low'])} to {fixed(figure['high'])} |"
    )


def _results(evidence: dict[str, dict[str, Any]]) -> str:
    metrics, few = evidence["metrics"], min(_tested(evidence).values()) < FEWEST_TESTED
    counts, bar = metrics["counts"], metrics["size_baseline"]["auroc"]
    rows = ["| figure | value | 95 % interval by patient |", "|---|---|---|"]
    rows += [_row(name, metrics["cells"][name]) for name in SHOWN if name in metrics["cells"]]
    rows += [_row(f"patients: {name}", figure) for name, figure in metrics["patients"].items()]
    chosen = metrics["operating"]
    rows += [
        _row(f"at the chosen threshold {fixed(chosen['threshold'])}: {name}", chosen["cells"][name])
        for name in ("sensitivity", "specificity")
        if name in chosen["cells"]
    ]
    rows.append(_row("three size numbers alone: AUROC", bar))
    matched = metrics["size_matched"]["network"]
    if matched is not None:
        rows.append(_row("AUROC within quarters of cell area", matched))
    return (
        f"## Results\n\n{counts['cells']} cells of {counts['groups']} patients"
        f"{seen_before(leaky=metrics['leaky'], unknown_start=_unknown_start(evidence))}. "
        f"{against_sizes(metrics, few=few)}\n\n" + "\n".join(rows) + "\n\n" + _comparisons(metrics)
    )


def against_sizes(metrics: dict[str, Any], *, few: bool) -> str:
    """Whether the network is worth more than three size numbers, by the interval of the difference: two values alone
    may differ by chance. few: whether fewer patients than `FEWEST_TESTED` are behind it, when the interval may, too."""
    found = size_difference(metrics)
    if found is None:
        return "**Whether the network beats a logistic regression on three size numbers is not known.**"
    figures = change_told({"value": found.difference, "low": found.low, "high": found.high})
    said = (
        f"The network {found.verdict} a logistic regression on three size numbers (AUROC {figures}, 95 % interval by "
        "patient)"
    )
    advised = BEATS_BY_FEW if few and found.verdict == BEATS else ADVISED[found.verdict]
    return advised.format(said)


def _comparisons(metrics: dict[str, Any]) -> str:
    rows = [
        "| network less baseline | difference | 95 % interval by patient | p, Holm over the baselines |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {row['baseline']}: {row['metric'].replace('_', ' ')} | {fixed(row['difference'], sign=True)} | "
        f"{fixed(row['low'], sign=True)} to {fixed(row['high'], sign=True)} | {fixed(row['p_holm'], 4)} |"
        for row in metrics["comparisons"]
    ]
    return "\n".join(rows)


def _decisions(info: ModelInfo, metrics: dict[str, Any]) -> str:
    calibration, conformal = metrics["calibration"], metrics["conformal"]
    rows = [
        "| class | calibration patients | aimed coverage | proven at least | coverage, mean over test patients | "
        "should lie in |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(conformal["classes"].items()):
        found = row["coverage_by_patient"]
        rows.append(
            f"| `{name}` | {row['calibration_patients']} | {fixed(1 - row['aimed_error'])} | "
            f"{fixed(1 - row['guaranteed_error'])} | {fixed(found['value'])} "
            f"({fixed(found['low'])} to {fixed(found['high'])}) | {expected_told(row)}, "
            f"{'as it does' if row['inside'] else '**as it does not**'} |"
        )
    border = border_told(calibration)
    return (
        f"## Decisions\n\nTemperature {fixed(info.temperature)}, fitted on {CALIBRATED_ON[calibration['on']]}: "
        f"expected calibration error {fixed(calibration['ece_before'])} before and {fixed(calibration['ece_after'])} "
        f"after, on test patients. {f'**{border}** ' if border else ''}A cell is `all` from a probability of "
        f"{fixed(info.thresholds.all)} upwards, `hem` up to {fixed(info.thresholds.hem)}, and referred to a person "
        "between. "
        f"These limits are conformal with the patient as the unit: of the cells of a new patient a share of "
        f"{conformal['error']:g} at most is to be decided against their class, on average over patients, or what the "
        "number of calibration patients allows; more coverage than that is no fault:\n\n" + "\n".join(rows)
    )


def _engines(info: ModelInfo, compared_on: str) -> str:
    rows = [
        "| engine | cells | labels that differ from float32 | decisions that differ | largest difference | times "
        "as fast as torch-f32 |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {found.cells} | {percent(found.flip_rate)} | {_percent(found.decision_flip_rate)} | "
        f"{fixed(found.largest_difference)} | {'unknown' if found.speed is None else fixed(found.speed, 2)} |"
        for name, found in sorted(info.precision.items())
    ]
    told = " ".join(filter(None, [compared_on, "Speed in batches, on the machine that made this package."]))
    return f"## Engines\n\n{told}\n\n" + "\n".join(rows)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else percent(share)


def _drift(drift: dict[str, Any]) -> str:
    enough = "" if drift["enough_groups"] else " Too few were answered to rely on that rate for what the network says."
    return (
        f"## Drift reference\n\nImage statistics of {drift['cells']} cells of {drift['groups']} patients, and answers "
        f"to {drift['answered_groups']} of them by fits that had not seen these. Thresholds for a false-alarm rate of "
        f"{percent(drift['false_alarm_rate'])} a window.{enough}"
    )


def _made(info: ModelInfo, evidence: dict[str, dict[str, Any]]) -> str:
    start = _start(evidence)
    # A card that names epochs and augmentation of a last layer that was fitted at once would tell of what never was.
    read = read_knobs(evidence["params"].get("train", {}))
    knobs = ", ".join(f"{name} {value}" for name, value in sorted(read.items()) if value != "")
    return (
        f"## How it was made\n\nRun `{info.run_id}`, code `{info.git_commit or 'unknown'}`, pinned packages "
        f"`{info.lock_digest[:12] or 'unknown'}`, trained {info.created}. Parameters: `evidence/params.json`"
        f"{f'; of the training: {knobs}' if knobs else ''}."
        f"{f' {initial_weights.told(start)}' if start else ''}"
    )
