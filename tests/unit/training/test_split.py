"""The split: whole groups, every label on every side, the same for the same seed, and a leak stops everything."""

import dataclasses

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import CheckRefused, DataError, LeakFound, UsageError
from blastwatch.manifest import SIDES, read_split, write_json
from tests.unit.training.test_audit import cells_of
from training.audit import audit_cells, check_links
from training.dealing import Unit, deal, quota
from training.splitting import (
    SplitParameters,
    check_leak,
    check_tested,
    check_ties,
    dealt_by,
    folds,
    split_cells,
    write_split,
)


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
    parameters, audit = SplitParameters(by="image"), audit_cells(cells, [])
    rows = split_cells(cells, audit, parameters)
    assert (rows.groupby("group")["side"].nunique() > 1).all()
    facts = write_split(rows, cells, audit, parameters, tmp_path)
    assert facts["leaky"] is True
    assert len(facts["parted_groups"]) == 10
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
    audit = audit_cells(cells, [])
    facts = write_split(rows, cells, audit, SplitParameters(), out)
    assert read_split(folder, out).set_index("path")["side"].equals(rows.set_index("path")["side"])
    assert sum(count["cells"] for side in facts["sides"].values() for count in side.values()) == 30
    assert facts["leaky"] is False
    before = (out / "split.parquet").read_bytes()
    write_split(rows, cells, audit, SplitParameters(), out)
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
        ({"by": "official"}, "split.official"),
        ({"official": "fold_1"}, "split.official"),
        ({"folds": 1}, "split.folds"),
        ({"folds": 5, "fold": 5}, "split.fold"),
        ({"by": "image", "folds": 5}, "split.by=group"),
        ({"keep": "split", "folds": 5}, "split.keep"),
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
    sizes = {str(number): Unit(1 + number % 7, "test") for number in range(20)}
    fractions = SplitParameters().fractions
    turned = dict(reversed(sizes.items()))
    assert deal(sizes, fractions, key="1") == deal(turned, fractions, key="1")


def test_every_source_gets_its_share():
    cells = cohort_of({f"{prefix}{number}": 10 + number % 3 for prefix in ("", "H") for number in range(60)})
    source = cells.rows["subject"].map(lambda subject: f"laboratory {int(subject.lstrip('H')) % 3 == 0}")
    rows = split_of(dataclasses.replace(cells, rows=cells.rows.assign(source=source)))
    for _, of_source in rows.groupby("source"):
        shares = of_source["side"].value_counts(normalize=True)
        for side, fraction in SplitParameters().fractions.items():
            assert shares[side] == pytest.approx(fraction, abs=0.07)


def test_a_split_says_by_what_it_was_dealt(tmp_path):
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(9)})
    parameters = SplitParameters(seed=4, folds=3, fold=2)
    facts = write_split(split_of(cells, seed=4, folds=3, fold=2), cells, audit_cells(cells, []), parameters, tmp_path)
    asked = {name: value for name, value in dataclasses.asdict(parameters).items() if name != "keep"}
    assert dealt_by(facts) == asked | {"kept": ""}


def test_folds_hold_every_group_once_and_do_not_depend_on_which_is_tested():
    cells = cohort_of({f"{prefix}{number}": 3 + number for prefix in ("", "H") for number in range(15)}, [("0", "1")])
    tested = []
    for fold in range(5):
        rows = split_of(cells, folds=5, fold=fold)
        check_leak(rows)
        assert set(rows["side"]) == set(SIDES)
        test = rows[rows["side"] == "test"]
        assert set(test["label"]) == set(CLASS_NAMES)
        assert len(test) / len(rows) == pytest.approx(0.2, abs=0.06)
        tested += sorted(set(test["group"]))
    assert sorted(tested) == sorted(set(rows["group"]))
    units = rows.assign(unit=rows["group"])
    assert folds(units, SplitParameters(folds=5)) == folds(units, SplitParameters(folds=5, fold=3))


def test_more_folds_than_patients_are_refused_by_their_name():
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(6)})
    with pytest.raises(DataError, match=r"one for each fold, but got 6\. .* or set fewer split\.folds"):
        split_of(cells, folds=7)


def test_a_split_of_another_audit_is_told(tmp_path):
    """Patients that were linked since may stand on two sides; of an older split it is not known."""
    cells = cohort_of({f"{prefix}{number}": 3 for prefix in ("", "H") for number in range(9)})
    audit, linked = audit_cells(cells, []), audit_cells(cells, [], links=[["3", "5"]])
    facts = write_split(split_of(cells), cells, audit, SplitParameters(), tmp_path)
    check_ties(facts, audit, tmp_path)
    check_ties({name: value for name, value in facts.items() if name != "ties_digest"}, linked, tmp_path)
    with pytest.raises(LeakFound, match="ties other patients than the one by which the split was made"):
        check_ties(facts, linked, tmp_path)


def test_links_that_came_after_the_audit_are_told(tmp_path):
    cells = cohort_of({"1": 2, "2": 2, "3": 2, "H1": 2})
    linked = audit_cells(cells, [], links=[["3", "2"], ["1", "H1"]])
    check_links(linked, [["H1", "1"], ["2", "3"]], tmp_path)
    with pytest.raises(DataError, match=r"\[\['1', 'H1'\], \['2', '3'\]\], but the parameters say \[\['2', '3'\]\]"):
        check_links(linked, [["2", "3"]], tmp_path)


def official_cohort(ties):
    cells = cohort_of({f"{prefix}{number}": 6 for prefix in ("", "H") for number in range(12)}, ties)
    fold = cells.rows["subject"].map(lambda subject: f"fold_{int(subject.lstrip('H')) % 3}")
    return dataclasses.replace(cells, rows=cells.rows.assign(path=fold + "/" + cells.rows["path"]))


def test_an_official_fold_is_taken_as_it_is_with_the_verdict(tmp_path):
    parameters = SplitParameters(by="official", official="fold_1")
    for ties, leaky in (((), False), ([("3", "4")], True)):  # subject 3 lies in fold_0, subject 4 in fold_1
        cells = official_cohort(ties)
        audit = audit_cells(cells, [])
        rows = split_cells(cells, audit, parameters)
        assert ((rows["side"] == "test") == rows["path"].str.startswith("fold_1/")).all()
        assert set(rows["side"]) == set(SIDES)
        facts = write_split(rows, cells, audit, parameters, tmp_path)
        assert (facts["leaky"], facts["crossing"], facts["parted_groups"]) == (leaky, int(leaky), ["3"] * leaky)
    with pytest.raises(DataError, match=r"fold_7 .* none of 146"):
        split_cells(cells, audit, SplitParameters(by="official", official="fold_7"))


@pytest.mark.parametrize(("label", "other"), [("all", "hem"), ("hem", "all")])
def test_an_official_folder_of_one_label_is_refused(label, other):
    cells = official_cohort(())
    paths = cells.rows["path"].where(cells.rows["label"] != other, cells.rows["path"].str.replace("fold_1", "fold_2"))
    cells = dataclasses.replace(cells, rows=cells.rows.assign(path=paths))
    with pytest.raises(DataError, match=rf"none of {other} among 24.*split by group\.$"):
        split_of(cells, by="official", official="fold_1")


def test_a_split_that_a_network_was_trained_on_is_to_be_made_again():
    rows = pd.DataFrame({"side": ["train", "test"], "label": ["hem", "all"]})
    with pytest.raises(DataError, match=r"split by group: run blastwatch data split again so, and train anew\.$"):
        check_tested(rows, trained=True)
