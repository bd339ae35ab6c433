"""Leaks planted into a data set of real cells: copies of cells, under new subjects, on the other side of a split."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from blastwatch.manifest import Cells
from tests.copies import COPIES, SAME_PIXELS
from training.audit import audit_cells
from training.looks import look
from training.near_duplicates import near_duplicates

BYTE_COPY, SHARED = "byte copy", "shared patient"
KINDS = (SHARED, BYTE_COPY, *COPIES)
EXACT = (SHARED, BYTE_COPY, *SAME_PIXELS)


@dataclass(frozen=True)
class Planted:
    """kinds: by path of the planted image. originals: the path that each was made of."""

    kinds: dict[str, str]
    originals: dict[str, str]


def plant(root: Path, paths: Sequence[str], count: int, *, seed: int) -> Planted:
    """Write `count` copies below `root` in C-NMC's naming, in turn of each of `KINDS`, under subjects of their own.

    A shared patient is no image of its own but a cell of a known subject that stands on the other side of the split.
    """
    chosen = random.Random(seed).sample(sorted(paths), count)
    kinds, originals = {}, {}
    for number, path in enumerate(chosen):
        kind = KINDS[number % len(KINDS)]
        source = root / path
        label = source.stem.rsplit("_", 1)[1]
        folder = source.parent
        if kind == SHARED:
            target = source
        elif kind == BYTE_COPY:
            target = folder / f"UID_9{number:04d}_1_1_{label}{source.suffix}"
            shutil.copy(source, target)
        else:
            target = folder / f"UID_9{number:04d}_1_1_{label}.{'jpg' if kind == 'JPEG 90' else 'bmp'}"
            image = Image.open(source).convert("RGB")
            if kind == "JPEG 90":
                image.save(target, quality=90)
            else:
                COPIES[kind](image).save(target)
        name = target.relative_to(root).as_posix()
        kinds[name], originals[name] = kind, path
    return Planted(kinds, originals)


def stopped(cells: Cells, planted: Planted) -> tuple[pd.Series, bool, int]:
    """What an audit against a split finds that puts what was planted on the side `test` and all else on `train`.

    Returns:
        share found by kind; whether the audit says that the split leaks; number of near findings that nobody planted.
    """
    sides = cells.rows["path"].isin(list(planted.kinds)).map({True: "test", False: "train"})
    near = near_duplicates(look(cells))
    audit = audit_cells(cells, near, split=cells.rows.assign(group=cells.rows["subject"], side=sides))
    tied = {name for finding in audit.findings for name in (finding.a, finding.b)}
    subjects = dict(zip(cells.rows["path"], cells.rows["subject"], strict=True))
    together = {subject: number for number, group in enumerate(audit.groups) for subject in group}
    parted = {subjects[finding.a] for finding in audit.parted}
    found = {
        name: subjects[name] in parted
        if kind == SHARED
        else name in tied and together[subjects[name]] == together[subjects[planted.originals[name]]]
        for name, kind in planted.kinds.items()
    }
    rows = pd.DataFrame({"kind": pd.Series(planted.kinds), "found": pd.Series(found)})
    unplanned = sum(
        finding.kind == "near" and not {finding.a, finding.b} & set(planted.kinds) for finding in audit.findings
    )
    return rows.groupby("kind", sort=False)["found"].mean(), audit.leak, unplanned
