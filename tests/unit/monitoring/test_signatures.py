"""Causes of drift: each simulated shift of other cells is told by the signatures of the reference."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import lsq_linear
from scipy.spatial.distance import cosine
from sklearn.covariance import LedoitWolf

from blastwatch.images import Preprocessing, crop_cell
from monitoring.shifts import SHIFTS, shift
from monitoring.signatures import (
    CAUSES,
    FAR,
    LEAST_SPREAD,
    NEAR,
    SMALLEST_SPREAD,
    UNKNOWN,
    effective_parameters,
    measure_signatures,
    name_causes,
    rank,
    transform,
)
from monitoring.statistics import STATISTICS, image_statistics
from training.synthesis import draw_style
from training.synthesis_cell import draw_cell

SEEN = Preprocessing(crop=320, size=128)
PATIENTS, EACH = 10, 5


@pytest.fixture(scope="module")
def cells():
    """Synthetic cells of patients who differ, as crops, the images behind them, and the reference's columns."""
    random = np.random.default_rng(5)
    images, rows = [], []
    for patient in range(PATIENTS):
        label = "all" if patient % 2 else "hem"
        style = draw_style(label, random)
        for _ in range(EACH):
            images.append(crop_cell(draw_cell(style, random), Preprocessing(crop=320, size=320)))
            crop = crop_cell(images[-1], SEEN)
            rows.append({"group": f"P{patient}", "label": label, **image_statistics(crop, SEEN)})
    return images, np.stack([crop_cell(image, SEEN) for image in images]), pd.DataFrame(rows)


@pytest.fixture(scope="module")
def signatures(cells):
    _, crops, reference = cells
    return measure_signatures(reference, crops.__getitem__, SEEN, cells=20)


def window_of(cells, name, strength=0.6):
    """The statistics of the cells that the signatures were not measured on alone, under a shift."""
    random = np.random.default_rng(7)
    images = [shift(image, name, strength, random=random) for image in cells[0]]
    return pd.DataFrame([image_statistics(crop_cell(image, SEEN), SEEN) for image in images])


@pytest.mark.parametrize("name", SHIFTS)
def test_a_simulated_shift_is_among_the_causes(cells, signatures, name):
    causes = name_causes(signatures, window_of(cells, name))
    assert CAUSES[name].word in [cause["cause"] for cause in causes], causes
    assert "in spreads between patients" in causes[0]["evidence"]


@pytest.mark.parametrize("name", ["defocus", "stain", "darker"])
def test_a_cause_is_told_from_means_of_patients_against_means_of_patients_before(cells, signatures, name):
    patients = cells[2]["group"].to_numpy()
    before, now = (frame[list(STATISTICS)].groupby(patients).mean() for frame in (cells[2], window_of(cells, name)))
    assert CAUSES[name].word in [cause["cause"] for cause in name_causes(signatures, now, before=before)]
    (nothing,) = name_causes(signatures, before, before=before)
    assert nothing["cause"] == UNKNOWN and "(cosine 0.00)" in nothing["evidence"]


def test_larger_cells_that_reach_the_edge_are_not_taken_for_another_kind_of_image(cells, signatures):
    window = window_of(cells, "pixel_size", strength=1.0)
    window["border"] += 0.03  # of patients with large cells, a few
    assert name_causes(signatures, window)[0]["cause"] == CAUSES["pixel_size"].word


def test_a_mix_explains_no_more_than_all_patients_ill_or_none(cells, signatures):
    """What it explains is what scipy finds with the share of ill patients as a bounded unknown."""
    whitening, spread = np.array(signatures["whitening"]), np.array(signatures["spread"])
    values = transform(cells[2])
    centre, (ill, well) = np.array(signatures["centre"]), (values[cells[2]["label"] == name] for name in ("all", "hem"))
    vector = ((ill.mean(axis=0) - well.mean(axis=0)) / spread) @ whitening
    random = np.random.default_rng(2)
    for share_now in (0.0, 0.25, 0.75, 1.0, 2.0, -1.0):
        moved = (share_now - 0.5) * vector + 0.3 * random.normal(size=len(vector))
        rest = lsq_linear(vector[:, None], moved, bounds=(-0.5, 0.5)).cost * 2
        mean = centre + (moved @ np.linalg.inv(whitening)) * spread
        expected = np.sqrt(1 - rest / (moved @ moved))
        assert dict(rank(signatures, mean))["disease mix"] == pytest.approx(expected, abs=1e-6), share_now
    assert dict(rank(signatures, centre))["disease mix"] == 0


