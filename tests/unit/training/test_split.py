"""The split: whole groups, every label on every side, the same for the same seed, and a leak stops everything."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import CheckRefused, DataError, LeakFound, UsageError
from blastwatch.manifest import SIDES, read_split, write_json
from tests.unit.training.test_audit import cells_of
from training.audit import audit_cells
from training.splitting import SplitParameters, check_leak, deal, quota, split_cells, write_split


def cohort_of(sizes, ties=()):
    """Cells of patients; `sizes` by subject, healthy ones start with H; `ties` are pairs that share a picture."""
    rows = [
        (subject, "hem" if subject.startswith("H") else "all", f"{subject}-{number}")
        for subject, size in sizes.items()
        for number in range(size)
    ]
    rows += [
        (subject, "hem" if subject.startswith("H") else "all", f"tie-{number}")
        for number, tie in enumerate(ties)
        for subject in tie
    ]
    return cells_of(rows)


def split_of(cells, **changes):
    return split_cells(cells, audit_cells(cells, []), SplitParameters(**changes))


@st.composite
def cohorts(draw):
    sizes = {}
    for prefix in ("", "H"):
        for number in range(draw(st.integers(7, 20))):
            sizes[f"{prefix}{number}"] = draw(st.integers(1, 40))
    ties = [("0", "1"), ("H3", "H4")] if draw(st.booleans()) else []
    return cohort_of(sizes, [*ties, ("2", "2")])


@settings(max_examples=25, deadline=None)
@given(cohorts(), st.integers(0, 1000))
def test_whole_groups_on_sides_that_hold_both_labels(cells, seed):
    rows = split_of(cells, seed=seed)
    assert sorted(rows["path"]) == sorted(cells.rows["path"])
    assert (rows.groupby("group")["side"].nunique() == 1).all()
    assert (rows.groupby("subject")["group"].nunique() == 1).all()
    for side in SIDES:
        assert set(rows.loc[rows["side"] == side, "label"]) == set(CLASS_NAMES)
    shuffled = dataclasses.replace(cells, rows=cells.rows.sample(frac=1, random_state=seed))
    assert split_of(shuffled, seed=seed).equals(rows)


def test_shares_of_cells_follow_the_fractions_by_label():
    cells = cohort_of({f"{prefix}{number}": 10 + 7 * (number % 5) for prefix in ("", "H") for number in range(40)})
    rows = split_of(cells)
    for label in CLASS_NAMES:
        of_label = rows[rows["label"] == label]
        shares = of_label["side"].value_counts(normalize=True)
        groups = of_label.groupby("side")["group"].nunique() / 40
        for side, fraction in SplitParameters().fractions.items():
            assert shares[side] == pytest.approx(fraction, abs=0.03)
            assert groups[side] == pytest.approx(fraction, abs=0.03)


def test_another_seed_is_another_split():
    cells = cohort_of({f"{prefix}{number}": 5 for prefix in ("", "H") for number in range(12)})
    assert not split_of(cells, seed=1)["side"].equals(split_of(cells, seed=2)["side"])


def test_tied_subjects_are_one_group():
    cells = cohort_of({f"{prefix}{number}": 5 for prefix in ("", "H") for number in range(8)}, [("3", "5"), ("5", "7")])
    rows = split_of(cells).set_index("subject")
    assert set(rows.loc[["3", "5", "7"], "group"]) == {"3"}
    assert rows.loc[["3", "5", "7"], "side"].nunique() == 1


def test_too_few_patients():
    cells = cohort_of({"1": 9, "2": 9, "3": 9, "4": 9, "H1": 9, "H2": 9, "H3": 9})
    with pytest.raises(DataError, match=r"at least 4 groups of patients with the label hem, .* got 3"):
        split_of(cells)
    with pytest.raises(DataError, match=r"label all, .* got 3"):
        split_of(cohort_of({"1": 9, "2": 9, "3": 9, "4": 9, **{f"H{n}": 9 for n in range(4)}}, [("1", "2")]))
    with pytest.raises(DataError, match=r"label hem, .* got 0"):
        split_of(cohort_of({"1": 9, "2": 9, "3": 9, "4": 9}))


def test_equal_images_of_two_labels_are_refused():
    sizes = {f"{prefix}{number}": 5 for prefix in ("", "H") for number in range(5)}
    with pytest.raises(CheckRefused, match=r"carry two labels, the first 0050\.bmp and 0051\.bmp"):
        split_of(cohort_of(sizes, [("1", "H2")]))


def test_a_split_by_image_parts_patients_and_says_so(tmp_path):
    cells = cohort_of({f"{prefix}{number}": 20 for prefix in ("", "H") for number in range(5)})
    parameters = SplitParameters(by="image")
    rows = split_cells(cells, audit_cells(cells, []), parameters)
    assert (rows.groupby("group")["side"].nunique() > 1).all()
    assert write_split(rows, cells, parameters, tmp_path)["leaky"] is True
    with pytest.raises(LeakFound, match="groups on one side"):
        check_leak(rows)


def test_leaks_are_found_in_groups_subjects_and_images():
    rows = cells_of([("1", "all", "a"), ("1", "all", "b"), ("2", "all", "a")]).rows
    parted = rows.assign(group=["1", "1", "2"], side=["train", "train", "test"])
    with pytest.raises(LeakFound, match="images on one side"):
        check_leak(parted)
    with pytest.raises(LeakFound, match="subjects on one side"):
        check_leak(rows.assign(group=["1", "x", "2"], side=["train", "test", "train"]))
    check_leak(rows.assign(group=["1", "1", "1"], side="train"))


def test_a_split_is_read_back_and_belongs_to_its_manifest(tmp_path):
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(5)})
    folder, out = tmp_path / "cells", tmp_path / "split"
    folder.mkdir()
    cells.rows.to_parquet(folder / "manifest.parquet")
    write_json(folder / "import.json", cells.facts)
    rows = split_of(cells)
    facts = write_split(rows, cells, SplitParameters(), out)
    assert read_split(folder, out).set_index("path")["side"].equals(rows.set_index("path")["side"])
    assert sum(count["cells"] for side in facts["sides"].values() for count in side.values()) == 30
    assert facts["leaky"] is False
    before = (out / "split.parquet").read_bytes()
    write_split(rows, cells, SplitParameters(), out)
    assert (out / "split.parquet").read_bytes() == before
    rows.assign(side="train").to_parquet(out / "split.parquet")
    with pytest.raises(DataError, match="was changed"):
        read_split(folder, out)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"by": "cell"}, "split.by"),
        ({"test": 0.0}, "split.test"),
        ({"test": "much"}, "split.test"),
        ({"seed": 1.5}, "split.seed"),
        ({"train": 0.7}, "add up to 1"),
    ],
)
def test_parameters_that_cannot_be_used(changes, told):
    with pytest.raises(UsageError, match=told):
        SplitParameters(**changes)


@given(st.integers(4, 200))
def test_quota_shares_out_everything(units):
    fractions = [0.55, 0.15, 0.15, 0.15]
    shares = quota(units, fractions)
    assert sum(shares) == units
    assert min(shares) >= 1
    if units >= 27:  # where every fraction is worth a few units, each is met within one
        assert all(abs(share - fraction * units) <= 1 for share, fraction in zip(shares, fractions, strict=True))


def test_deal_does_not_depend_on_the_order():
    sizes = {str(number): 1 + number % 7 for number in range(20)}
    fractions = SplitParameters().fractions
    turned = dict(reversed(sizes.items()))
    assert deal(sizes, fractions, key="1") == deal(turned, fractions, key="1")
