"""The import: read every image of a source once, and write the manifest that all later steps start from."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import PIL

from blastwatch.console import progress
from blastwatch.errors import DataError, ImageRejected
from blastwatch.images import MAX_BYTES, decode, pixel_digest
from blastwatch.manifest import COLUMNS, IMPORT, MANIFEST, REFUSED, manifest_digest, write_json
from training.sources import Candidate, Listing, Refusal, any_synthetic, list_cnmc, list_folder
from training.tables import list_table

KINDS = ("cnmc", "folder", "table")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did: the manifest's rows (`COLUMNS`), the refused images, and the facts of `import.json`."""

    rows: pd.DataFrame
    refused: list[Refusal]
    facts: dict[str, Any]


def import_cells(
    source: Path,
    out: Path,
    *,
    kind: str,
    work_folder: Path | None = None,
    source_name: str | None = None,
    subject_pattern: str | None = None,
) -> Imported:
    """Read the images of a source and write `manifest.parquet`, `refused.csv` and `import.json` into `out`.

    Images that cannot be used are refused by name and the rest goes on. The same images give the same bytes in all
    three files.

    Args:
        source: the folder of images, or the table.
        kind: one of `KINDS`.
        work_folder: where source and `out` both lie below it, the images' place is written relative to `out`, so
            that the folder can move; otherwise as an absolute path.
        source_name: what the column `source` says; default: C-NMC, or the name of the folder or table.
        subject_pattern: for `folder`, a regular expression with a group `subject`.

    Raises:
        DataError: where the source is missing, a table lacks columns, or no image is left.
    """
    listing = list_source(source, kind=kind, source_name=source_name, subject_pattern=subject_pattern)
    records, unreadable = _read_all(listing)
    refused = sorted([*listing.refused, *unreadable], key=lambda refusal: (refusal.path, refusal.message))
    if not records:
        raise DataError(_nothing_left(source, kind, listing, refused))
    rows = pd.DataFrame(records, columns=list(COLUMNS)).sort_values("path", ignore_index=True)
    facts = {
        "root": _written_root(listing.root, out, work_folder),
        "kind": kind,
        "images": len(rows),
        "refused": len(refused),
        "skipped": listing.skipped,
        "subjects": int(rows["subject"].nunique()),
        "labels": {str(label): int(count) for label, count in rows["label"].value_counts().items()},
        "sources": {str(name): int(count) for name, count in rows["source"].value_counts().items()},
        "digest": manifest_digest(rows),
        "synthetic": any_synthetic(listing.root / candidate.path for candidate in listing.candidates),
        "decoder": f"pillow {PIL.__version__}",
    }
    _write(out, rows, refused, facts)
    return Imported(rows=rows, refused=refused, facts=facts)


def list_source(
    source: Path, *, kind: str, source_name: str | None = None, subject_pattern: str | None = None
) -> Listing:
    """What a source of one of `KINDS` offers, without reading an image."""
    if kind == "cnmc":
        return list_cnmc(source, name=source_name or "C-NMC")
    if kind == "folder":
        return list_folder(source, name=source_name or source.resolve().name, subject_pattern=subject_pattern)
    if kind == "table":
        return list_table(source, name=source_name or source.stem)
    raise ValueError(f"Expected `kind` to be one of {', '.join(KINDS)} but got {kind!r}")


def read_image(root: Path, candidate: Candidate) -> dict[str, Any] | Refusal:
    """One row of the manifest, or why the image is refused."""
    path = root / candidate.path
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageRejected("too-large", f"Expected at most {MAX_BYTES} bytes but got {size}.")
        data = path.read_bytes()
        pixels = decode(data)
    except ImageRejected as error:
        return Refusal(path=candidate.path, reason=error.reason, message=str(error))
    except OSError as error:
        return Refusal(path=candidate.path, reason="unreadable", message=f"The file cannot be read: {error.strerror}.")
    return {
        "path": candidate.path,
        "label": candidate.label,
        "subject": candidate.subject,
        "source": candidate.source,
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "pixel_sha256": pixel_digest(pixels),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }


def _read_all(listing: Listing) -> tuple[list[dict[str, Any]], list[Refusal]]:
    records: list[dict[str, Any]] = []
    refused: list[Refusal] = []
    for result in progress(_results(listing), total=len(listing.candidates), what="Reading images"):
        if isinstance(result, Refusal):
            refused.append(result)
        else:
            records.append(result)
    return records, refused


def _results(listing: Listing) -> Iterator[dict[str, Any] | Refusal]:
    # Threads suffice: Pillow and hashlib let go of the interpreter while they work. A result is a row of text, so
    # nothing large piles up.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(lambda candidate: read_image(listing.root, candidate), listing.candidates)


def _nothing_left(source: Path, kind: str, listing: Listing, refused: list[Refusal]) -> str:
    if refused:
        first = refused[0]
        return f"No image of {source} could be used: {len(refused)} refused, the first {first.path}: {first.message}"
    if listing.skipped:
        told = ", ".join(f"{count} of the {why}" for why, count in listing.skipped.items())
        return f"No image of {source} has a label: left aside were {told}."
    wanted = {
        "cnmc": "the C-NMC download, with folders fold_K/all and fold_K/hem",
        "folder": "folders named all and hem with images in them",
        "table": "rows with path, label and subject",
    }
    return f"Expected {wanted[kind]} but found no image in {source}."


def _written_root(root: Path, out: Path, work_folder: Path | None) -> str:
    absolute_root, absolute_out = root.absolute(), out.absolute()
    if work_folder is not None:
        work = work_folder.absolute()
        if absolute_root.is_relative_to(work) and absolute_out.is_relative_to(work):
            return Path(os.path.relpath(absolute_root, absolute_out)).as_posix()
    return absolute_root.as_posix()


def _write(out: Path, rows: pd.DataFrame, refused: list[Refusal], facts: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(out / MANIFEST, index=False)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason", "message"])
    writer.writerows([refusal.path, refusal.reason, refusal.message] for refusal in refused)
    (out / REFUSED).write_text(text.getvalue(), encoding="utf-8")
    write_json(out / IMPORT, facts)
