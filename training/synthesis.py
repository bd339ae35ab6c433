"""A synthetic cohort in the layout of C-NMC: what the demo, the tests and a first look run on. No patient is behind it.

Every patient has a style (stain, illumination, size, chromatin) of which little says which class the patient is of, and
all cells of the patient share it. A network can therefore score well on other cells of patients it has seen by knowing
the patient, which is the mistake that a split by patient exists to prevent; here it can be shown.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blastwatch.console import progress
from blastwatch.cores import cores
from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import write_json
from training.sources import MARKER
from training.synthesis_cell import Style, draw_cell

FOLDER = "C-NMC_training_data"
FOLDS = 3
HEALTHY_SHARE = 0.4  # of the patients; 26 of 73 subjects of C-NMC 2019 are healthy
CELLS_PER_IMAGE = 4  # cells that share an image number in the file names
DUPLICATES = 2
MAX_PATIENTS, MAX_CELLS = 2000, 2000
SAME_STYLE = 0  # last number of the seed of a style; cells count from 1


@dataclass(frozen=True, kw_only=True)
class Patient:
    """`number` counts within the class from 1; the subject of a healthy person starts with H, as in C-NMC."""

    label: str
    number: int

    @property
    def subject(self) -> str:
        return f"H{self.number}" if self.label == "hem" else str(self.number)

    @property
    def fold(self) -> int:
        return (self.number - 1) % FOLDS

    def path(self, cell: int) -> str:
        """Path of the cell (from 0) below the cohort's folder."""
        image, place = divmod(cell, CELLS_PER_IMAGE)
        name = f"UID_{self.subject}_{image + 1}_{place + 1}_{self.label}.bmp"
        return f"{FOLDER}/fold_{self.fold}/{self.label}/{name}"


def synthesise(out: Path, *, patients: int, cells: int, seed: int, duplicates: int | None = None) -> dict[str, Any]:
    """Draw a cohort into `out` and write its marker, `SYNTHETIC.json`.

    The same arguments give the same bytes, and a patient is the same whatever the size of the cohort, as long as the
    seed is. Of the patients two in five are healthy.

    Args:
        patients: number of patients, at least 2. cells: number of cells of each.
        seed: of the cohort, not negative.
        duplicates: pairs of patients of one class who are given one identical image, in place of the last cell of the
            second, so that the audit has something to find; None: `DUPLICATES`, or as many as there can be.

    Returns:
        What the marker says.

    Raises:
        DataError: where `out` exists and is not empty, or cannot be written.
        UsageError: where the numbers do not go together.
    """
    people = cohort(patients)
    if not 1 <= cells <= MAX_CELLS:
        raise UsageError(f"Expected 1 to {MAX_CELLS} cells a patient but got {cells}.")
    if seed < 0:
        raise UsageError(f"Expected a seed of 0 or more but got {seed}.")
    pairs = _plan_duplicates(people, duplicates)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"Expected a new or empty folder to draw into but {out} holds something. Choose another --out.")
    marker = {
        "synthetic": True,
        "patients": patients,
        "cells_per_patient": cells,
        "seed": seed,
        "duplicates": [[first.path(0), second.path(cells - 1)] for first, second in pairs],
    }
    try:
        _draw(out, people, pairs, cells=cells, seed=seed)
        write_json(out / MARKER, marker)
    except OSError as error:
        raise DataError(
            f"The cells cannot be written to {out}: {error.strerror or error}. Choose another --out."
        ) from error
    return marker


def _draw(out: Path, people: list[Patient], pairs: list[tuple[Patient, Patient]], *, cells: int, seed: int) -> None:
    """Draw every patient's cells and copy those that are in `pairs`. Raises `OSError`."""
    for folder in sorted({(out / person.path(0)).parent for person in people}):
        folder.mkdir(parents=True)
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        drawn = pool.map(partial(_draw_patient, out, cells=cells, seed=seed), people)
        for _ in progress(drawn, total=len(people), what="Drawing patients"):
            pass
    for first, second in pairs:
        shutil.copyfile(out / first.path(0), out / second.path(cells - 1))


