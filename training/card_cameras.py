"""What the model card says of another camera, and what card and report say of figures that test none."""

from collections.abc import Mapping
from typing import Any

from blastwatch.rounding import fixed, with_interval
from training.nuisances import STRENGTHS


def cameras_section(evidence: dict[str, dict[str, Any]]) -> str:
    """The card's section, Markdown."""
    found = evidence["metrics"].get("cameras")
    if not found:
        return "## Under another camera\n\nIt was not measured (`evaluate.camera_cells`)."
    rows = [
        "| the same cells | mean accuracy over patients | change, 95 % interval by patient | AUROC |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {_value(figures, 'mean_accuracy')} | {change} | {_value(figures, 'auroc')} |"
        for name, figures, change in (
            ("as they are", found["plain"], ""),
            *((row["name"].replace("_", " "), row["figures"], change_told(row["change"])) for row in found["rows"]),
        )
    ]
    return (
        f"## Under another camera\n\n{found['cells']} of the test cells, evenly of {found['patients']} patients, as "
        "they are and as another stain, camera or lamp would show them: each simulated at a strength that a person "
        "sees at a glance. Where the accuracy falls, the network is for the camera that it was trained with."
        f"{kept_from(found, evidence['params'].get('train', {}))}\n\n" + "\n".join(rows)
    )


def kept_from(cameras: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """A sentence on the figures that test nothing new, since the training looked at these cameras itself; "" where it
    did not.

    Args:
        cameras: of `training.robustness.camera_figures`; rows of before do not say whether they were simulated, and
            all of them were. train: the parameters of the training.
    """
    if not train.get("nuisances"):
        return ""
    others = [row["name"] for row in cameras["rows"] if not row.get("simulated", True)]
    kept = (
        " The last layer was kept from reading these same simulations (strengths "
        f"{' and '.join(f'{strength:g}' for strength in STRENGTHS)})"
    )
    if not others:
        return f"{kept}, so this is no test of an unseen camera."
    return (
        f"{kept}, but for those that were not simulated in training ({', '.join(others)}): these alone are a test of "
        "an unseen camera."
    )


def _value(figures: dict[str, Any], name: str) -> str:
    return fixed(figures[name]["value"]) if name in figures else "unknown"


def change_told(row: Mapping[str, float] | None, *, undefined: str = "unknown") -> str:
    """`-0.031 (-0.080 to +0.012)`, or `undefined` where it is not."""
    return undefined if row is None else with_interval(row, sign=True)
