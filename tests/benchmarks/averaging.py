"""Does averaging help on patients never seen? Of one network over turned and mirrored views of a cell:

    python -m tests.benchmarks.averaging views --split DIR --pack DIR --trained DIR [--views 8]

and of several models, among them the boosted trees on image statistics, from the answers that evaluations left:

    python -m tests.benchmarks.averaging models results/resnet50 results/resnet18

and of the recipes of a cross-validation, from its pooled answers:

    python -m tests.benchmarks.averaging pooled results/crossvalidation/predictions.parquet

Printed as Markdown: figures on the test patients with intervals by patient, and each average against the plain answers
(paired, with Holm's correction). Nothing is chosen here: the test patients are read, so it is a result and no search.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from blastwatch.images import normalise
from blastwatch.intervals import draw_patients
from blastwatch.manifest import read_cells, read_split
from training.cautions import read_answers
from training.evaluation import fit, prediction_table, read_trained
from training.figures import CELLS, PATIENTS, units_of
from training.intervals import intervals
from training.pack import Packed, open_pack
from training.parameters import EvaluateParameters
from training.significance import compare_models

SHOWN = ("weighted_f1", "auroc", "sensitivity", "specificity", "ece", "mean_accuracy", "worst_quarter_accuracy")
COMPARED = ("auroc", "mean_accuracy", "worst_quarter_accuracy")
SURE = 1e-6  # probabilities are kept this far from 0 and 1, so that their odds are finite
BATCH = 64


def view(inputs: torch.Tensor, number: int) -> torch.Tensor:
    """One of the eight ways in which a square lies on itself; the first changes nothing."""
    turned = torch.rot90(inputs, number % 4, (2, 3))
    return turned.flip(3) if number >= 4 else turned


@torch.inference_mode()
def logits_of(network: torch.nn.Module, packed: Packed, rows: np.ndarray, views: int) -> np.ndarray:
    """Logits of every view, float32, shape (views, n, classes)."""
    network.eval().to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(rows), BATCH):
        inputs = torch.from_numpy(normalise(packed.crops[rows[start : start + BATCH]], packed.preprocessing))
        parts.append(torch.stack([network(view(inputs, number)).float() for number in range(views)]).numpy())
    return np.concatenate(parts, axis=1)


def of_views(given: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Answers of one view and of their average, each with a temperature of its own from the calibration patients."""
    packed = open_pack(given.pack, read_cells(given.cells))
    rows = read_split(given.cells, given.split).sort_values("path", ignore_index=True)
    held, tested = (rows[rows["side"] == side].reset_index(drop=True) for side in ("calibration", "test"))
    network = read_trained(given.trained).network
    started = time.perf_counter()
    every = [logits_of(network, packed, packed.rows_of(part["path"].tolist()), given.views) for part in (held, tested)]
    rate = given.views * len(rows[rows["side"].isin(("calibration", "test"))]) / (time.perf_counter() - started)
    print(f"{rate:.0f} views/s; an answer of {given.views} views costs {given.views} times one\n")
    found = {}
    for name, (calibrating, testing) in {
        "one view": [part[0] for part in every],
        f"{given.views} views": [part.mean(axis=0) for part in every],
    }.items():
        temperature = fit(held, calibrating, EvaluateParameters()).temperature
        found[name] = prediction_table(tested, testing, temperature)
    return found


def of_models(given: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Each model's calibrated answers on one test side, and their averages."""
    return _with_averages(
        {name: table.sort_values("path", ignore_index=True) for name, table in read_answers(given.folders).items()}
    )


def of_pooled(given: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Each recipe's calibrated answers to all cells, and their averages."""
    pooled = pd.read_parquet(given.predictions).sort_values("path")
    return _with_averages(
        {str(name): table.reset_index(drop=True) for name, table in pooled.groupby("recipe", sort=False)}
    )


def _with_averages(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Beside the answers averages of their log odds: of all networks, and with the boosted trees."""
    networks = [name for name in tables if name not in ("sizes", "boosted")]
    groups = {f"{name} + boosted": [name, "boosted"] for name in networks}
    if len(networks) > 1:
        groups |= {"all networks": networks, "all networks + boosted": [*networks, "boosted"]}
    for label, names in groups.items():
        odds = [_odds(tables[name]["probability"].to_numpy()) for name in names]
        mean = np.mean(odds, axis=0)
        # The networks together weigh as much as the trees.
        if label == "all networks + boosted":
            mean = (np.mean(odds[:-1], axis=0) + odds[-1]) / 2
        tables[label] = tables[networks[0]].assign(probability=1 / (1 + np.exp(-mean)))
    return tables


def _odds(probability: np.ndarray) -> np.ndarray:
    kept = probability.clip(SURE, 1 - SURE)
    return np.log(kept / (1 - kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    views = kinds.add_parser("views")
    views.add_argument("--cells", type=Path, default=Path("data/cells"))
    views.add_argument("--split", type=Path, default=Path("data/split"))
    views.add_argument("--pack", type=Path, default=Path("data/pack"))
    views.add_argument("--trained", type=Path, required=True)
    views.add_argument("--views", type=int, choices=range(2, 9), default=8)
    views.set_defaults(tables=of_views)
    models = kinds.add_parser("models")
    models.add_argument("folders", type=Path, nargs="+")
    models.set_defaults(tables=of_models)
    pooled = kinds.add_parser("pooled")
    pooled.add_argument("predictions", type=Path)
    pooled.set_defaults(tables=of_pooled)
    for kind in (views, models, pooled):
        kind.add_argument("--resamples", type=int, default=1000)
        kind.add_argument("--reference", help="what the others are held against; default: the first")
        kind.add_argument("--against", nargs="+", help="which others, over which is corrected; default: all")
    given = parser.parse_args()

    tables = given.tables(given)
    print("| answers of | " + " | ".join(SHOWN) + " |\n|" + "---|" * (len(SHOWN) + 1))
    for name, table in tables.items():
        draws = draw_patients(table, resamples=given.resamples, seed=1)
        found = intervals(units_of(table), (*CELLS, *PATIENTS), draws)
        cells = [f"{found[key]['value']:.3f} ({found[key]['low']:.3f} to {found[key]['high']:.3f})" for key in SHOWN]
        print(f"| {name} | " + " | ".join(cells) + " |")
    reference = given.reference or next(iter(tables))
    others = given.against or [name for name in tables if name != reference]
    held = {name: tables[name] for name in (reference, *others)}
    rows = compare_models(held, reference, metrics=COMPARED, resamples=given.resamples)
    print(f"\n{reference} less the others:")
    for metric, other in itertools.product(COMPARED, others):
        row = rows[(rows["metric"] == metric) & (rows["baseline"] == other)].iloc[0]
        print(
            f"{metric:<24} {other:<32} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), "
            f"p {row['p_holm']:.3f}"
        )


if __name__ == "__main__":
    main()
