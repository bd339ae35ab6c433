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
    r"""Read the cells of SOURCE once and write their manifest.

    \b
    cnmc    the C-NMC 2019 download, in either layout
    folder  a tree with folders all/ and hem/; a folder per person below them
    table   a CSV or Parquet file with the columns path, label, subject; paths inside its folder

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
