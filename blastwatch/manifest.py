"""The manifest: one row per cell image of an imported data set, and which side of the split it stands on.

Each step writes a folder of its own, since DVC forbids two stages to write one:

    cells/   manifest.parquet   one row per image, the columns of `COLUMNS`
             refused.csv        path, reason, message of every image that was refused
             import.json        where the images are, kind, counts, the manifest's digests, whether they are synthetic
    audit/   audit.json         findings and groups
             statistics.parquet how every image looks, in numbers
             audit.html         the findings with their pictures
    split/   split.parquet      path, subject, group, side, pixel_sha256
             split.json         counts per side, seed, the split's digests
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.digests import rows_digest
from blastwatch.errors import DataError

MANIFEST = "manifest.parquet"
REFUSED = "refused.csv"
IMPORT = "import.json"
AUDIT = "audit.json"
STATISTICS = "statistics.parquet"
SPLIT = "split.parquet"
SPLIT_FACTS = "split.json"

COLUMNS = ("path", "label", "subject", "source", "file_sha256", "pixel_sha256", "width", "height")
"""path: relative to the source folder, forward slashes; label: `all` or `hem`; subject: the id in the source;
source: name of the collection; width, height in pixels."""

KEPT_COLUMNS = ("path", "subject", "group", "side", "pixel_sha256")
"""Of split.parquet: by subject, path and pixels a later split knows the patients of this one."""

SIDES = ("train", "validation", "calibration", "test")
"""train fits the weights, validation stops training, calibration fits temperature and thresholds, test is read once."""


@dataclass(frozen=True)
class Cells:
    """An imported data set: `rows` has `COLUMNS`; `facts` is what `import.json` says; `folder` is where it stands."""

    folder: Path
    rows: pd.DataFrame
    facts: dict[str, Any]

    @property
    def root(self) -> Path:
        """Folder that the paths of the manifest are relative to."""
        root = Path(self.facts["root"])
        return root if root.is_absolute() else (self.folder / root).resolve()

    @property
    def digest(self) -> str:
        return str(self.facts["digest"])

    @property
    def synthetic(self) -> bool:
        return bool(self.facts["synthetic"])


def manifest_digest(rows: pd.DataFrame) -> str:
    """SHA-256 over path, label, subject and pixel digest of every row, independent of their order."""
    return columns_digest(rows, ("path", "label", "subject", "pixel_sha256"))


def split_digest(rows: pd.DataFrame) -> str:
    """SHA-256 over path, group and side of every row, independent of their order."""
    return columns_digest(rows, ("path", "group", "side"))


def columns_digest(rows: pd.DataFrame, columns: Sequence[str]) -> str:
    """SHA-256 over these columns of every row, independent of their order."""
    return rows_digest(rows[list(columns)].astype(str).itertuples(index=False, name=None))


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is the same for the same value, so that DVC sees no change where there is none."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, made_by: str) -> dict[str, Any]:
    """Read a JSON object that an earlier step wrote; `made_by` is the command to name where it is missing or damaged.

    Raises:
        DataError: where there is no such file, it may not be read, or it does not hold a JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing. Make it with: {made_by}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise _locked(path, error) from error
    except ValueError as error:  # of JSON and of UTF-8
        raise DataError(f"{path} is damaged or cut off: {error}. Make it anew: {made_by}") from error
    if not isinstance(value, dict):
        raise DataError(f"Expected a JSON object in {path} but got {type(value).__name__}. Make it anew: {made_by}")
    return value


def read_rows(path: Path, *, made_by: str) -> pd.DataFrame:
    """Read a Parquet table that an earlier step wrote; `made_by` is the command to name where it is missing or damaged.

    Raises:
        DataError: where there is no such file, or it cannot or may not be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing. Make it with: {made_by}")
    try:
        return pd.read_parquet(path)
    except PermissionError as error:
        raise _locked(path, error) from error
    except (ValueError, OSError) as error:  # Arrow's errors are of both
        raise DataError(f"{path} is damaged or cut off: {error}. Make it anew: {made_by}") from error


def _locked(path: Path, error: PermissionError) -> DataError:
    return DataError(
        f"Expected to read {path} but may not: {error.strerror or error}. Let this user read it; it is not damaged."
    )


def read_cells(folder: Path) -> Cells:
    """Open an imported data set and check its schema.

    Raises:
        DataError: naming what is missing or wrong and the command that makes it.
    """
    made_by = f"blastwatch data import SOURCE --kind KIND --out {folder}"
    facts = read_json(folder / IMPORT, made_by=made_by)
    path = folder / MANIFEST
    rows = read_rows(path, made_by=made_by)
    check_columns(rows, COLUMNS, path)
    unknown = sorted(set(rows["label"]) - set(CLASS_NAMES))
    if unknown:
        raise DataError(f"Expected the labels {', '.join(CLASS_NAMES)} in {path} but got {', '.join(unknown)}.")
    # An import of an earlier program has no digest of whole rows; the other one does not cover source and size.
    whole = columns_digest(rows, COLUMNS) if "rows_digest" in facts else None
    if manifest_digest(rows) != facts["digest"] or whole != facts.get("rows_digest"):
        raise DataError(f"{path} was changed after its import: its digest is not the one in {IMPORT}. Import it anew.")
    return Cells(folder=folder, rows=rows, facts=facts)


def read_split(cells: Path, split: Path) -> pd.DataFrame:
    """The manifest's rows with the columns `group` and `side`.

    Args:
        cells: folder of the imported data set. split: folder that `blastwatch data split` wrote.

    Raises:
        DataError: where either is missing or was changed, or the split belongs to another manifest.
    """
    imported = read_cells(cells)
    made_by = f"blastwatch data split {cells} --audit AUDIT --out {split}"
    facts = read_json(split / SPLIT_FACTS, made_by=made_by)
    path = split / SPLIT
    sides = read_rows(path, made_by=made_by)
    check_columns(sides, ("path", "group", "side"), path)
    if facts["data_digest"] != imported.digest or split_digest(sides) != facts["digest"]:
        raise DataError(f"{path} does not belong to the manifest in {cells}, or was changed. Make it anew: {made_by}")
    return imported.rows.merge(sides[["path", "group", "side"]], on="path", validate="one_to_one")


def check_columns(rows: pd.DataFrame, wanted: tuple[str, ...], where: Path) -> None:
    """Raise `DataError` naming the columns that a table lacks."""
    missing = [name for name in wanted if name not in rows.columns]
    if missing:
        raise DataError(
            f"Expected the columns {', '.join(wanted)} in {where} but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; it has {', '.join(map(str, rows.columns))}."
        )
