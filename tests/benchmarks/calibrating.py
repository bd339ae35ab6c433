"""`python -m tests.benchmarks.calibrating [--draws 300]`: who calibrates a probe, where patients are few.

Patients are drawn, each with a shift of its own in all numbers of an embedding; so many patients of each label stand at
hand, and as many new ones are tested. Either some are kept aside to calibrate on (`evaluate.calibrate_on=calibration`),
or all but one of each label are trained on and calibrate as well, answered by fits that had not seen them
(`out-of-fold`). Printed for the new patients, as means over the draws: AUROC, ECE, the spread of the temperature, and
what the three-way decision aimed at, covered and referred.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE
from training.calibration import temperate_loss
from training.evaluation import fit as calibrate
from training.evaluation import prediction_table
from training.figures import plain, units_of
from training.linear_probe import PARTS, Known, fit, logits_of, out_of_fold
from training.parameters import EvaluateParameters
from training.sampling import balanced_weights

WIDTH = 40  # numbers in an embedding
SIGNAL = 2.0  # by how much the labels differ in the first of them, where a cell has a spread of 1
CELLS = (20, 200)  # of a patient
FIGURES = ("auroc", "ece", "coverage_over_healthy", "coverage_over_ill", "referred")
COLUMNS = {
    "spread of log temperature": "",
    "AUROC": "auroc",
    "ECE": "ece",
    "coverage aimed at": "aimed",
    "healthy": "coverage_over_healthy",
    "ill": "coverage_over_ill",
    "referred": "referred",
}
PARAMETERS = EvaluateParameters()


@dataclass(frozen=True)
class Drawn:
    """Cells: embeddings float32 (n, d) and rows of what `prediction_table` takes."""

    embeddings: NDArray[np.float32]
    rows: pd.DataFrame

    def of(self, groups: list[str]) -> "Drawn":
        chosen = self.rows["group"].isin(groups).to_numpy()
        return Drawn(self.embeddings[chosen], self.rows[chosen])

    def known(self) -> Known:
        """To fit on: every patient weighs the same within its label, both labels the same."""
        labels = self.rows["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
        weights = balanced_weights(self.rows, "subject")
        return Known(self.embeddings, labels, weights, self.rows["group"].to_numpy())


def draw(random: np.random.Generator, patients: int, spread: float) -> Drawn:
    """So many patients of each label, who differ by `spread`."""
    embeddings, rows = [], []
    for label in CLASS_NAMES:
        for number in range(patients):
            cells = int(random.integers(*CELLS))
            found = random.normal(size=(cells, WIDTH)) + spread * random.normal(size=WIDTH)
            found[:, 0] += SIGNAL * (label == CLASS_NAMES[POSITIVE])
            embeddings.append(found.astype(np.float32))
            group = f"{label}-{number}"
            rows += [{"path": f"{group}-{cell}", "group": group, "label": label} for cell in range(cells)]
    table = pd.DataFrame(rows).assign(pixel_sha256="")
    return Drawn(np.concatenate(embeddings), table.assign(subject=table["group"]))


def answered(hand: Drawn, new: Drawn, *, kept: int, both: bool, parts: int) -> dict[str, float]:
    """What comes of the new patients where so many of each label at hand are kept from training, and where those who
    are trained on calibrate as well."""
    aside = [f"{label}-{number}" for label in CLASS_NAMES for number in range(kept)]
    training = hand.of(sorted(set(hand.rows["group"]) - set(aside)))
    held = hand.of(aside)
    known = training.known()
    by_strength = out_of_fold(known, seed=1, parts=parts)
    strength = min(by_strength, key=lambda one: temperate_loss(by_strength[one], known.labels, known.weights))
    fitted = fit(known, strength)
    rows, logits = held.rows, logits_of(fitted.log_odds(held.embeddings))
    if both:
        rows, logits = pd.concat([rows, training.rows]), np.concatenate([logits, by_strength[strength]])
    found = calibrate(rows, logits, PARAMETERS)
    table = prediction_table(new.rows, logits_of(fitted.log_odds(new.embeddings)), found.temperature)
    figures = plain(units_of(table, thresholds=found.conformal.thresholds), FIGURES)
    return figures | {
        "log_temperature": float(np.log(found.temperature)),
        "aimed": 1 - float(np.mean(list(found.conformal.aimed.values()))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--patients", type=int, nargs="+", default=[8, 12, 20], help="of each label, at hand")
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.2, 0.5], help="of patients; of cells it is 1")
    parser.add_argument("--parts", type=int, default=PARTS, help="into which the patients in training are dealt")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print("| patients a label | spread | who calibrates, a label | " + " | ".join(COLUMNS) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for patients, spread in itertools.product(asked.patients, asked.spreads):
        random = np.random.default_rng((asked.seed, patients))
        drawn = [(draw(random, patients, spread), draw(random, patients, spread)) for _ in range(asked.draws)]
        aside = patients // 4
        for who, kept, both in ((f"{aside} kept aside", aside, False), ("1, and those in training", 1, True)):
            found = pd.DataFrame([answered(hand, new, kept=kept, both=both, parts=asked.parts) for hand, new in drawn])
            values = [found["log_temperature"].std(), *(found[name].mean() for name in COLUMNS.values() if name)]
            print(f"| {patients} | {spread:g} | {who} | " + " | ".join(f"{v:.3f}" for v in values) + " |", flush=True)


if __name__ == "__main__":
    main()
