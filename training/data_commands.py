"""The commands `blastwatch data ...`: each parses its options, calls one operation and prints what came of it."""

from pathlib import Path

import click

from blastwatch.console import json_option, print_json, say

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def data() -> None:
    """Import, draw, audit, split and show data sets of cells."""


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["cnmc", "folder", "table"]), required=True, help="What SOURCE is.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the manifest.")
@click.option("--source-name", help="Name of the collection; default: C-NMC, or the name of the folder or table.")
@click.option("--subject-pattern", help="For --kind folder: a regular expression with a group named subject.")
@json_option
def import_(
    source: Path, kind: str, out: Path, source_name: str | None, subject_pattern: str | None, as_json: bool
) -> None:
    """Read the cells of SOURCE once and write their manifest.

    \b
    cnmc    the C-NMC 2019 download, in either layout
    folder  a tree with folders all/ and hem/; a folder per person below them
    table   a CSV or Parquet file with the columns path, label, subject; paths inside its folder;
            or a folder with one such file

    Images that cannot be used are listed in refused.csv, and the rest goes on.
    """
    from training.importing import import_cells

    done = import_cells(
        source,
        out,
        kind=kind,
        work_folder=Path.cwd(),
        source_name=source_name,
        subject_pattern=subject_pattern,
    )
    facts = done.facts
    for refusal in done.refused[:5]:
        say(f"Refused {refusal.path}: {refusal.message}")
    if len(done.refused) > 5:
        say(f"... and {len(done.refused) - 5} more; all of them are in {out / 'refused.csv'}.")
    for why, count in facts["skipped"].items():
        say(f"Left aside {count} images: {why}.")
    if as_json:
        print_json(facts)
        return
    labels = ", ".join(f"{count} {label}" for label, count in sorted(facts["labels"].items()))
    say(f"Imported {facts['images']} cells ({labels}) of {facts['subjects']} subjects into {out}.")


@data.command()
@click.option("--patients", type=int, required=True, help="Number of patients; two in five are healthy.")
@click.option("--cells", type=int, required=True, help="Number of cells of each patient.")
@click.option("--seed", type=int, required=True, help="The same seed draws the same patients.")
@click.option("--out", type=FOLDER, required=True, help="New or empty folder.")
@click.option("--duplicates", type=int, default=2, show_default=True, help="Pairs of patients given one equal image.")
@json_option
def synth(patients: int, cells: int, seed: int, out: Path, duplicates: int, as_json: bool) -> None:
    """Draw a synthetic cohort in the layout of C-NMC. No patient is behind it."""
    from training.synthesis import synthesise

    marker = synthesise(out, patients=patients, cells=cells, seed=seed, duplicates=duplicates)
    if as_json:
        print_json(marker)
    else:
        say(f"Drew {patients * cells} synthetic cells of {patients} patients into {out}.")


@data.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, required=True, help="Folder for the restained images (BMP).")
@click.option("--strength", type=float, default=1.0, show_default=True, help="0: as it was; 1: another laboratory.")
@json_option
def restain(sources: tuple[Path, ...], out: Path, strength: float, as_json: bool) -> None:
    """Give cells another stain: what a changed laboratory looks like to the monitor.

    SOURCES are image files or folders. The background stays black, and the shape of the cells as it was.
    """
    from training.staining import restain_files

    done = restain_files(list(sources), out, strength=strength)
    for refused in done.refused:
        say(f"Refused {refused}")
    if as_json:
        print_json({"written": done.written, "refused": len(done.refused), "strength": strength})
    else:
        say(f"Wrote {done.written} images in another stain (strength {strength:g}) into {out}.")


@data.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for audit.json; default: FOLDER.")
@click.option("--split", type=FOLDER, help="A split to hold against the findings; exit code 3 where one crosses it.")
@json_option
def audit(folder: Path, out: Path | None, split: Path | None, as_json: bool) -> None:
    """Find cells that the imported data set FOLDER holds twice, and the patients that they tie together.

    Copies are found though they were saved anew, rescaled, shifted, turned, mirrored or brightened.
    """
    from blastwatch.errors import LeakFound
    from blastwatch.manifest import read_cells, read_split
    from training.audit import audit_cells, write_audit
    from training.near_duplicates import near_duplicates

    cells = read_cells(folder)
    near = near_duplicates(cells.root, cells.rows)
    found = audit_cells(cells, near, split=read_split(folder, split) if split else None)
    path = write_audit(found, out or folder)
    tied = [group for group in found.groups if len(group) > 1]
    if as_json:
        print_json(found.to_dict())
    else:
        for group in tied:
            say(f"One group: {', '.join(group)}")
        say(f"{found.images} images, {len(found.findings)} findings, {len(found.groups)} groups. Written to {path}.")
    if found.leak:
        raise LeakFound(
            f"The split in {split} parts what belongs together: of the findings in {path}, some cross it. Make it "
            f"anew, by group: blastwatch data split {folder} --audit {out or folder} --out {split}"
        )


@data.command()
@click.argument("folder", type=FOLDER)
@click.option("--audit", "audit_folder", type=FOLDER, required=True, help="Folder of audit.json.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the split.")
@click.option(
    "--params",
    type=click.Path(path_type=Path),
    default="params.yaml",
    show_default=True,
    help="File of parameters.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a parameter: split.seed=2.")
@json_option
def split(folder: Path, audit_folder: Path, out: Path, params: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Split the data set FOLDER by groups of patients into train, validation, calibration and test."""
    from blastwatch.manifest import SIDES, read_cells
    from training.audit import read_audit
    from training.parameters import load_parameters
    from training.splitting import split_cells, write_split

    parameters = load_parameters(params, overrides).split
    cells = read_cells(folder)
    rows = split_cells(cells, read_audit(audit_folder, cells), parameters)
    facts = write_split(rows, cells, parameters, out)
    if facts["leaky"]:
        say("Split by image: cells of one patient stand on several sides, so its scores say little about new patients.")
    if as_json:
        print_json(facts)
        return
    for side in SIDES:
        counts = facts["sides"][side]
        told = ", ".join(f"{count['cells']} {label} of {count['groups']} groups" for label, count in counts.items())
        say(f"{side:12s} {told}")


@data.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Folder for the packed cells.")
@click.option("--params", type=click.Path(path_type=Path), default="params.yaml", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a parameter: image.size=128.")
@json_option
def pack(folder: Path, out: Path, params: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Decode and crop every cell of the data set FOLDER once, for training and evaluation."""
    from blastwatch.images import Preprocessing
    from blastwatch.manifest import read_cells
    from training.pack import write_pack
    from training.parameters import load_parameters

    image = load_parameters(params, overrides).image
    facts = write_pack(read_cells(folder), Preprocessing(crop=image.crop, size=image.size), out)
    if as_json:
        print_json(facts)
    else:
        say(f"Packed {facts['cells']} cells at {facts['size']} px into {out}.")


@data.command()
@click.argument("folder", type=FOLDER)
@json_option
def show(folder: Path, as_json: bool) -> None:
    """Show what the imported data set FOLDER holds."""
    from blastwatch.manifest import read_cells
    from training.data_card import data_card, data_card_text

    card = data_card(read_cells(folder))
    if as_json:
        print_json(card)
    else:
        click.echo(data_card_text(card))
