"""`python -m tests.benchmarks.leakage FOLDER [--splits N]`: how much a score gains where a split leaks.

One small model, gradient boosting over the statistics of monitoring and the leading components of a 32 px patch, is
trained and tested on many splits of three kinds: by group as the audit finds them, by subject as the source names them,
and by image. FOLDER is a C-NMC download.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import f1_score, roc_auc_score

from blastwatch.manifest import read_cells
from training.audit import Audit, audit_cells
from training.importing import import_cells
from training.looks import Looks, look
from training.near_duplicates import near_duplicates
from training.splitting import SplitParameters, split_cells

COMPONENTS = 48
FIGURES = ("AUROC", "weighted F1", "accuracy")


def score(looks: Looks, rows: pd.DataFrame, seed: int) -> tuple[float, ...]:
    """Figures on the test side of a model of the train side."""
    place = {path: index for index, path in enumerate(looks.paths)}
    rows = rows[rows["path"].isin(list(place))]
    fitted, tested = (rows[rows["side"] == side] for side in ("train", "test"))
    pixels = looks.patches.reshape(len(looks.paths), -1).astype(np.float32)
    train, test = (part["path"].map(place).to_numpy() for part in (fitted, tested))
    reduce = PCA(COMPONENTS, random_state=seed).fit(pixels[train])
    features = [np.hstack([looks.statistics[index], reduce.transform(pixels[index])]) for index in (train, test)]
    truth = [(part["label"] == "all").to_numpy() for part in (fitted, tested)]
    model = HistGradientBoostingClassifier(class_weight="balanced", random_state=seed).fit(features[0], truth[0])
    probability = model.predict_proba(features[1])[:, 1]
    decided = probability >= 0.5
    return (
        float(roc_auc_score(truth[1], probability)),
        float(f1_score(truth[1], decided, average="weighted")),
        float((truth[1] == decided).mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        import_cells(given.folder, Path(work), kind="cnmc")
        cells = read_cells(Path(work))
        looks = look(cells)
    audit = audit_cells(cells, near_duplicates(looks))
    alone = dataclasses.replace(audit, groups=[[subject] for subject in sorted(set(cells.rows["subject"]))])
    ways: dict[str, tuple[Audit, str]] = {
        "by group": (audit, "group"),
        "by subject": (alone, "group"),
        "by image": (audit, "image"),
    }
    table = []
    for seed in range(given.splits):
        for name, (groups, by) in ways.items():
            rows = split_cells(cells, groups, SplitParameters(seed=seed, by=by))
            table.append({"split": name, **dict(zip(FIGURES, score(looks, rows, seed), strict=True))})
    figures = pd.DataFrame(table).groupby("split", sort=False)
    print(f"{len(cells.rows)} cells, {len(audit.groups)} groups, {given.splits} splits of each kind")
    for name in FIGURES:
        told = figures[name].agg(["mean", lambda v: v.quantile(0.025), lambda v: v.quantile(0.975)])
        for split, (mean, low, high) in told.iterrows():
            print(f"{name:12s} {split:11s} {mean:.3f} ({low:.3f} to {high:.3f} over splits)")


if __name__ == "__main__":
    main()
