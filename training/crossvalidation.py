"""Group k-fold cross-validation: every patient is tested exactly once, by a network that never saw any of their cells.

A folder of a cross-validation holds

    folds/K/                the split whose test side is fold K
    recipes/NAME/K/train    weights, curves and facts of one training; beside it evaluate, its answers to fold K
    recipes/baselines/      the answers of `training.baselines`
    embeddings/             what networks whose last layer alone is fitted make of each cell, for all recipes and folds
    predictions.parquet     every answer of every recipe, `training.pooled.POOLED_COLUMNS`
    crossvalidation.json    all figures; crossvalidation.html shows them

and MLflow one run, with a child a recipe and fold. What is done stays done while its inputs are the same.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.console import say
from blastwatch.digests import json_digest
from blastwatch.manifest import Cells, read_cells, write_json
from blastwatch.settings import Settings
from training.audit import check_links, read_audit, read_statistics
from training.baselines import BASELINES
from training.choosing import check_choosing, check_known_unseen, chosen_answers
from training.fold_answers import (
    AIMED,
    DRAWN,
    Answers,
    Folds,
    baseline_folds,
    for_fold,
    measured_cells,
    network_answers,
)
from training.folds import counts, fold_splits, folds_digest, write_folds
from training.initial_weights import UNKNOWN
from training.pack import check_image, open_pack
from training.pages import render
from training.pooled import aimed_coverage, compare, pool, pooled_figures, write_pooled
from training.pretraining import check_unseen
from training.recipes import CHOSEN, Recipe, reference_of
from training.side_by_side import Turn, answers_side_by_side
from training.steps import alone
from training.tracking import flat, open_parent, read_knobs

FIGURES, PREDICTIONS, PAGE = "crossvalidation.json", "predictions.parquet", "crossvalidation.html"
UNREAD = "not read"  # of a knob that the training of a recipe does not look at


def run_crossvalidation(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    cells: Path,
    audit: Path,
    pack: Path,
    out: Path,
    reference: str = "",
    choose: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Train and test every recipe on every fold, pool the answers, compare, and write all of it into `out`.

    Args:
        recipes: with the same `split` and `image` parameters. reference: the recipe that claims to be better than the
            others and the baselines; the first if not given, and with `choose` what the folds chose.
        choose: whether each fold also chooses one of the recipes for itself (`training.choosing`).
        processes: trainings at a time.

    Returns:
        What `crossvalidation.json` says.

    Raises:
        UsageError: where the folds do not fit the data set, weights are missing, the reference is no recipe, or the
            recipes are none to choose from.
        LeakFound: where pretrained weights have seen a patient whom their fold holds out, or by whom it chooses.
        DataError: where the pack is none of these parameters.
    """
    reference = reference_of(recipes, reference, choose=choose)
    if choose:
        check_choosing(recipes)
    base = recipes[0].parameters
    manifest = read_cells(cells)
    packed = open_pack(pack, manifest)
    check_image(packed, base.image, pack)
    found = read_audit(audit, manifest)
    check_links(found, base.audit.links, audit)
    splits = fold_splits(manifest, found, base.split, read_statistics(audit))
    digests = {"data": manifest.digest, "split": folds_digest(splits), "pack": packed.digest}
    with alone(out):
        folders = write_folds(splits, manifest, found, base.split, out / "folds")
        _check_weights(recipes, splits, folders, choose=choose)  # after: whoever pretrains for each fold reads these
        shared: dict[str, dict[str, Any]] = {"split": asdict(base.split), "image": asdict(base.image)}
        del shared["split"]["fold"]  # every one has its turn
        with open_parent(
            settings,
            key=json_digest({"crossvalidation": str(out.absolute()), **digests}),
            name=f"cross-validation, {base.split.folds} folds",
            tags=_tags(digests, synthetic=manifest.synthetic),
            parameters=flat(shared),
        ) as run:
            folds = Folds(
                cells=cells,
                pack=pack,
                packed=packed,
                splits=folders,
                digests=digests,
                out=out / "recipes",
                kept=out / "embeddings",
                run_id=run.info.run_id,
            )
            answers = _networks(recipes, folds, settings, processes)
            if choose:
                answers = {CHOSEN: chosen_answers(recipes, answers, folds), **answers}
            answers |= baseline_folds(base, folds)
            tables, figures = _figures(recipes, answers, manifest, measured_cells(folds))
            facts = {
                "run_id": run.info.run_id,
                **{f"{name}_digest": digest for name, digest in digests.items()},
                "synthetic": manifest.synthetic,
                "counts": _count(splits[0]),
                "folds": [dict(counts(rows)) for rows in splits],
                "parameters": {
                    **shared,
                    "evaluate": {name: getattr(base.evaluate, name) for name in DRAWN},
                },
                "reference": reference,
                "recipes": figures,
                "comparison": compare(tables, reference, base.evaluate),
            }
            write_pooled(tables, out / PREDICTIONS)
            _write(facts, out)
    return facts


