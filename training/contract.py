"""The contract: what a data set must be before a split is made of it and an epoch is spent on it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.manifest import COLUMNS, Cells, write_json
from training.audit import Audit, contradicting
from training.data_parameters import ContractParameters
from training.subjects import shown, spelled_alike

CHECK = "check.json"
SHOWN = 20  # rows that a broken rule names
HEX = "[0-9a-f]{64}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule with its verdict. rows: what breaks it, the first `SHOWN` of them; go_on: what to do."""

    name: str
    passed: bool
    wanted: str
    got: str
    rows: list[str]
    go_on: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_contract(cells: Cells, audit: Audit, parameters: ContractParameters) -> list[Rule]:
    """Hold a data set against the contract; every rule is checked, whatever the ones before it said."""
    return [
        *_schema(cells.rows),
        _range(cells.rows, parameters),
        *_labels(cells.rows, audit, parameters),
        _spellings(cells.rows, audit),
        *_conflicts(cells.rows, audit, parameters),
        _refused(cells, parameters),
        _odd(audit, parameters),
    ]


def write_check(rules: list[Rule], cells: Cells, out: Path) -> Path:
    """Write `check.json`: the rules with their verdicts, and the digest of the manifest that was held against them."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / CHECK,
        {
            "data_digest": cells.digest,
            "passed": all(rule.passed for rule in rules),
            "rules": [rule.to_dict() for rule in rules],
        },
    )
    return out / CHECK


def _rule(name: str, wanted: str, broken: Iterable[str], go_on: str) -> Rule:
    rows = list(broken)
    return Rule(
        name=name, passed=not rows, wanted=wanted, got=f"{len(rows)} that break it", rows=rows[:SHOWN], go_on=go_on
    )


def _schema(rows: pd.DataFrame) -> Iterator[Rule]:
    again = "Correct the source, then import it anew."
    paths = rows["path"].astype(str)
    yield _rule("paths are unique", "each path once", sorted(set(paths[paths.duplicated()])), again)
    text = [name for name in COLUMNS if name not in ("width", "height")]
    empty = (rows[text].fillna("").astype(str).map(str.strip) == "").any(axis=1)
    yield _rule("nothing is empty", f"text in {', '.join(text)}", paths[empty], again)
    known = rows["label"].isin(CLASS_NAMES)
    yield _rule("labels are known", f"one of {', '.join(CLASS_NAMES)}", paths[~known], again)
    digests = rows["file_sha256"].astype(str).str.fullmatch(HEX) & rows["pixel_sha256"].astype(str).str.fullmatch(HEX)
    yield _rule("digests are SHA-256", "64 hexadecimal digits", paths[~digests], "Import the source anew.")


def _range(rows: pd.DataFrame, parameters: ContractParameters) -> Rule:
    low, high = parameters.least_side, parameters.most_side
    fits = rows["width"].between(low, high) & rows["height"].between(low, high)
    return _rule(
        "frames are in range",
        f"width and height from {low} to {high} px",
        rows.loc[~fits, "path"],
        "Remove these images from the source, or widen contract.least_side and contract.most_side.",
    )


def _labels(rows: pd.DataFrame, audit: Audit, parameters: ContractParameters) -> Iterator[Rule]:
    group_of = {subject: group[0] for group in audit.groups for subject in group}
    groups = rows["subject"].map(group_of)
    for label in CLASS_NAMES:
        of_label = rows["label"] == label
        patients, cells = groups[of_label].nunique(), int(of_label.sum())
        for what, got, wanted in (
            ("patients", patients, parameters.least_patients),
            ("cells", cells, parameters.least_cells),
        ):
            yield Rule(
                name=f"enough {what} with the label {label}",
                passed=got >= wanted,
                wanted=f"at least {wanted}",
                got=str(got),
                rows=[] if got >= wanted else sorted(set(groups[of_label].dropna()))[:SHOWN],
                go_on=f"Import more {what} with the label {label}, or lower contract.least_{what}.",
            )


def _spellings(rows: pd.DataFrame, audit: Audit) -> Rule:
    """Subjects that the audit ties are one patient already, whatever they are called."""
    group_of = {subject: group[0] for group in audit.groups for subject in group}
    broken = [
        " and ".join(map(shown, alike))
        for alike in spelled_alike(rows["subject"].dropna().astype(str))
        if len({group_of.get(subject, subject) for subject in alike}) > 1
    ]
    return _rule(
        "subjects differ by more than spelling",
        "no two that differ only by case, leading zeros, blanks or the way a letter is encoded",
        broken,
        "They are one patient under two names: write them alike in the source and import it anew, or name them in "
        "audit.links and audit anew. If they are two, give one of them another name.",
    )


def _conflicts(rows: pd.DataFrame, audit: Audit, parameters: ContractParameters) -> Iterator[Rule]:
    broken = [f"{finding.a} and {finding.b}" for finding in audit.findings if finding.kind == "label"]
    yield _rule(
        "equal images carry one label",
        "no pair with two labels",
        broken,
        "One of the labels is wrong: correct or remove these images in the source, import and audit it anew.",
    )
    near = [finding for finding in audit.findings if finding.kind == "near"]
    judged = {frozenset(pair) for pair in parameters.two_cells}
    unjudged = [finding for finding in contradicting(near, rows) if frozenset((finding.a, finding.b)) not in judged]
    yield _rule(
        "near images carry one label",
        "no image of one cell with two labels",
        [f"{finding.a} and {finding.b}" for finding in unjudged],
        "Look at them in audit.html. One of the labels is wrong: correct or remove the image in the source, import and "
        "audit it anew. If they really show two cells, name the two paths in contract.two_cells; their patients stay "
        "one group.",
    )


def _refused(cells: Cells, parameters: ContractParameters) -> Rule:
    refused, images = int(cells.facts["refused"]), len(cells.rows)
    share = refused / max(refused + images, 1)
    return Rule(
        name="few images were refused",
        passed=share <= parameters.most_refused,
        wanted=f"at most {parameters.most_refused:.1%} of the images",
        got=f"{share:.1%}: {refused} of {refused + images}",
        rows=[],
        go_on=f"Look into {cells.folder / 'refused.csv'}, mend or remove those images, or raise contract.most_refused.",
    )


def _odd(audit: Audit, parameters: ContractParameters) -> Rule:
    odd = sorted({odd.path for odd in audit.odd})
    share = len(odd) / max(audit.images, 1)
    return Rule(
        name="few images are odd",
        passed=share <= parameters.most_odd,
        wanted=f"at most {parameters.most_odd:.1%} of the images",
        got=f"{share:.1%}: {len(odd)} of {audit.images}",
        rows=[] if share <= parameters.most_odd else odd[:SHOWN],
        go_on="Look at them in audit.html, remove those that are no single cells, or raise contract.most_odd.",
    )
