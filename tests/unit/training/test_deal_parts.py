"""Patients are dealt into parts that are held out in turn; what remains holds cells of both labels, or it is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blastwatch.errors import DataError
from blastwatch.manifest import read_cells, read_split
from training.distributed import World
from training.linear_probe import Known, LinearProbe, deal_parts, out_of_fold
from training.pack import open_pack
from training.parameters import TrainParameters
from training.sampling import side_of
from training.weights import first_network

# Of each patient the cells of normal ones and of blasts: M is one whom the audit, or audit.links, tied to another.
TIED = {"M": (8, 136), "H0": (161, 0), "0": (0, 40), "1": (0, 159), "2": (0, 99)}
TWICE = {"M": (25, 80), "N": (23, 69), "H0": (280, 0), "0": (0, 327), "1": (0, 31), "2": (0, 335), "3": (0, 6)}
PLAIN = {"H0": (40, 0), "H1": (9, 0), "H2": (70, 0), "0": (0, 90), "1": (0, 5), "2": (0, 30), "3": (0, 60)}


def cells_of(counted):
    """Labels and patients."""
    labels = np.concatenate([np.repeat([0, 1], counts) for counts in counted.values()])
    return labels, np.repeat(list(counted), [sum(counts) for counts in counted.values()])


@pytest.mark.parametrize(("counted", "parts"), [(PLAIN, 3), (TWICE, 2)])
def test_every_patient_is_held_out_once_and_the_others_have_both_labels(counted, parts):
    """Tied patients may leave a label in one part of three; then there are two."""
    labels, patients = cells_of(counted)
    for seed in range(5):
        dealt = deal_parts(labels, patients, seed=seed)
        assert len(dealt) == parts
        assert sorted(np.concatenate([held for _, held in dealt])) == list(range(len(labels)))
        for fitted_on, held in dealt:
            assert set(labels[fitted_on]) == {0, 1} and not set(patients[fitted_on]) & set(patients[held])


def test_a_label_that_lies_in_one_part_is_told_with_the_patients_who_tie_it():
    labels, patients = cells_of(TIED)
    embeddings = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    known = Known(embeddings, labels, np.ones(len(labels), np.float32), patients)
    with pytest.raises(DataError, match=r"a label lies in one alone, .* tied to one patient \(M\)\. .* audit\.links"):
        out_of_fold(known, seed=1)


def test_it_is_told_before_the_network_looks_at_a_cell(cohort, monkeypatch):
    packed = open_pack(cohort / "pack", read_cells(cohort / "cells"))
    rows = read_split(cohort / "cells", cohort / "split")
    train, validation = (side_of(rows, packed, side, "subject") for side in ("train", "validation"))
    labels, patients = cells_of(TIED)
    places = np.arange(len(labels)) % len(train.rows)
    tied = replace(train, rows=train.rows[places], labels=labels, weights=train.weights[places], patients=patients)
    network = first_network("efficientnet_lite0", "imagenet", "", seed=1)
    probe = LinearProbe(
        network, TrainParameters(architecture="efficientnet_lite0", weights="imagenet", fit="logistic"),
        packed, tied, validation, World(0, 1, torch.device("cpu")),
    )  # fmt: skip
    monkeypatch.setattr(probe.embedder, "cells", lambda _rows: pytest.fail("it looked at cells"))
    with pytest.raises(DataError, match="a label lies in one alone"):
        probe.run(lambda row: None)
