"""The commands `blastwatch crossvalidate`, `compare` and `search`: what compares many trainings."""

from pathlib import Path
from typing import Any

import click

from blastwatch.console import json_option, print_json, say
from blastwatch.rounding import fixed, with_interval
from blastwatch.settings import load
from training.options import FILE, FOLDER, folders, parameter_options

SHOWN = {"cells": ("auroc", "weighted_f1"), "patients": ("mean_accuracy", "worst_quarter_accuracy")}
OBJECTIVES = ("mean_accuracy", "worst_quarter_accuracy", "auroc", "loss")


@click.command()
@click.option("--architectures", default="", metavar="NAME,NAME", help="A recipe for each; else train.architecture.")
@click.option("--recipe", "named", multiple=True, metavar="NAME:KEY=VALUE,...", help="Such as strong:train.augment=2.")
@click.option(
    "--reference",
    default="",
    metavar="NAME",
    help="What is held against the others; the first if not given, with --choose the chosen ones.",
)
@click.option("--choose", is_flag=True, help="Each fold also chooses a recipe by patients it does not test.")
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True,
    help="Trainings at a time, for a GPU that one leaves waiting, or for many cores.",
)  # fmt: skip
@parameter_options
@folders(cells="data/cells", audit="data/audit", pack="data/pack", out="results/crossvalidation")
@json_option
def crossvalidate(
    architectures: str,
    named: tuple[str, ...],
    reference: str,
    choose: bool,
    processes: int,
    params: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    **places: Path,
) -> None:
    """Train and test recipes on every fold of patients (split.folds) and compare them; goes on where it stopped."""
    from blastwatch.manifest import read_cells
    from training.audit import read_audit
    from training.baselines import BASELINES
    from training.folds import check_folds
    from training.pack import read_pack_facts
    from training.recipes import CHOSEN, read_recipes, reference_of

    taken = ("baselines", CHOSEN, *BASELINES)
    recipes = read_recipes(params, overrides, architectures=architectures, named=named, taken=taken)
    check_folds(recipes[0].parameters.split.folds)
    reference = reference_of(recipes, reference, choose=choose)
    manifest = read_cells(places["cells"])
    read_audit(places["audit"], manifest)
    read_pack_facts(places["pack"], manifest)
    from training.choosing import times_taken  # with torch: what is wrong so far is told before
    from training.crossvalidation import PAGE, run_crossvalidation

    facts = run_crossvalidation(recipes, load(), **places, reference=reference, choose=choose, processes=processes)
    if as_json:
        print_json(facts)
        return
    kind = "synthetic cells" if facts["synthetic"] else "cells"
    say(f"{facts['counts']['cells']} {kind} of {facts['counts']['groups']} patients; 95 % intervals by patient")
    for name, recipe in facts["recipes"].items():
        for part, metrics in SHOWN.items():
            for metric in metrics:
                row = recipe[part][metric]
                say(f"  {name:<20} {metric:<24} {with_interval(row)}")
        if row := recipe["size_matched"]:
            told = "auroc within equal sizes"
            say(f"  {name:<20} {told:<24} {with_interval(row)}")
    if CHOSEN in facts["recipes"]:
        counted = times_taken(facts["recipes"][CHOSEN]["folds"])
        say("  chosen: " + ", ".join(f"{name} in {count}" for name, count in counted.items()) + " of the folds")
    _say_comparison(facts["reference"], facts["comparison"])
    say(f"All of it: {places['out'] / PAGE}")


def _say_comparison(reference: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["metric"] in SHOWN["cells"] + SHOWN["patients"]:
            figures = with_interval({**row, "value": row["difference"]}, sign=True)
            p, p_holm = fixed(row["p"], 4), fixed(row["p_holm"], 4)
            say(f"  {reference} - {row['baseline']:<12} {row['metric']:<24} {figures}, p {p}, by Holm {p_holm}")


@click.command()
@click.argument("evaluated", nargs=-1, required=True, type=FOLDER)
@click.option("--reference", default="", metavar="NAME", help="Folder name of what is held against the others.")
@parameter_options
@json_option
def compare(
    evaluated: tuple[Path, ...], reference: str, params: Path, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Compare what `blastwatch evaluate` wrote into several folders: the same test cells, patient by patient.

    The first folder is held against the others unless --reference names one; p values are adjusted over the others.
    """
    from training.cautions import cautions, read_answers, read_origins
    from training.parameters import load_parameters

    parameters = load_parameters(params, overrides).evaluate
    tables, origins = read_answers(evaluated), read_origins(evaluated)
    reference = reference or evaluated[0].resolve().name
    from training.pooled import compare as compare_tables  # with torch: what is wrong so far is told before

    rows = compare_tables(tables, reference, parameters)
    for caution in cautions(origins):
        say(caution)
    if as_json:
        print_json({"reference": reference, "evaluations": origins, "comparison": rows})
        return
    cells = tables[reference]
    kind = "synthetic cells" if any(row["synthetic"] for row in origins.values()) else "cells"
    say(f"{len(cells)} {kind} of {cells['group'].nunique()} patients; 95 % intervals by patient")
    _say_comparison(reference, rows)


@click.command()
@click.option("--trials", type=click.IntRange(1), required=True, help="Trials in all, those done before included.")
@click.option("--range", "ranges", multiple=True, metavar="KEY=LOW..HIGH[:log]", help="Or KEY=A|B|C; may be repeated.")
@click.option("--ranges", "file", type=FILE, help="YAML file of KEY: LOW..HIGH[:log].")
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), default=OBJECTIVES[0], show_default=True,
    help="Figure on validation patients.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the sampler.")
@parameter_options
@folders(cells="data/cells", split="data/split", pack="data/pack", out="results/search")
@json_option
def search(
    trials: int,
    ranges: tuple[str, ...],
    file: Path | None,
    objective: str,
    seed: int,
    params: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    **places: Path,
) -> None:
    """Search parameters of training on validation patients alone (Optuna); goes on where it was stopped."""
    from blastwatch.manifest import read_cells, read_split
    from training.pack import read_pack_facts
    from training.parameters import load_parameters
    from training.search_space import read_space

    space = read_space(file, ranges)
    load_parameters(params, overrides)
    read_split(places["cells"], places["split"])
    read_pack_facts(places["pack"], read_cells(places["cells"]))
    from training.search import Plan, run_search  # with torch: what is wrong so far is told before

    plan = Plan(
        params=params,
        overrides=overrides,
        space=space,
        trials=trials,
        objective=objective,
        seed=seed,
    )
    facts = run_search(plan, load(), **places)
    if as_json:
        print_json(facts)
        return
    states = ", ".join(f"{number} {state}" for state, number in facts["states"].items())
    best = facts["best"]
    figure = fixed(best["value"], 4)
    say(f"{states}. Best {objective} on validation patients: {figure} in trial {best['trial']}. Take it with")
    say("  " + " ".join(f"--set {key}={value}" for key, value in best["parameters"].items()))
