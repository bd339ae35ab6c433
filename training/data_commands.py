"""The commands `blastwatch data ...`: each parses its options, calls one operation and prints what came of it."""

from pathlib import Path

import click

from blastwatch.console import json_option, print_json, say
from training.options import FILE, FOLDER, PARAMS, parameter_options, set_option


@click.group()
def data() -> None:
    """Import, draw (synth), audit, split and show sets of cells."""


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["cnmc", "folder", "table"]), required=True, help="What SOURCE is.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the manifest.")
@click.option("--source-name", help="Name of the collection; default: C-NMC, or the name of the folder or table.")
@click.option("--subject-pattern", help="For --kind folder: a regular expression with a group named subject.")
@click.option("--fresh", is_flag=True, help="Read every image, also those that an earlier import read.")
@json_option
def import_(
    source: Path,
    kind: str,
    out: Path,
    source_name: str | None,
    subject_pattern: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Read the cells of SOURCE once and write their manifest.

    \b
    cnmc    the C-NMC 2019 download, in either layout
    folder  a tree with folders all/ and hem/; a folder per person below them
    table   a CSV or Parquet file with the columns path, label, subject; paths inside its folder;
            or a folder with one such file

    Images that cannot be used are listed in refused.csv, and the rest goes on. What was read is remembered under
    BLASTWATCH_HOME: an import that was stopped goes on, and one of unchanged files reads none of them.
    """
    from blastwatch.folders import check_folder
    from blastwatch.settings import load
    from training.importing import import_cells

    check_folder(out, "--out")  # before every image is read for it
    home = load().home
    if not fresh:
        check_folder(home, "BLASTWATCH_HOME")
    done = import_cells(
        source,
        out,
        kind=kind,
        work_folder=Path.cwd(),
        source_name=source_name,
        subject_pattern=subject_pattern,
        memory=None if fresh else home / "imports.db",
    )
    facts = done.facts
    if done.known:
        say(f"{done.known} images are unchanged since an earlier import and were not read again.")
    for refusal in done.refused[:5]:
        say(f"Refused {refusal.path}: {refusal.message}")
    if len(done.refused) > 5:
        say(f"... and {len(done.refused) - 5} more; all of them are in {out / 'refused.csv'}.")
    for why, count in facts["skipped"].items():
        say(f"Left aside {count}: {why}.")
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
@click.option(
    "--duplicates", type=int, help="Pairs of patients given one equal image.  [default: 2, or as many as there can be]"
)
@json_option
def synth(patients: int, cells: int, seed: int, out: Path, duplicates: int | None, as_json: bool) -> None:
    """Draw a synthetic cohort in the layout of C-NMC. No patient is behind it."""
    from training.synthesis import synthesise

    marker = synthesise(out, patients=patients, cells=cells, seed=seed, duplicates=duplicates)
    if as_json:
        print_json(marker)
    else:
        say(f"Drew {patients * cells} synthetic cells of {patients} patients into {out}.")


@data.command(short_help="Give cells the stain of a changed laboratory.")
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


@data.command(short_help="Find cells that stand in FOLDER twice, and whom they tie.")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for audit.json and audit.html; default: FOLDER.")
@click.option("--split", type=FOLDER, help="A split to hold against the findings; exit code 3 where one crosses it.")
@click.option("--params", type=FILE, help=f"File of parameters; default: {PARAMS} where there is one.")
@set_option
@json_option
def audit(
    folder: Path, out: Path | None, split: Path | None, params: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Find cells that the imported data set FOLDER holds twice, and the patients that they tie together.

    Copies of single cells on black are found though they were saved anew, rescaled, shifted, turned, mirrored or
    brightened; of images without a dark background most shifted and cropped ones are missed. Images that do not look
    like the rest are named too. audit.html shows every finding side by side.
    """
    from blastwatch.errors import LeakFound
    from blastwatch.manifest import read_cells, read_split
    from training.audit import audit_cells, contradicting, write_audit
    from training.audit_page import write_page
    from training.looks import look
    from training.near_duplicates import near_duplicates
    from training.oddities import alike_subjects, background_told, oddities, without_background
    from training.parameters import load_parameters

    if params is None and Path(PARAMS).is_file():
        params = Path(PARAMS)
    links = load_parameters(params, overrides).audit.links
    cells = read_cells(folder)
    rows = read_split(folder, split) if split else None
    looks = look(cells)
    statistics = looks.table()
    found = audit_cells(
        cells,
        near_duplicates(looks),
        links=links,
        odd=oddities(cells.rows, statistics),
        alike=alike_subjects(cells.rows, statistics),
        split=rows,
    )
    path = write_audit(found, statistics, out or folder)
    page = write_page(found, cells, out or folder, split=rows)
    if as_json:
        print_json(found.to_dict())
    else:
        for group in found.groups:
            if len(group) > 1:
                say(f"One group: {', '.join(group)}")
        say(
            f"{found.images} images, {len(found.shown)} findings, {len(found.odd)} oddities, {len(found.groups)} "
            f"groups. Written to {path} and, with pictures, to {page}."
        )
        if disputed := len(contradicting(found.findings, cells.rows)):
            say(f"{disputed} of the findings carry two labels, of which one is wrong; they come first in {page}.")
        if told := background_told(without_background(found.odd)):
            say(told)
    if found.leak:
        raise LeakFound(
            f"The split in {split} parts what belongs together: of the findings in {page}, some cross it. Make it "
            f"anew, by group: blastwatch data split {folder} --audit {out or folder} --out {split}"
        )


@data.command(short_help="Hold FOLDER against the contract of params.yaml.")
@click.argument("folder", type=FOLDER)
@click.option("--audit", "audit_folder", type=FOLDER, required=True, help="Folder of audit.json.")
@click.option("--out", type=FOLDER, required=True, help="Folder for check.json.")
@parameter_options
@json_option
def check(folder: Path, audit_folder: Path, out: Path, params: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Hold the data set FOLDER against the contract of params.yaml; exit code 3 where it breaks a rule."""
    from blastwatch.errors import CheckRefused
    from blastwatch.manifest import read_cells
    from training.audit import check_links, read_audit
    from training.contract import check_contract, write_check
    from training.parameters import load_parameters

    parameters = load_parameters(params, overrides)
    cells = read_cells(folder)
    found = read_audit(audit_folder, cells)
    check_links(found, parameters.audit.links, audit_folder)
    rules = check_contract(cells, found, parameters.contract)
    path = write_check(rules, cells, out)
    if as_json:
        print_json([rule.to_dict() for rule in rules])
    broken = [rule for rule in rules if not rule.passed]
    for rule in broken:
        shown = f" First: {', '.join(rule.rows[:5])}." if rule.rows else ""
        say(f"Broken: {rule.name}. Expected {rule.wanted} but got {rule.got}.{shown} {rule.go_on}")
    if broken:
        raise CheckRefused(
            f"{folder} breaks {len(broken)} of {len(rules)} rules of its contract: "
            f"{', '.join(rule.name for rule in broken)}. All that is known of them stands in {path}."
        )
    say(f"{folder} keeps all {len(rules)} rules of its contract. Written to {path}.")


@data.command(short_help="Split FOLDER by groups of patients into four sides.")
@click.argument("folder", type=FOLDER)
@click.option("--audit", "audit_folder", type=FOLDER, required=True, help="Folder of audit.json.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the split.")
@parameter_options
@json_option
def split(folder: Path, audit_folder: Path, out: Path, params: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Split the data set FOLDER by groups of patients into train, validation, calibration and test."""
    from blastwatch.manifest import SIDES, read_cells
    from blastwatch.policy import load_policy
    from blastwatch.settings import load
    from training.audit import check_links, read_audit, read_statistics
    from training.cautions import promotion_cautions
    from training.keeping import kept_told
    from training.parameters import load_parameters
    from training.splitting import leak_told, split_cells, write_split

    read, policy = load_parameters(params, overrides), load_policy(load().policy)
    parameters, cells = read.split, read_cells(folder)
    found = read_audit(audit_folder, cells)
    check_links(found, read.audit.links, audit_folder)
    rows = split_cells(cells, found, parameters, read_statistics(audit_folder))
    facts = write_split(rows, cells, found, parameters, out)
    if facts["kept_subjects"]:
        say(kept_told(parameters.keep, facts["kept_subjects"]))
    if facts["leaky"]:
        say(leak_told(facts))
    for caution in promotion_cautions(rows, policy, calibrate_on=read.evaluate.calibrate_on):
        say(caution)
    if as_json:
        print_json(facts)
        return
    for side in SIDES:
        counts = facts["sides"][side]
        told = ", ".join(f"{count['cells']} {label} of {count['groups']} groups" for label, count in counts.items())
        say(f"{side:12s} {told}")


@data.command(short_help="Decode and crop every cell of FOLDER once.")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Folder for the packed cells.")
@parameter_options
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
@click.option("--audit", "audit_folder", type=FOLDER, help="Folder of audit.json: adds the stain and known leaks.")
@click.option("--html", type=FILE, help="Write the card as a page with a sheet of cells, too.")
@json_option
def show(folder: Path, audit_folder: Path | None, html: Path | None, as_json: bool) -> None:
    """Show what the imported data set FOLDER holds."""
    from blastwatch.manifest import read_cells
    from training.data_card import data_card, data_card_text, write_data_page

    cells = read_cells(folder)
    card = data_card(cells, audit_folder)
    if html:
        say(f"Written to {write_data_page(cells, card, html)}.")
    if as_json:
        print_json(card)
    else:
        click.echo(data_card_text(card))
