"""The import: read every image of a source once, and write the manifest that all later steps start from."""

import csv
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import PIL

from blastwatch.console import progress
from blastwatch.cores import cores
from blastwatch.errors import DataError, ImageRejected, UsageError
from blastwatch.image_files import in_words
from blastwatch.images import MAX_BYTES, decode, pixel_digest
from blastwatch.manifest import COLUMNS, IMPORT, MANIFEST, REFUSED, columns_digest, manifest_digest, write_json
from training.import_memory import Fact, ImportMemory, stamp
from training.sources import MARKER, Candidate, Listing, Refusal, any_synthetic, list_cnmc, list_folder
from training.steps import held
from training.tables import list_table

KINDS = ("cnmc", "folder", "table")
TOGETHER = 64  # images after which what was read is remembered


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did: the manifest's rows (`COLUMNS`), the refused images, the facts of `import.json`, and how many
    images were known from an earlier import and not read again."""

    rows: pd.DataFrame
    refused: list[Refusal]
    facts: dict[str, Any]
    known: int = 0


def import_cells(
    source: Path,
    out: Path,
    *,
    kind: str,
    work_folder: Path | None = None,
    source_name: str | None = None,
    subject_pattern: str | None = None,
    memory: Path | None = None,
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
        memory: SQLite file that remembers what was read, see `training.import_memory`; without one all is read.

    Raises:
        DataError: where the source is missing, a table lacks columns, some of the images are drawn and others are not,
            or no image is left.
    """
    listing = list_source(source, kind=kind, source_name=source_name, subject_pattern=subject_pattern)
    synthetic = _synthetic(listing)
    with ImportMemory(memory) if memory else nullcontext() as remembered:
        records, unreadable, known = _read_all(listing, remembered)
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
        "rows_digest": columns_digest(rows, COLUMNS),
        "synthetic": synthetic,
        "decoder": f"pillow {PIL.__version__}",
    }
    _write(out, rows, refused, facts)
    return Imported(rows=rows, refused=refused, facts=facts, known=known)


def list_source(
    source: Path, *, kind: str, source_name: str | None = None, subject_pattern: str | None = None
) -> Listing:
    """What a source of one of `KINDS` offers, without reading an image.

    Raises:
        UsageError: `subject_pattern` where the layout or the table itself names the patient.
    """
    if subject_pattern and kind != "folder":
        raise UsageError(
            f"Expected --subject-pattern (import.subject_pattern) with --kind folder alone, but got it with {kind}: "
            "there the subject is that of the download or of the column `subject`. Leave it empty."
        )
    if kind == "cnmc":
        return list_cnmc(source, name=source_name or "C-NMC")
    if kind == "folder":
        return list_folder(source, name=source_name or source.resolve().name, subject_pattern=subject_pattern)
    if kind == "table":
        return list_table(source, name=source_name or source.stem)
    raise ValueError(f"Expected `kind` to be one of {', '.join(KINDS)} but got {kind!r}")


def _synthetic(listing: Listing) -> bool:
    """Whether the images are drawn.

    Raises:
        DataError: where some are and others are not. Every card says one thing of all the cells of a data set, and
            either would be untrue of some.
    """
    one_of = {(listing.root / candidate.path).parent: candidate.path for candidate in listing.candidates}
    drawn = {path: any_synthetic([listing.root / path]) for path in sorted(one_of.values())}
    if len(set(drawn.values())) > 1:
        one, other = (next(path for path, found in drawn.items() if found is wanted) for wanted in (True, False))
        raise DataError(
            f"Expected all images of {listing.root} to be drawn, or none, but {one} lies below a {MARKER} and {other} "
            "does not. Import them apart."
        )
    return any(drawn.values())