def _check_weights(
    recipes: Sequence[Recipe], splits: Sequence[pd.DataFrame], folders: Sequence[Path], *, choose: bool
) -> None:
    """Say now, and not after hours, that a file of weights is missing, has seen a patient who is held out, or one by
    whom a fold would choose.

    Args:
        splits: of each fold, with `subject` and `side`; folders: where they lie.
    """
    for recipe in recipes:
        for fold, (rows, folder) in enumerate(zip(splits, folders, strict=True)):
            train = for_fold(recipe.parameters, fold, folder).train
            if train.weights != "file":
                continue
            check_unseen(Path(train.weights_file), rows)
            if choose:
                check_known_unseen(train, rows)


def _networks(
    recipes: Sequence[Recipe], folds: Folds, settings: Settings, processes: int
) -> dict[str, dict[int, Answers]]:
    """Answers by recipe and fold; says how far it is."""
    turns = [(recipe, fold) for recipe in recipes for fold in range(len(folds.splits))]
    answers: dict[str, dict[int, Answers]] = {recipe.name: {} for recipe in recipes}
    started, anew = time.monotonic(), 0
    for number, ((recipe, fold), found) in enumerate(_answered(turns, folds, settings, processes), start=1):
        answers[recipe.name][fold] = found
        anew += found.anew
        seconds = (time.monotonic() - started) / anew * (len(turns) - number) if anew else 0
        left = f"; about {seconds / 60:.0f} min left" if seconds else ""
        say(f"[{number}/{len(turns)}] {recipe.name}, fold {fold}: {'done' if found.anew else 'done before'}{left}")
    return {name: dict(sorted(by_fold.items())) for name, by_fold in answers.items()}


def _answered(
    turns: Sequence[Turn], folds: Folds, settings: Settings, processes: int
) -> Iterable[tuple[Turn, Answers]]:
    if processes == 1:
        return ((turn, network_answers(*turn, folds, settings)) for turn in turns)
    return answers_side_by_side(turns, folds, settings, processes=processes)


def _figures(
    recipes: Sequence[Recipe],
    answers: Mapping[str, Mapping[int, Answers]],
    manifest: Cells,
    statistics: pd.DataFrame,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The pooled table and the figures of each recipe and baseline."""
    parameters = {recipe.name: _own(recipe) for recipe in recipes}
    tables, figures = {}, {}
    for name, by_fold in answers.items():
        tables[name] = pool({fold: part.table for fold, part in by_fold.items()}, name, manifest.rows["path"])
        thresholds = {fold: part.thresholds for fold, part in by_fold.items()}
        found = pooled_figures(tables[name], thresholds, statistics, recipes[0].parameters.evaluate)
        for row in found["folds"]:
            row |= by_fold[row["fold"]].facts
        errors = {fold: part.facts[AIMED] for fold, part in by_fold.items()}
        found["aimed_coverage"] = aimed_coverage(tables[name], errors)
        kind = CHOSEN if name == CHOSEN else "baseline" if name in BASELINES else "network"
        figures[name] = {"kind": kind, "parameters": parameters.get(name, {}), **found}
    return tables, figures


def _own(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What made the answers of a recipe: all but `DRAWN`, which shapes intervals and is the first recipe's for all."""
    evaluate, train = asdict(recipe.parameters.evaluate), asdict(recipe.parameters.train)
    return {
        # Where weights lie is told here: recipes may differ in that alone.
        "train": read_knobs(train) | {"weights_file": train["weights_file"]},
        "evaluate": {name: value for name, value in evaluate.items() if name not in DRAWN},
    }


def differing(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys of `train` and `evaluate` in which recipes differ, with the value of each recipe, `UNREAD` where it has
    none; of one recipe no key.

    Args:
        recipes: as `crossvalidation.json` has them, with the baselines, which have no parameters.
    """
    told = {name: flat(recipe["parameters"]) for name, recipe in recipes.items() if recipe["parameters"]}
    every = {key: None for values in told.values() for key in values}  # in order
    rows = {key: {name: values.get(key, UNREAD) for name, values in told.items()} for key in every}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def _tags(digests: Mapping[str, str], *, synthetic: bool) -> dict[str, str]:
    tags = {f"blastwatch.{name}_digest": digest for name, digest in digests.items()}
    return tags | {"blastwatch.synthetic": str(synthetic).lower()}


def _count(rows: pd.DataFrame) -> dict[str, int]:
    return {"cells": len(rows), **{f"{name}s": int(rows[name].nunique()) for name in ("subject", "group")}}


def _write(facts: dict[str, Any], out: Path) -> None:
    """The figures as JSON and as a page; both, the answers and the main figures go into the open run, too."""
    import mlflow

    write_json(out / FIGURES, facts)
    recipes = facts["recipes"]
    unknown = [
        name
        for name, recipe in recipes.items()
        if any(row.get("initial_weights") == UNKNOWN for row in recipe["folds"])
    ]
    shown = {"facts": facts, "differing": differing(recipes), "unknown": unknown, "disclaimer": DISCLAIMER}
    (out / PAGE).write_text(render(PAGE, **shown))
    for name, recipe in facts["recipes"].items():
        for part in ("cells", "patients"):
            mlflow.log_metrics({f"{name}.{part}.{metric}": row["value"] for metric, row in recipe[part].items()})
    for file in (FIGURES, PAGE, PREDICTIONS):
        mlflow.log_artifact(str(out / file))
