"""Which images a source offers, with label and subject: the C-NMC download, a tree of classes, or a table.

Nothing is decoded here. Each function gives a `Listing`: the images to read, the ones refused by their name or row, and
the ones left aside on purpose. Paths are relative to the listing's root, with forward slashes, in sorted order.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError, UsageError
from blastwatch.image_files import IMAGE_SUFFIXES, files_below
from training.subjects import one_spelling

CNMC_NAME = re.compile(r"UID_(?P<subject>[Hh]?\d+)_(?P<image>\d+)_(?P<cell>\d+)_(?P<label>all|hem)", re.ASCII)
FOLD = re.compile(r"fold_(\d+)", re.ASCII)
PART = re.compile(r"train|training|test|validation|val|fold_\d+", re.ASCII | re.IGNORECASE)
"""Folders above a class that are parts of a data set; nobody is called so."""
MARKER = "SYNTHETIC.json"
"""File that `blastwatch data synth` writes into the folder of a drawn cohort."""
MARKER_DEPTH = 5  # folders above an image in which the marker is looked for: cohort/C-NMC_training_data/fold_K/all/

PRELIMINARY_COLUMNS = ("Patient_ID", "new_names", "labels")
PRELIMINARY_LABELS = {"1": "all", "0": "hem"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One image to read. `path` is relative to the listing's root; `source` names the collection."""

    path: str
    label: str
    subject: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One image that is not taken. `reason` is one word: `name`, `label`, `subject`, `missing`, `outside`,
    `repeated`, `unreadable`, or a reason of `blastwatch.errors.ImageRejected`."""

    path: str
    reason: str
    message: str


@dataclass
class Listing:
    """What a source offers. `skipped` counts the images left aside on purpose, by why."""

    root: Path
    candidates: list[Candidate] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def refuse(self, path: str, reason: str, message: str) -> None:
        self.refused.append(Refusal(path=path, reason=reason, message=message))

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


def cnmc_subject(text: str) -> str:
    """The subject of a C-NMC id: `h3` and `H3` are one healthy person; `11` and `H11` are two people.

    Source: file names of C-NMC 2019, The Cancer Imaging Archive; 36 of them write the H in lower case.
    """
    return text.upper()


def image_files(root: Path, listing: Listing | None = None) -> Iterator[str]:
    """Paths of all image files below a folder, relative to it, sorted: those of `blastwatch.image_files.files_below`.

    Args:
        listing: is told of what was passed over and may have been meant: files of other suffixes, hidden ones, links.

    Raises:
        DataError: where a folder cannot be listed: a cohort without it would be another. Or a name is not in UTF-8, as
            those of the manifest are. With a listing, where links put one folder or image under two labels.
    """
    for path in _files(root, IMAGE_SUFFIXES, listing):
        if any("\ud800" <= letter <= "\udfff" for letter in path):
            raise DataError(f"Expected names of files and folders in UTF-8 but got {path!r} in {root}. Rename it.")
        yield path


def _files(root: Path, suffixes: tuple[str, ...], listing: Listing | None = None) -> Iterator[str]:
    aside, twice = (listing.skip, partial(_check_one_label, root)) if listing else (None, None)
    try:
        yield from files_below(root, suffixes, aside=aside, twice=twice)
    except OSError as error:
        raise DataError(f"Expected to list the folder {error.filename} but cannot: {error.strerror}.") from error


def _check_one_label(root: Path, link: PurePosixPath, read_as: PurePosixPath) -> None:
    one, other = _class_at(link.parts), _class_at(read_as.parts)
    if one >= 0 and other >= 0 and link.parts[one].lower() != read_as.parts[other].lower():
        raise DataError(
            f"Expected every folder and image of {root} under one label but {link} is a link to what is read as "
            f"{read_as} too. Remove the link that is wrong."
        )


def _class_at(folders: tuple[str, ...]) -> int:
    """Place of the last folder that is named as a class, -1 where none is."""
    return max((index for index, part in enumerate(folders) if part.lower() in CLASS_NAMES), default=-1)


def any_synthetic(images: Iterable[Path]) -> bool:
    """Whether any of the images lies in or below a folder that carries the marker of a drawn cohort.

    It is looked for above the images and not only in the source, so that a part of a cohort, or a table over it, is
    called synthetic too.
    """
    folders = {image.absolute().parent for image in images}
    above = {folder for start in folders for folder in (start, *start.parents)[:MARKER_DEPTH]}
    return any((folder / MARKER).is_file() for folder in above)


def list_cnmc(root: Path, *, name: str = "C-NMC") -> Listing:
    """The C-NMC 2019 download in the layout of The Cancer Imaging Archive or of Kaggle's copy.

    Training images are known by their file names, wherever they lie below `root`; the fold is the nearest folder
    `fold_K`. The preliminary test images take label and subject from their CSV. The final test set has no public
    labels and is left aside.

    Raises:
        DataError: where the folder is missing, or the preliminary test's CSV cannot be used.
    """
    _check_folder(root)
    listing = Listing(root=root)
    rows = _preliminary_rows(root)
    seen = set()
    for path in image_files(root, listing):
        file = PurePosixPath(path)
        folders = [part.lower() for part in (root.resolve() / path).parts[-6:-1]]
        matched = CNMC_NAME.fullmatch(file.stem)
        if matched:
            _add_training(listing, path, matched, folders, name)
        elif any("test_final" in part or part == "testing_data" for part in folders):
            listing.skip("final test set without public labels")
        elif any("test_prelim" in part or part == "validation_data" for part in folders) and not rows:
            listing.skip("preliminary test set without its CSV of labels")
        elif any("test_prelim" in part or part == "validation_data" for part in folders):
            seen.add(file.name)
            _add_preliminary(listing, path, rows.get(file.name), name)
        else:
            listing.refuse(path, "name", "Expected a name such as UID_11_2_3_all.bmp or UID_H11_2_3_hem.bmp.")
    for missing in sorted(set(rows) - seen):
        listing.refuse(missing, "missing", "The CSV of the preliminary test set names it, but there is no such image.")
    return listing


def _add_training(listing: Listing, path: str, matched: re.Match[str], folders: list[str], name: str) -> None:
    label = matched["label"]
    if folders and folders[-1] in CLASS_NAMES and folders[-1] != label:
        listing.refuse(path, "label", f"Expected the label of its folder, {folders[-1]}, but its name says {label}.")
        return
    folds = [fold[1] for part in folders if (fold := FOLD.fullmatch(part))]
    source = f"{name} fold {folds[-1]}" if folds else name
    subject = cnmc_subject(matched["subject"])
    listing.candidates.append(Candidate(path=path, label=label, subject=subject, source=source))


def _add_preliminary(listing: Listing, path: str, row: tuple[str, str] | None, name: str) -> None:
    if row is None:
        listing.refuse(path, "label", "The CSV of the preliminary test set does not name it.")
        return
    true_name, number = row
    label = PRELIMINARY_LABELS.get(number)
    matched = CNMC_NAME.fullmatch(PurePosixPath(true_name).stem)
    if label is None or (matched and matched["label"] != label):
        listing.refuse(path, "label", f"Its row in the CSV contradicts itself: {true_name!r} with label {number!r}.")
    elif not matched and not re.fullmatch(r"[Hh]?\d+", true_name):
        listing.refuse(path, "subject", f"Expected a name such as UID_11_2_3_all.bmp in the CSV but got {true_name!r}.")
    else:
        subject = cnmc_subject(matched["subject"] if matched else true_name)
        source = f"{name} preliminary test"
        listing.candidates.append(Candidate(path=path, label=label, subject=subject, source=source))


def _preliminary_rows(root: Path) -> dict[str, tuple[str, str]]:
    """Name of the image -> (true name, label as written), from every CSV of the preliminary test set below `root`."""
    rows: dict[str, tuple[str, str]] = {}
    for path in (root / found for found in _files(root, (".csv",))):
        if "prelim" not in path.name.lower():
            continue
        columns, table = _read_csv(path)
        missing = [column for column in PRELIMINARY_COLUMNS if column not in columns]
        if missing:
            raise DataError(f"Expected the columns {', '.join(PRELIMINARY_COLUMNS)} in {path}; "
                            f"{', '.join(missing)} missing. Take the CSV of the C-NMC download.")  # fmt: skip
        for row in table:
            image, told = (
                str(row["new_names"]).strip(),
                (str(row["Patient_ID"]).strip(), str(row["labels"]).strip()),
            )
            if rows.setdefault(image, told) != told:
                raise DataError(
                    f"Expected one row for {image} but {path} says {told[0]} with label {told[1]}, and a row "
                    f"before {rows[image][0]} with {rows[image][1]}. Remove the wrong one."
                )
    return rows


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            return list(table.fieldnames or ()), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a CSV in UTF-8: {error}. Take the CSV of the C-NMC download, or save it in "
            "UTF-8."
        ) from error


def list_folder(root: Path, *, name: str, subject_pattern: str | None = None) -> Listing:
    """A tree in which folders named `all` and `hem` hold the images of a class.

    The subject is, in this order: the group `subject` of `subject_pattern`, searched in the relative path; the folder
    between the class and the file; the subject of a C-NMC file name. One name under both classes is one person.
    An empty pattern is none.

    Raises:
        DataError: where the folder is missing, holds no class, or an image has no subject; or where, without a pattern,
            several folders may be the subject: slides would become patients, and the cells of one be parted.
        UsageError: where the pattern is no regular expression with a group `subject`.
    """
    _check_folder(root)
    pattern = _compile(subject_pattern)
    listing = Listing(root=root)
    nobody = []
    places: dict[tuple[tuple[str, ...], int], str] = {}
    for path in image_files(root, listing):
        folders = PurePosixPath(path).parts[:-1]
        at = _class_at(folders)
        if at < 0:
            listing.refuse(path, "label", "Expected it below a folder named all or hem.")
            continue
        above = tuple(part for part in folders[:at] if not PART.fullmatch(part))
        places.setdefault((above, len(folders) - at - 1), path)
        subject = _subject_of(path, folders[at + 1 :], pattern)
        if subject is None:
            nobody.append(path)
            continue
        label = folders[at].lower()
        listing.candidates.append(Candidate(path=path, label=label, subject=subject, source=name))
    if not pattern:
        _refuse_several(places)
    if nobody:
        raise DataError(
            f"Expected a subject for every image but found none for {len(nobody)}, the first being {nobody[0]}. Cells "
            "of one person must not be parted, so a subject is needed: put a folder per person between the class and "
            "the files (all/PERSON/cell.png), give --subject-pattern (import.subject_pattern in params.yaml), or "
            "import a table with the columns path, label, subject (--kind table)."
        )
    return listing


def _refuse_several(places: dict[tuple[tuple[str, ...], int], str]) -> None:
    """Args: places: of the folders above the class, parts left out, and the number of those between it and the file,
    the first path."""
    deep = [path for (_, between), path in places.items() if between > 1]
    below = [path for (_, between), path in places.items() if between]
    if deep:
        what, path = "several folders between the class and the file", deep[0]
    elif below and len({above for above, _ in places}) > 1:
        what, path = "folders of several names above the class and folders below it too", below[0]
    else:
        return
    raise DataError(
        "Expected one folder that can be the patient, as in all/PERSON/cell.png or train/all/PERSON/cell.png, but "
        f"found {what}, as in {path}. If a slide or a batch were taken for the patient, cells of one person would be "
        "parted. Say where the patient stands, by --subject-pattern or import.subject_pattern in params.yaml: "
        "'(?i)(^|/)(all|hem)/(?P<subject>[^/]+)/' for the folder right below the class, '(?P<subject>[^/]+)/[^/]+$' "
        "for the one that holds the files, '^(?P<subject>[^/]+)/' for the topmost one."
    )


def _subject_of(path: str, between: tuple[str, ...], pattern: re.Pattern[str] | None) -> str | None:
    if pattern:
        found = pattern.search(one_spelling(path))
        return (one_spelling(found["subject"] or "") or None) if found else None
    if between:
        return one_spelling(between[0]) or None
    matched = CNMC_NAME.fullmatch(PurePosixPath(path).stem)
    return cnmc_subject(matched["subject"]) if matched else None


def _compile(text: str | None) -> re.Pattern[str] | None:
    if not text:  # that of params.yaml is empty where there is none
        return None
    example = r"'(?P<subject>P\d+)_'"
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"--subject-pattern {text!r} is no regular expression: {error}. Example: {example}") from error
    if "subject" not in pattern.groupindex:
        raise UsageError(f"--subject-pattern {text!r} has no group named `subject`. Example: {example}")
    return pattern


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"Expected a folder of images but {root} is {'a file' if root.exists() else 'missing'}.")
