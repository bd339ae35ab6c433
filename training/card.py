"""The model card: what a reader must know before using a version, from the run's own facts (Mitchell et al. 2019,
doi:10.1145/3287560.3287596)."""

from typing import Any

from blastwatch import DISCLAIMER
from blastwatch.manifest import SIDES
from blastwatch.package import ModelInfo

# Below it a bootstrap over patients has too few distinct draws: with one patient a label, every draw is the same.
FEWEST_TESTED = 5

SHOWN = ("weighted_f1", "auroc", "sensitivity", "specificity", "accuracy", "brier", "ece", "referred")


def model_card(info: ModelInfo, evidence: dict[str, dict[str, Any]], drift: dict[str, Any]) -> str:
    """Markdown; `evidence` holds metrics, split, audit, data and params as they stand under `evidence/`."""
    parts = [
        f"# Model card: {info.architecture} on single blood cells\n\n{DISCLAIMER}",
        _warnings(info, evidence),
        "## Intended use\n\nResearch on images of single, segmented white blood cells of children: leukemic blast "
        "(`all`) or normal cell (`hem`). It reads cells, not patients, and makes no diagnosis. Whole fields, other "
        "stains and other kinds of image are meant to come back as `refer`.",
        _data(info, evidence),
        _results(evidence["metrics"]),
        _decisions(info, evidence["metrics"]),
        _engines(info),
        _drift(drift),
        f"## How it was made\n\nRun `{info.run_id}`, code `{info.git_commit or 'unknown'}`, pinned packages "
        f"`{info.lock_digest[:12] or 'unknown'}`, trained {info.created}. Parameters: `evidence/params.json`.",
        "## Limits\n\nIntervals are by patient and say little where few patients were tested. Cells of one "
        "laboratory say little about another's stain and scanner. The labels are those of the source.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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
    tested = {label: counts["groups"] for label, counts in evidence["split"]["sides"]["test"].items()}
    if min(tested.values()) < FEWEST_TESTED:
        found = ", ".join(f"{count} of `{label}`" for label, count in sorted(tested.items()))
        lines.append(
            f"> **Too few test patients** ({found}; at least {FEWEST_TESTED} of each are wanted). The intervals below "
            "are far too narrow and do not cover what another patient would show."
        )
    return "\n\n".join(lines)


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
        f"`{info.data_digest[:12]}`; the audit found {len(audit['findings'])} pairs of equal images and joined "
        f"their subjects into one patient each. Split by {evidence['split']['by']}, digest "
        f"`{info.split_digest[:12]}`.\n\n" + "\n".join(rows)
    )


def _row(name: str, figure: dict[str, float]) -> str:
    return f"| {name.replace('_', ' ')} | {figure['value']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} |"


def _results(metrics: dict[str, Any]) -> str:
    counts, bar = metrics["counts"], metrics["size_baseline"]["auroc"]
    rows = ["| figure | value | 95 % interval by patient |", "|---|---|---|"]
    rows += [_row(name, metrics["cells"][name]) for name in SHOWN if name in metrics["cells"]]
    rows += [_row(f"patients: {name}", figure) for name, figure in metrics["patients"].items()]
    rows.append(_row("three size numbers alone: AUROC", bar))
    beaten = metrics["cells"]["auroc"]["value"] > bar["value"]
    verdict = (
        "The network beats a logistic regression on three size numbers."
        if beaten
        else "**The network does not beat a logistic regression on three size numbers: do not use it.**"
    )
    return (
        f"## Results\n\n{counts['cells']} cells of {counts['groups']} patients that nothing before had read. {verdict}"
        "\n\n" + "\n".join(rows)
    )


def _decisions(info: ModelInfo, metrics: dict[str, Any]) -> str:
    before, after = metrics["calibration"]["ece_before"], metrics["calibration"]["ece_after"]
    return (
        f"## Decisions\n\nTemperature {info.temperature:.3f}, fitted on calibration patients: expected calibration "
        f"error {before:.3f} before and {after:.3f} after, on test patients. A cell is `all` from a probability of "
        f"{info.thresholds.all:.3f} upwards, `hem` up to {info.thresholds.hem:.3f}, and referred to a person between."
    )


def _engines(info: ModelInfo) -> str:
    rows = ["| engine | cells | labels that differ from float32 | largest difference |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {found.cells} | {found.flip_rate:.2%} | {found.largest_difference:.3f} |"
        for name, found in sorted(info.precision.items())
    ]
    return "## Engines\n\n" + "\n".join(rows)


def _drift(drift: dict[str, Any]) -> str:
    enough = "" if drift["enough_groups"] else " These are too few patients to rely on that rate."
    return (
        f"## Drift reference\n\n{drift['cells']} cells of {drift['groups']} patients not trained on; thresholds for a "
        f"false-alarm rate of {drift['false_alarm_rate']:.1%} a window.{enough}"
    )
