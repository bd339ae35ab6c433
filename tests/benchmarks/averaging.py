"""`python -m tests.benchmarks.averaging --split DIR --pack DIR --trained DIR DIR ...`: does it help on patients never
seen to average a network's answers over turned and mirrored views of a cell, or the answers of several networks?

Every variant gets its own temperature from the calibration patients. Printed as Markdown: the figures on the test
patients, and each variant against the network's plain answers (paired, Holm over the variants). Nothing is chosen here:
the test patients are read, so what is seen is a result and no search.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from blastwatch.images import normalise
from blastwatch.manifest import read_cells, read_split
from training.evaluation import fit, prediction_table, read_trained
from training.figures import CELLS, PATIENTS, units_of
from training.intervals import draw_patients, intervals
from training.pack import Packed, open_pack
from training.parameters import EvaluateParameters
from training.significance import compare_models

SHOWN = ("weighted_f1", "auroc", "sensitivity", "specificity", "ece", "mean_accuracy", "worst_quarter_accuracy")
COMPARED = ("auroc", "mean_accuracy", "specificity_over_healthy")
VIEWS = 8  # of a square: four quarter turns, each also mirrored
BATCH = 64


def view(inputs: torch.Tensor, number: int) -> torch.Tensor:
    """One of the eight ways in which a square lies on itself; the first changes nothing."""
    turned = torch.rot90(inputs, number % 4, (2, 3))
    return turned.flip(3) if number >= 4 else turned


@torch.inference_mode()
def logits_of(network: torch.nn.Module, packed: Packed, rows: np.ndarray) -> np.ndarray:
    """Logits of every view, float32, shape (views, n, classes)."""
    network.eval()
    parts = []
    for start in range(0, len(rows), BATCH):
        inputs = torch.from_numpy(normalise(packed.crops[rows[start : start + BATCH]], packed.preprocessing))
        parts.append(torch.stack([network(view(inputs, number)).float() for number in range(VIEWS)]).numpy())
    return np.concatenate(parts, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=Path("data/cells"))
    parser.add_argument("--split", type=Path, default=Path("data/split"))
    parser.add_argument("--pack", type=Path, default=Path("data/pack"))
    parser.add_argument("--trained", type=Path, nargs="+", required=True, help="folders of blastwatch train")
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    parameters = EvaluateParameters(resamples=given.resamples)
    packed = open_pack(given.pack, read_cells(given.cells))
    rows = read_split(given.cells, given.split).sort_values("path", ignore_index=True)
    held, tested = (rows[rows["side"] == side].reset_index(drop=True) for side in ("calibration", "test"))
    positions = [packed.rows_of(part["path"].tolist()) for part in (held, tested)]

    answers: dict[str, list[np.ndarray]] = {}
    for folder in given.trained:
        network, facts = read_trained(folder)
        started = time.perf_counter()
        every = [logits_of(network, packed, part) for part in positions]
        seconds = time.perf_counter() - started
        name = facts["architecture"]
        print(f"{name}: {VIEWS * sum(map(len, positions)) / seconds:.0f} views/s, {VIEWS} views cost {VIEWS} passes")
        answers[name] = [logits[0] for logits in every]
        answers[f"{name}, {VIEWS} views"] = [logits.mean(axis=0) for logits in every]
    names = list(answers)
    for label, chosen in (("all networks", names[::2]), (f"all networks, {VIEWS} views", names[1::2])):
        if len(chosen) > 1:
            answers[label] = [np.mean([answers[name][side] for name in chosen], axis=0) for side in (0, 1)]

    tables, figures = {}, {}
    for name, (calibrating, testing) in answers.items():
        tables[name] = prediction_table(tested, testing, fit(held, calibrating, parameters).temperature)
        units = units_of(tables[name])
        draws = draw_patients(tables[name], resamples=given.resamples, seed=1)
        figures[name] = intervals(units, (*CELLS, *PATIENTS), draws)
    print("\n| answers of | " + " | ".join(SHOWN) + " |\n|" + "---|" * (len(SHOWN) + 1))
    for name, found in figures.items():
        cells = [f"{found[key]['value']:.3f} ({found[key]['low']:.3f} to {found[key]['high']:.3f})" for key in SHOWN]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()
    for number in range(0, len(names), 2):
        others = {name: tables[name] for name in (names[number + 1], *list(answers)[len(names) :])}
        found = compare_models(
            {names[number]: tables[names[number]], **others}, names[number], metrics=COMPARED, resamples=given.resamples
        )
        print(found.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