def test_a_direction_is_fitted_with_the_shares_of_the_axes_that_are_not_shrinkage(cells):
    """As the trace of what a ridge with the shrinkage's penalty keeps of the axes."""
    means = pd.DataFrame(transform(cells[2])).groupby(cells[2]["group"]).mean().to_numpy()
    random = np.random.default_rng(0)
    for count in (10, 400):
        mixed = random.normal(size=(count, len(STATISTICS))) @ random.normal(size=(len(STATISTICS), len(STATISTICS)))
        drawn = means if count == len(means) else mixed
        spread = np.maximum(drawn.std(axis=0, ddof=1), [LEAST_SPREAD.get(name, SMALLEST_SPREAD) for name in STATISTICS])
        shrunk = LedoitWolf().fit((drawn - drawn.mean(axis=0)) / spread)
        sample = np.cov((drawn / spread).T, bias=True)
        penalty = shrunk.shrinkage_ * np.trace(sample) / len(sample) / (1 - shrunk.shrinkage_)
        expected = np.trace(sample @ np.linalg.inv(sample + penalty * np.eye(len(sample))))
        assert effective_parameters(drawn, STATISTICS) == pytest.approx(expected, rel=1e-6)
        assert 0 < expected <= min(count - 1, len(STATISTICS))


def test_another_pixel_size_moves_the_chroma_noise_nowhere(signatures):
    for name, vector in signatures["causes"].items():
        moved = dict(zip(STATISTICS, vector @ np.linalg.inv(signatures["whitening"]), strict=True))
        assert (abs(moved["chroma_noise"]) < 1e-9) == name.startswith("pixel_size"), name


def test_signatures_of_the_former_format_are_read(cells, signatures):
    causes = {name: vector for name, vector in signatures["causes"].items() if name not in FAR}
    assert len(causes) == len(signatures["causes"]) - 1
    former = {name: value for name, value in signatures.items() if name != "reach"} | {"format": 1, "causes": causes}
    assert name_causes(former, window_of(cells, "defocus"))[0]["cause"] == "focus"
    (cause,) = name_causes(signatures | {"format": 4}, window_of(cells, "defocus"))
    assert cause["cause"] == UNKNOWN


def test_compression_moves_the_chroma_noise_and_nothing_else(cells, signatures):
    mean = transform(window_of(cells, "jpeg")).mean(axis=0)
    moved = dict(zip(STATISTICS, np.abs(mean - signatures["centre"]) / signatures["spread"], strict=True))
    assert moved.pop("chroma_noise") > 3 and max(moved.values()) < 0.5


def test_a_movement_that_no_shift_makes_is_unknown(cells, signatures):
    window = cells[2].assign(elongation=cells[2]["elongation"] * 3, border=0.0)
    (cause,) = name_causes(signatures, window)
    assert cause["cause"] == UNKNOWN
    assert "no simulated cause" in cause["evidence"]


def test_cosines_are_those_of_the_whitened_movement(cells, signatures):
    mean = transform(window_of(cells, "defocus")).mean(axis=0)
    moved = (mean - np.array(signatures["centre"])) / np.array(signatures["spread"]) @ np.array(signatures["whitening"])
    ranked = dict(rank(signatures, mean))
    assert ranked["focus"] == pytest.approx(1 - cosine(moved, signatures["causes"]["defocus"]))
    assert ranked["focus"] >= NEAR
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for value in ranked.values())


def test_signatures_travel_as_json(cells, signatures):
    again = json.loads(json.dumps(signatures, allow_nan=False))
    window = window_of(cells, "stain")
    assert name_causes(again, window) == name_causes(signatures, window)


def test_a_package_without_signatures_says_so(cells, signatures):
    (cause,) = name_causes(None, cells[2])
    assert cause["cause"] == UNKNOWN and "packaged anew" in cause["evidence"]
    other = signatures | {"columns": [*STATISTICS, "gloss"]}
    assert "other statistics" in name_causes(other, cells[2])[0]["evidence"]


def test_signatures_of_fewer_statistics_are_compared_by_those(cells, signatures):
    """A package that was made before a statistic came goes on naming causes."""
    kept = [place for place, name in enumerate(STATISTICS) if name != "chroma_noise"]
    older = signatures | {
        "columns": [STATISTICS[place] for place in kept],
        "centre": [signatures["centre"][place] for place in kept],
        "spread": [signatures["spread"][place] for place in kept],
        "whitening": np.array(signatures["whitening"])[np.ix_(kept, kept)].tolist(),
        "causes": {name: [vector[place] for place in kept] for name, vector in signatures["causes"].items()},
    }
    window = window_of(cells, "darker")
    assert name_causes(older, window.drop(columns="chroma_noise"))[0]["cause"] == "illumination"


def test_bad_input(cells):
    _, crops, reference = cells
    with pytest.raises(ValueError, match="at least 2 groups"):
        measure_signatures(reference.assign(group="one"), crops.__getitem__, SEEN)
