"""Folds: every group is tested exactly once, and stands on no other side of the split that tests it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import LeakFound, UsageError
from blastwatch.manifest import SIDES, read_split, write_json
from tests.unit.training.test_split import cohort_of
from training.audit import audit_cells
from training.folds import check_tested_once, fold_splits, folds_digest, write_folds
from training.splitting import SplitParameters


@st.composite
def cohorts(draw):
    """Patients of both labels, some of them tied, as many as four folds need."""
    most = draw(st.sampled_from([1, 1, 20]))  # where each has one cell, one shuffle is as good as any
    sizes = {
        f"{prefix}{number}": draw(st.integers(1, most))
        for prefix in ("", "H")
        for number in range(draw(st.integers(5, 12)))
    }
    ties = draw(st.sampled_from([[], [("0", "1")], [("0", "1"), ("1", "2"), ("H3", "H4")]]))
    return cohort_of(sizes, ties)


def splits_of(cells, **parameters):
    return fold_splits(cells, audit_cells(cells, []), SplitParameters(**parameters))


@settings(max_examples=8, deadline=None)
@given(cohorts(), st.integers(2, 4), st.integers(0, 1000))
def test_every_group_is_tested_once_and_never_seen_before(cells, number, seed):
    """Checked from the definition, not by what the code checks itself."""
    try:
        splits = splits_of(cells, folds=number, seed=seed)
    except UsageError:
        groups = cells.rows.assign(group=audit_groups(cells)).groupby("label")["group"].nunique()
        assert groups.min() - -(-groups.min() // number) < len(SIDES) - 1
        return
    assert len(splits) == number
    tested = {}
    for fold, rows in enumerate(splits):
        assert sorted(rows["path"]) == sorted(cells.rows["path"])
        held = set(rows.loc[rows["side"] == "test", "group"])
        others = set(rows.loc[rows["side"] != "test", "group"])
        assert not held & others
        assert all(set(part["label"]) == set(CLASS_NAMES) for _, part in rows.groupby("side"))
        assert set(rows["side"]) == set(SIDES)
        for group in held:
            assert group not in tested
            tested[group] = fold
    assert set(tested) == set(splits[0]["group"])
    assert folds_digest(splits) == folds_digest(splits_of(cells, folds=number, seed=seed))


def audit_groups(cells):
    group_of = {subject: group[0] for group in audit_cells(cells, []).groups for subject in group}
    return cells.rows["subject"].map(group_of)


@pytest.mark.parametrize(("healthy", "folds"), [(4, 5), (4, 2), (3, 3), (1, 2)])
def test_more_folds_than_groups_of_a_label_are_refused(healthy, folds):
    cells = cohort_of({**{str(n): 3 for n in range(9)}, **{f"H{n}": 3 for n in range(healthy)}})
    with pytest.raises(UsageError, match=f"{folds} folds do not fit: the label hem has {healthy} groups"):
        splits_of(cells, folds=folds)


def test_as_many_folds_as_groups_leave_one_out():
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(5)})
    assert len(splits_of(cells, folds=5)) == 5


def test_no_folds_are_no_cross_validation():
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(5)})
    with pytest.raises(UsageError, match=r"at least 2 folds but got 0.*split\.folds"):
        splits_of(cells)


@pytest.mark.parametrize(("before", "after"), [("test", "train"), ("train", "test")])
def test_a_group_tested_never_or_twice_is_found(before, after):
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(6)})
    splits = splits_of(cells, folds=3)
    check_tested_once(splits)
    group = splits[0].loc[splits[0]["side"] == before, "group"].iloc[0]
    splits[0].loc[splits[0]["group"] == group, "side"] = after
    with pytest.raises(LeakFound, match="tested exactly once"):
        check_tested_once(splits)


def test_each_fold_is_a_split_like_any_other(tmp_path):
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(6)})
    parameters, found = SplitParameters(folds=3), audit_cells(cells, [])
    splits = fold_splits(cells, found, parameters)
    (tmp_path / "cells").mkdir()
    cells.rows.to_parquet(tmp_path / "cells/manifest.parquet", index=False)
    write_json(tmp_path / "cells/import.json", cells.facts)
    for rows, folder in zip(splits, write_folds(splits, cells, found, parameters, tmp_path / "folds"), strict=True):
        read = read_split(tmp_path / "cells", folder).set_index("path")["side"]
        assert read.sort_index().equals(rows.set_index("path")["side"].sort_index())
    write_folds(fold_splits(cells, found, replace(parameters, folds=2)), cells, found, parameters, tmp_path / "folds")
    assert sorted(folder.name for folder in (tmp_path / "folds").iterdir()) == ["0", "1"]  # what is left is of now
