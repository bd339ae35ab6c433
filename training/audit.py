"""The audit: equal images, labels that contradict each other, and the groups of subjects that must not be parted.

A cell that stands in a data set twice, under two subjects, ties them: one of the names is wrong, or the two are one
person. Whatever the truth, the subjects form one group, and a split keeps a group on one side.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.errors import DataError
from blastwatch.manifest import AUDIT, Cells, read_json, write_json
from training.near_duplicates import Pair


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Two images that belong together.

    kind: `exact`, equal pixels; `label`, equal pixels under two labels; `near`, one cell in two images, as
    `training.near_duplicates` finds it; `subject`, one subject on two sides of the split at hand. a, b: paths as in the
    manifest, a < b. score: how sure it is, 0 to 1; equal pixels are 1, a near duplicate has its correlation.
    """

    kind: str
    a: str
    b: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "a": self.a, "b": self.b, "score": self.score}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the audit found. groups: every subject once, alone or with those it is tied to. leak: a finding crosses
    the split that was given."""

    images: int
    data_digest: str
    findings: list[Finding]
    groups: list[list[str]]
    leak: bool = field(default=False)

    def to_dict(self) -> dict[str, Any]:
        """What `data audit --json` prints."""
        return {
            "images": self.images,
            "findings": [finding.to_dict() for finding in self.findings],
            "groups": self.groups,
            "leak": self.leak,
        }


def audit_cells(cells: Cells, near: Iterable[Pair], *, split: pd.DataFrame | None = None) -> Audit:
    """Look for what would make a split dishonest.

    Args:
        near: what `near_duplicates` found in these cells.
        split: rows of `blastwatch.manifest.read_split`, to be checked against the findings.
    """
    findings = duplicates(cells.rows) + [Finding(kind="near", a=a, b=b, score=score) for a, b, score in near]
    subjects = dict(zip(cells.rows["path"], cells.rows["subject"], strict=True))
    groups = connected(subjects.values(), ((subjects[found.a], subjects[found.b]) for found in findings))
    leak = False
    if split is not None:
        findings += parted_subjects(split)
        sides = dict(zip(split["path"], split["side"], strict=True))
        leak = any(sides[found.a] != sides[found.b] for found in findings)
    return Audit(
        images=len(cells.rows),
        data_digest=cells.digest,
        findings=findings,
        groups=groups,
        leak=leak,
    )


def duplicates(rows: pd.DataFrame) -> list[Finding]:
    """Images of equal pixels, whatever their file format or header.

    Of n equal images the first, in the order of paths, is paired with each of the others: n - 1 findings, which tie
    all of them.
    """
    found = []
    repeated = rows[rows.duplicated("pixel_sha256", keep=False)].sort_values("path")
    for _, equal in repeated.groupby("pixel_sha256", sort=False):
        paths, labels = list(equal["path"]), list(equal["label"])
        for path, label in zip(paths[1:], labels[1:], strict=True):
            kind = "exact" if label == labels[0] else "label"
            found.append(Finding(kind=kind, a=paths[0], b=path, score=1.0))
    return sorted(found, key=lambda finding: (finding.a, finding.b))


def parted_subjects(split: pd.DataFrame) -> list[Finding]:
    """Subjects that stand on more than one side of a split, each with the first image of two sides."""
    found = []
    for _, rows in split.sort_values("path").groupby("subject"):
        first = rows.drop_duplicates("side")["path"].tolist()
        found += [Finding(kind="subject", a=first[0], b=other, score=1.0) for other in first[1:]]
    return found


def connected(items: Iterable[str], ties: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The sets of items that ties hold together, directly or through others; each sorted, and sorted by their first."""
    ties = list(ties)
    parent = {item: item for item in chain(items, *ties)}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = parent[parent[item]]  # halves the way for the next question
            item = parent[item]
        return item

    for a, b in ties:
        parent[root(a)] = root(b)
    sets: dict[str, list[str]] = {}
    for item in sorted(parent):
        sets.setdefault(root(item), []).append(item)
    return sorted(sets.values())


def write_audit(audit: Audit, out: Path) -> Path:
    """Write `audit.json`: what `--json` prints, and the digest of the manifest that was looked at."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / AUDIT, {**audit.to_dict(), "data_digest": audit.data_digest})
    return out / AUDIT


def read_audit(folder: Path, cells: Cells) -> Audit:
    """Read `audit.json` of this data set.

    Raises:
        DataError: where it is missing or was made of another manifest.
    """
    made_by = f"blastwatch data audit {cells.folder} --out {folder}"
    facts = read_json(folder / AUDIT, made_by=made_by)
    if facts.get("data_digest") != cells.digest:
        raise DataError(f"{folder / AUDIT} was made of another manifest than {cells.folder}. Make it anew: {made_by}")
    return Audit(
        images=facts["images"],
        data_digest=facts["data_digest"],
        findings=[Finding(**finding) for finding in facts["findings"]],
        groups=facts["groups"],
        leak=facts["leak"],
    )