def read_image(path: Path) -> Fact:
    """What the manifest says of a file: `file_sha256`, `pixel_sha256`, `width`, `height`; or the `reason` and `message`
    of its refusal."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # whoever reads it waits for somebody who writes, or has no end
            return {"reason": "unreadable", "message": "Expected a file but got a pipe, a socket or a device."}
        if state.st_size > MAX_BYTES:
            raise ImageRejected("too-large", f"Expected at most {MAX_BYTES} bytes but got {state.st_size}.")
        data = path.read_bytes()
        pixels = decode(data)
    except ImageRejected as error:
        return {"reason": error.reason, "message": str(error)}
    except OSError as error:
        return {"reason": "unreadable", "message": f"The file cannot be read: {error.strerror}."}
    return {
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "pixel_sha256": pixel_digest(pixels),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }


def _read_all(listing: Listing, memory: ImportMemory | None) -> tuple[list[dict[str, Any]], list[Refusal], int]:
    """Rows of the manifest, refusals, and how many of both were known."""
    records: list[dict[str, Any]] = []
    refused: list[Refusal] = []
    known = 0
    results = progress(_results(listing, memory), total=len(listing.candidates), what="Reading images")
    for candidate, fact, old in results:
        known += old
        if "reason" in fact:
            refused.append(Refusal(path=candidate.path, **fact))
        else:
            records.append({**asdict(candidate), **fact})
    return records, refused, known


def _results(listing: Listing, memory: ImportMemory | None) -> Iterator[tuple[Candidate, Fact, bool]]:
    """Every candidate with its fact, and whether that was known; remembered every `TOGETHER` candidates."""
    # Threads suffice: Pillow and hashlib let go of the interpreter while they work. A result is a row of text, so
    # nothing large piles up.
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        for start in range(0, len(listing.candidates), TOGETHER):
            some = listing.candidates[start : start + TOGETHER]
            stamps = {c.path: _stamp(listing.root / c.path) for c in some} if memory else {}
            known = memory.recall(listing.root, stamps) if memory else {}
            new = [candidate.path for candidate in some if candidate.path not in known]
            facts = dict(zip(new, pool.map(lambda path: read_image(listing.root / path), new), strict=True))
            # A file that changed while it was read gets a stamp that it no longer has, and is read again next time;
            # one that could not be read at all is not remembered, since its place may be back by then.
            if memory and facts:
                lasting = ((p, stamps[p], fact) for p, fact in facts.items() if fact.get("reason") != "unreadable")
                memory.keep(listing.root, lasting)
            for candidate in some:
                old = candidate.path in known
                yield candidate, known[candidate.path] if old else facts[candidate.path], old


def _stamp(path: Path) -> str:
    """Empty, which no file has, where the file cannot be looked at: reading it says why."""
    try:
        return stamp(path)
    except OSError:
        return ""


def _nothing_left(source: Path, kind: str, listing: Listing, refused: list[Refusal]) -> str:
    if refused:
        first = refused[0]
        return f"No image of {source} could be used: {len(refused)} refused, the first {first.path}: {first.message}"
    wanted = {
        "cnmc": "the C-NMC download, with folders fold_K/all and fold_K/hem",
        "folder": "folders named all and hem with images in them",
        "table": "rows with path, label and subject",
    }
    if listing.skipped:
        aside = in_words(listing.skipped)
        return f"Expected {wanted[kind]} but no image of {source} can be used: left aside were {aside}."
    return f"Expected {wanted[kind]} but found no image in {source}."


def _written_root(root: Path, out: Path, work_folder: Path | None) -> str:
    absolute_root, absolute_out = root.absolute(), out.absolute()
    if work_folder is not None:
        work = work_folder.absolute()
        relative = Path(os.path.relpath(absolute_root, absolute_out))
        leads_back = (absolute_out / relative).resolve() == absolute_root.resolve()  # it does not where `out` is a link
        if leads_back and absolute_root.is_relative_to(work) and absolute_out.is_relative_to(work):
            return relative.as_posix()
    return absolute_root.as_posix()


def _write(out: Path, rows: pd.DataFrame, refused: list[Refusal], facts: dict[str, Any]) -> None:
    """Each file is written aside and moved in whole; `import.json`, which the others are read by, comes last."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason", "message"])
    writer.writerows([refusal.path, refusal.reason, refusal.message] for refusal in refused)
    aside, lock = out / ".import", out / ".import.lock"
    with held(lock, f"Another import is writing into {out}. Wait for its end, or name another folder: --out."):
        shutil.rmtree(aside, ignore_errors=True)  # of an import that was killed here
        aside.mkdir()
        rows.to_parquet(aside / MANIFEST, index=False)
        (aside / REFUSED).write_text(text.getvalue(), encoding="utf-8")
        write_json(aside / IMPORT, facts)
        (out / IMPORT).unlink(missing_ok=True)
        for file in (MANIFEST, REFUSED, IMPORT):
            (aside / file).replace(out / file)
        aside.rmdir()
        lock.unlink()  # while it is held, see `training.checkpoint.alone_with`
