"""The cells to label next: the least certain and the least like the reference, patients taking turns."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from blastwatch.errors import DataError
from monitoring.review import COLUMNS, NEIGHBOURS, candidates, unlikeness
from monitoring.store import EMBEDDING
from tests.cohorts import as_predictions, draw_cohort


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(3), patients=12, cells=20)


@pytest.fixture(scope="module")
def reference(cohort):
    return cohort[cohort["group"] < "P008"].reset_index(drop=True)


@pytest.fixture
def cells(cohort):
    new = cohort[cohort["group"] >= "P008"].reset_index(drop=True)
    return as_predictions(new, digest="d").assign(patient=new["group"].to_numpy())


def test_the_distance_is_the_one_to_the_nearest_cells_of_the_reference(cells, reference):
    distance, unlike = unlikeness(cells, reference)
    known = reference[list(EMBEDDING)].to_numpy(np.float64)
    scale = known.std(axis=0)
    plain = np.sort(cdist(cells[list(EMBEDDING)] / scale, known / scale), axis=1)[:, :NEIGHBOURS].mean(axis=1)
    assert distance == pytest.approx(plain, rel=1e-5)
    among = cdist(known / scale, known / scale)
    others = reference["group"].to_numpy()[:, None] != reference["group"].to_numpy()
    own = np.sort(np.where(others, among, np.inf), axis=1)[:, :NEIGHBOURS].mean(axis=1)
    assert unlike == pytest.approx([(own < value).mean() for value in plain], abs=0.01)


def test_the_two_reasons_take_turns_and_so_do_patients(cells, reference):
    cells.loc[7, list(EMBEDDING)] = 500.0
    cells.loc[30, "probability"] = 0.5
    chosen = candidates(cells, reference, count=8)
    assert tuple(chosen.columns) == COLUMNS
    assert list(chosen["id"].iloc[:2]) == [cells["id"][30], cells["id"][7]]
    assert list(chosen["reason"]) == ["uncertain", "unlike"] * 4
    assert chosen["uncertainty"].iloc[0] == 0.5 and chosen["unlike"].iloc[1] == 1
    assert list(chosen["patient"].iloc[:4].sort_values()) == ["P008", "P009", "P010", "P011"]
    assert set(chosen["patient"].value_counts()) == {2}
    assert (chosen["label"] == "").all() and chosen["id"].is_unique


def test_all_cells_where_there_are_no_more_and_none_where_there_are_none(cells, reference):
    assert sorted(candidates(cells, reference, count=1000)["id"]) == sorted(cells["id"])
    assert candidates(cells.iloc[:0], reference, count=5).empty
    nameless = candidates(cells.assign(patient=""), reference, count=10)
    least_sure = (cells["probability"] - 0.5).abs().nsmallest(5).index
    assert set(cells["id"][least_sure]) <= set(nameless["id"])


def test_one_patient_is_no_reference(cells, reference):
    with pytest.raises(DataError, match="at least 2 patients but got 1"):
        candidates(cells, reference[reference["group"] == "P000"], count=3)
    with pytest.raises(ValueError, match="`count`"):
        candidates(cells, pd.DataFrame(), count=0)


def test_cells_without_a_key_are_patients_of_their_own(cells, reference):
    some = cells.assign(patient=["" if number < 40 else "P010" for number in range(len(cells))])
    chosen = candidates(some, reference, count=8)
    assert (chosen["patient"] == "P010").sum() <= 1
