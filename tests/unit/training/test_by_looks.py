"""Folds by looks: neighbours stand together, in every fold both labels, and what looks otherwise is tested unseen."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.errors import DataError, UsageError
from tests.unit.training.test_split import cohort_of
from training.audit import audit_cells, read_statistics
from training.by_looks import folds_by_looks, places_by_looks
from training.dealing import Unit
from training.folds import fold_splits
from training.splitting import SplitParameters, split_cells

CAMERAS = {"old": ("1", "2", "3", "4", "H1", "H2", "H3", "H4"), "new": ("5", "6", "7", "8", "H5", "H6", "H7", "H8")}
CELLS = 6


def seen_by_two_cameras(sick=0.0):
    """Cells of sixteen patients, half of them bluer; statistics of each; `sick` is how much larger blasts are."""
    cells = cohort_of({subject: CELLS for subjects in CAMERAS.values() for subject in subjects})
    random = np.random.default_rng(3)
    rows = cells.rows
    new = rows["subject"].isin(CAMERAS["new"])
    statistics = pd.DataFrame(
        {
            "path": rows["path"],
            "od_blue": 0.3 + 0.2 * new + random.normal(0, 0.01, len(rows)),
            "brightness": 150 - 30 * new + random.normal(0, 2, len(rows)),
            "cell_area": 20_000 + sick * (rows["label"] == "all") + random.normal(0, 300, len(rows)),
            "saturated": 0.0,
        }
    )
    return cells, statistics


def test_one_camera_is_tested_by_what_saw_the_other_alone():
    cells, statistics = seen_by_two_cameras(sick=9_000)  # the labels differ more than the cameras, and part nobody
    splits = fold_splits(cells, audit_cells(cells, []), SplitParameters(folds=2, folds_by="looks"), statistics)
    tested = [set(rows.loc[rows["side"] == "test", "subject"]) for rows in splits]
    assert sorted(map(sorted, tested)) == sorted(map(sorted, CAMERAS.values()))
    dealt = fold_splits(cells, audit_cells(cells, []), SplitParameters(folds=2))
    assert all(set(rows.loc[rows["side"] == "test", "subject"]) not in tested for rows in dealt)


def test_places_do_not_depend_on_the_order_or_on_a_statistics_unit():
    cells, statistics = seen_by_two_cameras()
    rows = cells.rows.assign(group=cells.rows["subject"])
    places = places_by_looks(rows, statistics)
    turned = places_by_looks(rows.sample(frac=1, random_state=1), statistics.sample(frac=1, random_state=2))
    in_feet = places_by_looks(rows, statistics.assign(cell_area=statistics["cell_area"] / 92_903))
    for other in (turned, in_feet):
        np.testing.assert_allclose(other[places.index], places, atol=1e-9)
    assert abs(places.groupby(rows.drop_duplicates("group").set_index("group")["label"]).mean()).max() < 1e-9


def test_one_of_two_equal_images_is_enough():
    cells, statistics = seen_by_two_cameras()
    rows = cells.rows.assign(group=cells.rows["subject"])
    some = statistics[rows.groupby("group").cumcount() < CELLS - 1]
    assert set(places_by_looks(rows, some).index) == set(rows["group"])
    with pytest.raises(DataError, match="it has none of H3"):
        places_by_looks(rows, statistics[rows["subject"] != "H3"])
    with pytest.raises(DataError, match="to differ in some image statistic"):
        places_by_looks(rows, statistics.assign(od_blue=1.0, brightness=1.0, cell_area=1.0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=5, max_size=14), st.integers(2, 5))
def test_folds_are_even_and_hold_neighbours(values, count):
    units = {
        label: {f"{label}{number}": Unit(1, "source") for number in range(len(values))} for label in ("all", "hem")
    }
    places = pd.Series({name: values[int(name[3:])] for of_label in units.values() for name in of_label})
    found = folds_by_looks(units, places, count)
    for of_label in units.values():
        sizes = np.bincount([found[name] for name in of_label], minlength=count)
        assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
        for one in of_label:
            for two in of_label:
                assert found[one] <= found[two] or places[one] >= places[two]


def test_what_cannot_be_is_told(tmp_path):
    cells, measured = seen_by_two_cameras()
    with pytest.raises(UsageError, match=r"split\.folds_by to be one of balance, looks, .* got 'looks'"):
        SplitParameters(folds_by="looks")
    with pytest.raises(UsageError, match="got 'size'"):
        SplitParameters(folds=3, folds_by="size")
    with pytest.raises(DataError, match="at least 9 groups of patients with the label (all|hem).* but got 8"):
        split_cells(cells, audit_cells(cells, []), SplitParameters(folds=9, folds_by="looks"), measured)
    with pytest.raises(DataError, match="the statistics of an audit"):
        fold_splits(cells, audit_cells(cells, []), SplitParameters(folds=2, folds_by="looks"))
    with pytest.raises(DataError, match=r"statistics\.parquet is missing"):
        read_statistics(tmp_path)
