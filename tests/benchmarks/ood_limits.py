"""`python -m tests.benchmarks.ood_limits DATA --pack PACK [--fields FOLDER] [--cache FILE] [--deals 16]`: what becomes
of the out-of-distribution limit where few patients are kept aside.

DATA is a folder with `cells` (an import) and, where there is one, `audit`; PACK its pack. The network is
EfficientNet-Lite0 from ImageNet with a last layer that reads every stage, of which nothing was learned from a cell but
how far each number spreads. Over and over the patients are dealt anew: seventeen ill and eight healthy train, four
calibrate, the rest are new. The limit is taken from the four; from all on axes that were fitted to those in training;
and from all, each in training on axes that were fitted to the others. Printed as Markdown: the share of cells beyond
it, of new patients as they are and shifted (`monitoring.shifts`, at strength 1), and of whole fields.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.manifest import read_cells
from blastwatch.network import build, forward_with_embedding
from monitoring.shifts import shift
from tests.benchmarks.shifts import CAMERA, groups_of
from training.ood import fit_ood
from training.pack import open_pack
from training.packaged_weights import packaged_files, packaged_state
from training.projection import fit_projection, without_each

NETWORK = "efficientnet_lite0_stages"
ILL, WELL = (17, 3), (8, 1)  # patients who train, and who calibrate
OF_EACH, SHIFTED, FOR_AXES = 150, 20, 2000  # cells
SHIFTS = ("stain", "white_balance", "darker", "defocus")
RATE, BATCH = 0.02, 32
WAYS = ("four kept aside", "with those in training", "these on axes of the others")


def embedded(crops: NDArray[np.uint8], shape: Preprocessing) -> NDArray[np.float32]:
    import torch

    network = build(NETWORK).eval()
    network.load_state_dict(
        packaged_state(NETWORK, network, [torch.load(packaged_files(NETWORK)[0], weights_only=True)])
    )
    with torch.inference_mode():
        parts = [
            forward_with_embedding(network, torch.from_numpy(normalise(crops[start : start + BATCH], shape)))[1]
            for start in range(0, len(crops), BATCH)
        ]
    return torch.cat(parts).numpy()


def looked_at(data: Path, pack: Path, fields: Path | None) -> pd.DataFrame:
    """A row for each cell, shifted cell and field: group, label, what was done to it, and its embedding."""
    cells = read_cells(data / "cells")
    packed = open_pack(pack, cells)
    rows = cells.rows.sample(frac=1, random_state=0).reset_index(drop=True)
    rows["group"] = groups_of(data, rows["subject"])
    rows = rows.groupby("group").head(OF_EACH).reset_index(drop=True)
    facts = [(row.group, row.label, "") for row in rows.itertuples()]
    crops = [packed.crops[packed.rows_of(rows["path"].tolist())]]
    for number, row in enumerate(rows.groupby("group").head(SHIFTED).itertuples()):
        image, random = crop_cell(decode((cells.root / row.path).read_bytes()), CAMERA), np.random.default_rng(number)
        changed = [crop_cell(shift(image, name, 1.0, random=random), packed.preprocessing) for name in SHIFTS]
        crops.append(np.stack(changed))
        facts += [(row.group, row.label, name) for name in SHIFTS]
    for path in sorted(fields.glob("*.jpg")) if fields else ():
        crops.append(crop_cell(decode(path.read_bytes()), packed.preprocessing)[None])
        facts.append(("", "", "field"))
    found = pd.DataFrame(embedded(np.concatenate(crops), packed.preprocessing)).add_prefix("n")
    return pd.concat([pd.DataFrame(facts, columns=["group", "label", "shift"]), found], axis=1)


def dealt(rows: pd.DataFrame, random: np.random.Generator) -> list[list[float]]:
    """Of each of `WAYS` the share of new cells beyond its limit, of the new patient with most, of shifts and fields."""
    label = rows[rows["shift"] == ""].groupby("group")["label"].first()
    ill, well = (random.permutation(label.index[label == name]) for name in ("all", "hem"))
    trains = {*ill[: ILL[0]], *well[: WELL[0]]}
    aside = {*ill[ILL[0] : sum(ILL)], *well[WELL[0] : sum(WELL)]}
    embeddings = rows.drop(columns=["group", "label", "shift"]).to_numpy(np.float32)
    plain, group = (rows["shift"] == "").to_numpy(), rows["group"]
    training, kept = plain & group.isin(trains).to_numpy(), plain & group.isin(aside).to_numpy()
    new = (~group.isin(trains | aside)).to_numpy()
    # As the probe's network does before its last layer.
    embeddings = (embeddings - embeddings[training].mean(axis=0)) / embeddings[training].std(axis=0)
    drawn = random.permutation(np.flatnonzero(training))[:FOR_AXES]
    projection = fit_projection(embeddings[drawn])
    others = without_each(embeddings[drawn], group.iloc[drawn], trains)
    both = training | kept
    fits: Sequence[tuple[Any, Any]] = ((kept, None), (both, None), (both, others))
    found = []
    for who, axes in fits:
        score = fit_ood(embeddings[who], group[who], projection, axes, rate=RATE)
        table = rows[["group", "shift"]].assign(beyond=score(embeddings) > score.limit)[new]
        by_shift = table.groupby("shift")["beyond"].mean()
        by_patient = table[table["shift"] == ""].groupby("group")["beyond"].mean()
        shifted = [by_shift.get(name, np.nan) for name in (*SHIFTS, "field")]
        found.append([by_patient.mean(), by_patient.max(), *shifted])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--fields", type=Path, help="folder of whole fields (JPEG)")
    parser.add_argument("--cache", type=Path, help="embeddings are kept in this Parquet file")
    parser.add_argument("--deals", type=int, default=16)
    given = parser.parse_args()
    if given.cache and given.cache.is_file():
        rows = pd.read_parquet(given.cache)
    else:
        rows = looked_at(given.data, given.pack, given.fields)
        if given.cache:
            rows.to_parquet(given.cache)
    found = np.array([dealt(rows, np.random.default_rng(number)) for number in range(given.deals)])
    print(
        f"{given.deals} deals; {100 * RATE:g} % of a new patient's cells may pass the limit. Beyond it, in percent:\n"
    )
    print(f"| limit from | new patients (range of the deals) | patient with most | {' | '.join(SHIFTS)} | field |")
    print("|---" * (len(SHIFTS) + 4) + "|")
    for way, shares in zip(WAYS, np.moveaxis(100 * found, 1, 0), strict=True):
        told = [f"{value:.0f}" for value in shares[:, 1:].mean(axis=0)]
        spread = f"{shares[:, 0].mean():.1f} ({shares[:, 0].min():.1f} to {shares[:, 0].max():.1f})"
        print(f"| {way} | {spread} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
