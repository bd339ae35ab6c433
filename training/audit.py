"""The audit: images that stand twice, labels that contradict each other, and the groups of subjects that tie.

A cell that stands in a data set twice, under two subjects, ties them: one of the names is wrong, or the two are one
person. Whatever the truth, the subjects form one group, and a split keeps a group on one side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.digests import json_digest
from blastwatch.errors import DataError
from blastwatch.manifest import AUDIT, STATISTICS, Cells, read_json, read_rows, write_json
from training.near_duplicates import Pair
from training.oddities import Alike, Oddity


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
    """What the audit found. groups: every subject once, alone or with those it is tied to, by findings or by links.
    links: subjects that the user says are one patient. odd, alike: for a person to judge, they tie nothing.
    parted, leak: of the split that was given, the findings of the kind `subject`, and whether anything crosses it; they
    say nothing of the data set, so `write_audit` leaves them out."""

    images: int
    data_digest: str
    findings: list[Finding]
    groups: list[list[str]]
    links: list[list[str]] = field(default_factory=list)
    odd: list[Oddity] = field(default_factory=list)
    alike: list[Alike] = field(default_factory=list)
    parted: list[Finding] = field(default_factory=list)
    leak: bool = field(default=False)

    @property
    def shown(self) -> list[Finding]:
        """The findings of the data set, then those of the split."""
        return [*self.findings, *self.parted]

    def of_data(self) -> dict[str, Any]:
        """What `audit.json` says of the data set, whatever split was held against it."""
        return {
            "images": self.images,
            "findings": [finding.to_dict() for finding in self.findings],
            "groups": self.groups,
            "links": self.links,
            "odd": [odd.to_dict() for odd in self.odd],
            "alike": [pair.to_dict() for pair in self.alike],
        }

    @property
    def ties_digest(self) -> str:
        """SHA-256 over groups and links: another one deals other groups."""
        return json_digest([self.groups, _in_order(self.links)])

    def to_dict(self) -> dict[str, Any]:
        """What `data audit --json` prints."""
        return {**self.of_data(), "findings": [finding.to_dict() for finding in self.shown], "leak": self.leak}


def check_links(audit: Audit, links: Sequence[Sequence[str]], folder: Path) -> None:
    """Raise `DataError` where `audit.links` of the parameters are others than those that the audit in `folder` tied by:
    patients that were linked since would be parted."""
    wanted, tied = _in_order(links), _in_order(audit.links)
    if wanted != tied:
        raise DataError(
            f"Expected audit.links as the audit in {folder} had them, {tied}, but the parameters say {wanted}. Run "
            "blastwatch data audit anew with the same parameters, or give both the same --set audit.links."
        )


def _in_order(links: Sequence[Sequence[str]]) -> list[list[str]]:
    return sorted(sorted(link) for link in links)


def audit_cells(
    cells: Cells,
    near: Iterable[Pair],
    *,
    links: Sequence[Sequence[str]] = (),
    odd: Sequence[Oddity] = (),
    alike: Sequence[Alike] = (),
    split: pd.DataFrame | None = None,
) -> Audit:
    """Look for what would make a split dishonest.

    Args:
        near: what `near_duplicates` found in these cells.
        links: lists of subjects that are known to be one patient each. A link of one place to another needs no image.
        odd, alike: what `training.oddities` found; they are handed on.
        split: rows of `blastwatch.manifest.read_split`, to be checked against the findings and links.

    Raises:
        DataError: where a link names a subject that the data set does not have.
    """
    findings = duplicates(cells.rows) + [Finding(kind="near", a=a, b=b, score=score) for a, b, score in near]
    subjects = dict(zip(cells.rows["path"], cells.rows["subject"], strict=True))
    ties = [(subjects[found.a], subjects[found.b]) for found in findings]
    groups = connected(subjects.values(), [*ties, *_linked(links, set(subjects.values()))])
    parted, leak = [], False
    if split is not None:
        parted = parted_subjects(split)
        sides = split.drop_duplicates(["subject", "side"]).groupby("subject")["side"].agg(set)
        torn = any(len(set().union(*sides[list(link)])) > 1 for link in links)
        leak = torn or bool(parted or crossing(findings, split))
    return Audit(
        images=len(cells.rows),
        data_digest=cells.digest,
        findings=findings,
        groups=groups,
        links=[sorted(link) for link in links],
        odd=list(odd),
        alike=list(alike),
        parted=parted,
        leak=leak,
    )


def _linked(links: Sequence[Sequence[str]], known: set[str]) -> list[tuple[str, str]]:
    unknown = sorted({subject for link in links for subject in link} - known)
    if unknown:
        raise DataError(
            f"Expected the subjects of audit.links to be among those of the data set but got {', '.join(unknown)}. "
            "Correct or remove these links."
        )
    return [(link[0], subject) for link in links for subject in link[1:]]


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


def crossing(findings: Iterable[Finding], split: pd.DataFrame) -> list[Finding]:
    """The findings whose two images stand on two sides of the split (rows with `path` and `side`)."""
    sides = dict(zip(split["path"], split["side"], strict=True))
    return [found for found in findings if sides[found.a] != sides[found.b]]


def contradicting(findings: Iterable[Finding], rows: pd.DataFrame) -> list[Finding]:
    """The findings whose two images carry two labels (rows with `path` and `label`): one of these is wrong, whether the
    pixels are equal or the image was saved anew; or the two are no pair."""
    labels = dict(zip(rows["path"], rows["label"], strict=True))
    return [found for found in findings if labels[found.a] != labels[found.b]]


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


def write_audit(audit: Audit, statistics: pd.DataFrame, out: Path) -> Path:
    """Write `statistics.parquet`, and `audit.json`: what is true of the data set, and the digest of the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    statistics.to_parquet(out / STATISTICS, index=False)
    write_json(out / AUDIT, {**audit.of_data(), "data_digest": audit.data_digest})
    return out / AUDIT


def read_statistics(folder: Path) -> pd.DataFrame:
    """The image statistics that an audit wrote beside `audit.json`, by `path`; of equal images the first has them.

    Raises:
        DataError: where they are missing or damaged.
    """
    return read_rows(folder / STATISTICS, made_by=f"blastwatch data audit FOLDER --out {folder}")


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
        findings=[Finding(**finding) for finding in of_images(facts["findings"])],
        groups=facts["groups"],
        links=facts["links"],
        odd=[Oddity(**odd) for odd in facts["odd"]],
        alike=[Alike(**pair) for pair in facts["alike"]],
    )


def of_images(findings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The findings of an `audit.json` that say something of two images.

    Before Blastwatch left them out, an audit that was held against a split wrote the subjects it parts among them, and
    whoever read it counted these as images that show one cell, long after that split was gone.
    """
    return [finding for finding in findings if finding["kind"] != "subject"]