def cohort(patients: int) -> list[Patient]:
    """The people of a cohort: two in five are healthy, and at least one of each class."""
    if not 2 <= patients <= MAX_PATIENTS:
        raise UsageError(f"Expected 2 to {MAX_PATIENTS} patients but got {patients}.")
    healthy = min(max(round(HEALTHY_SHARE * patients), 1), patients - 1)
    sick = [Patient(label="all", number=number) for number in range(1, patients - healthy + 1)]
    return sick + [Patient(label="hem", number=number) for number in range(1, healthy + 1)]


def _plan_duplicates(people: list[Patient], wanted: int | None) -> list[tuple[Patient, Patient]]:
    """Pairs of neighbours within a class, blasts and normal cells by turns; nobody is in two pairs."""
    by_label = {label: [person for person in people if person.label == label] for label in ("all", "hem")}
    pairs = {label: list(zip(persons[0::2], persons[1::2], strict=False)) for label, persons in by_label.items()}
    possible = sum(len(found) for found in pairs.values())
    if wanted is None:
        wanted = min(DUPLICATES, possible)
    if not 0 <= wanted <= possible:
        raise UsageError(
            f"Expected 0 to {possible} duplicates (--duplicates) among {len(people)} patients but got {wanted}."
        )
    order = sorted((place, label) for label, found in pairs.items() for place in range(len(found)))
    return [pairs[label][place] for place, label in order[:wanted]]


def _random(seed: int, person: Patient, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, ("all", "hem").index(person.label), person.number, number])


def _draw_patient(out: Path, person: Patient, *, cells: int, seed: int) -> None:
    style = draw_style(person.label, _random(seed, person, SAME_STYLE))
    for cell in range(cells):
        image = draw_cell(style, _random(seed, person, cell + 1))
        Image.fromarray(image).save(out / person.path(cell), format="BMP")


def draw_style(label: str, random: np.random.Generator) -> Style:
    """The style of one patient. Only size, nucleus share, chromatin and nucleoli depend on the class, with overlap."""
    blast = label == "all"
    size, share, coarse, fine, spots = random.standard_normal(5)
    stain, tone, light, warm, contrast = random.standard_normal(5)
    hue = random.standard_normal(3)
    density = (
        np.exp(0.06 * stain) * np.array([1.33, 2.24, 1.19]) * (1 + 0.03 * hue + 0.03 * tone * np.array([1, 0, -1]))
    )
    cytoplasm = density * np.array([0.82, 0.74, 0.74]) * np.exp(0.06 * random.standard_normal(3))
    gain = np.exp(0.05 * light) * (1 + 0.03 * warm * np.array([1, 0, -1]))
    clumps = np.exp(0.3 * coarse) * (0.8 if blast else 1.15)  # normal chromatin is clumped, a blast's is open and fine
    grain = np.exp(0.35 * fine) * (1.0 if blast else 0.9)
    return Style(
        radius=(108 if blast else 93) * float(np.exp(0.07 * size)),
        radius_spread=0.10,
        elongation=0.085 * float(np.exp(0.3 * random.standard_normal())),
        roughness=0.025 * float(np.exp(0.3 * random.standard_normal())),
        nucleus_share=float(np.clip((0.90 if blast else 0.80) + 0.035 * share, 0.5, 0.96)),
        nucleus=_triple(density),
        cytoplasm=_triple(cytoplasm),
        illumination=_triple(gain),
        slope=(0.06 * float(random.standard_normal()), 0.06 * float(random.standard_normal())),
        chromatin=(0.009 * float(grain), 0.016 * float(grain), 0.030 * float(clumps), 0.030 * float(clumps)),
        tint=_triple(0.018 * np.exp(0.3 * contrast) * random.standard_normal(3)),
        nucleoli=(3.2 if blast else 1.4) * float(np.exp(0.35 * spots)),
        depth=0.16 * float(np.exp(0.25 * random.standard_normal())),
        noise=0.5,
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
