"""An earlier split that is kept: nobody changes sides, whatever they are called now, and nothing is kept unseen."""

import dataclasses

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.errors import CheckRefused, DataError
from blastwatch.manifest import KEPT_COLUMNS, SPLIT, SPLIT_FACTS, columns_digest, split_digest, write_json
from tests.unit.training.test_audit import cells_of
from tests.unit.training.test_split import cohort_of, cohorts, split_of
from training.audit import audit_cells
from training.keeping import keep_split, kept_told
from training.splitting import SplitParameters, check_leak, split_cells, write_split

SIZES = {f"{prefix}{number}": 5 for prefix in ("", "H") for number in range(8)}


def older_split(folder, subjects, sides):
    """The folder of a split as an earlier program wrote it: without pixels, and without a digest of whole rows."""
    rows = pd.DataFrame({"subject": subjects, "side": sides}).assign(group=subjects)
    rows["path"] = [f"then/{number}.bmp" for number in range(len(rows))]
    rows.to_parquet(folder / SPLIT)
    write_json(folder / SPLIT_FACTS, {"digest": split_digest(rows)})


def rows_of(subjects, groups):
    rows = cells_of([(subject, "all", subject) for subject in subjects]).rows
    return rows.assign(group=groups)


@pytest.fixture
def earlier(tmp_path):
    """A cohort, its rows with their sides, and the folder of its split."""
    cells = cohort_of(SIZES)
    rows = split_of(cells)
    write_split(rows, cells, audit_cells(cells, []), SplitParameters(), tmp_path / "earlier")
    return cells, rows, tmp_path / "earlier"


def renamed(cells, **columns):
    """The cells with other text in these columns: prefixes by column."""
    rows = cells.rows.assign(**{name: prefix + cells.rows[name] for name, prefix in columns.items()})
    return dataclasses.replace(cells, rows=rows)


def as_older(folder):
    """Make the split one that an earlier program wrote."""
    rows = pd.read_parquet(folder / SPLIT).drop(columns="pixel_sha256")
    rows.to_parquet(folder / SPLIT)
    write_json(folder / SPLIT_FACTS, {"digest": split_digest(rows)})


@settings(max_examples=25, deadline=None)
@given(cohorts(), st.integers(0, 100), st.integers(1, 10), st.integers(0, 60))
def test_added_images_move_no_group(tmp_path_factory, cells, seed, patients, images):
    earlier = tmp_path_factory.mktemp("earlier")
    audit = audit_cells(cells, [])
    before = split_cells(cells, audit, SplitParameters(seed=seed))
    write_split(before, cells, audit, SplitParameters(seed=seed), earlier)
    known = list(zip(cells.rows["subject"], cells.rows["label"], cells.rows["pixel_sha256"], strict=True))
    known += [(subject, label, f"new {n}") for n in range(images) for subject, label, _ in [known[n % len(known)]]]
    known += [(f"{'H' * (n % 2)}9{n}", ("all", "hem")[n % 2], f"{n} {m}") for n in range(patients) for m in range(9)]
    # A new patient that is tied to a known one goes where that one is.
    grown = cells_of([*known, ("900", "all", "tie"), ("2", "all", "tie")])
    after = split_of(grown, seed=seed, keep=str(earlier))
    check_leak(after)
    side = dict(zip(before["subject"], before["side"], strict=True))
    kept = after[after["subject"].isin(list(side))]
    assert (kept["side"] == kept["subject"].map(side)).all()
    assert (after.loc[after["subject"] == "900", "side"] == side["2"]).all()
    assert len(after) == len(grown.rows)
    told = keep_split(after, earlier).subjects
    assert told == {"named": len(side), "by_image": 0, "by_path": 0, "new": patients + 1, "gone": 0}


def test_a_tie_across_the_sides_that_were_kept_is_refused(tmp_path):
    sizes = {f"{prefix}{number}": 5 for prefix in ("", "H") for number in range(8)}
    cells = cohort_of(sizes)
    audit = audit_cells(cells, [])
    rows = split_cells(cells, audit, SplitParameters())
    facts = write_split(rows, cells, audit, SplitParameters(), tmp_path)
    assert facts["kept_subjects"] is None
    side = dict(zip(rows["subject"], rows["side"], strict=True))
    other = next(subject for subject in sizes if side[subject] != side["0"] and not subject.startswith("H"))
    with pytest.raises(CheckRefused, match=f"0 \\(.*{other} \\(.*train anew"):
        split_of(cohort_of(sizes, [("0", other)]), keep=str(tmp_path))
    with pytest.raises(DataError, match=r"nowhere.*split\.parquet is missing"):
        split_of(cells, keep="nowhere")
    again = write_split(rows, cells, audit, SplitParameters(keep=str(tmp_path)), tmp_path / "again")
    assert again["kept"] == facts["digest"]
    assert again["kept_subjects"] == {"named": 16, "by_image": 0, "by_path": 0, "new": 0, "gone": 0}


def test_a_known_patient_whose_group_has_a_new_first_name_stays_where_they_were(tmp_path):
    """Else whoever was tested could come to be trained on."""
    older_split(tmp_path, ["B"], ["test"])
    kept = keep_split(rows_of(["A", "B"], ["A", "A"]), tmp_path)
    assert kept.sides == {"A": "test"}
    assert kept.subjects == {"named": 1, "by_image": 0, "by_path": 0, "new": 1, "gone": 0}


def test_a_split_that_parts_a_patient_is_not_kept(tmp_path):
    """By image: whichever side it were called, cells of that patient were trained on and tested."""
    older_split(tmp_path, ["A", "A", "B"], ["train", "test", "train"])
    with pytest.raises(CheckRefused, match=r"1 have images on several, such as A\. Keep a split by group"):
        keep_split(rows_of(["A", "B"], ["A", "B"]), tmp_path)


def test_what_stays_may_not_leave_a_side_without_a_label(tmp_path):
    cells = cohort_of({f"{prefix}{number}": 5 for prefix in ("", "H") for number in range(4)})
    older_split(tmp_path, ["H0", "H1", "H2", "H3"], ["train", "train", "validation", "calibration"])
    with pytest.raises(DataError, match=r"label hem on every side .* leave none for test\."):
        split_of(cells, keep=str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "older", "by"),
    [
        ({"subject": "P-"}, False, "image"),  # and by path
        ({"subject": "P-"}, True, "path"),
        ({"subject": "P-", "path": "new/"}, False, "image"),
        ({"subject": "P-", "pixel_sha256": "f"}, False, "path"),
    ],
)
def test_patients_under_other_names_stay_on_their_sides(earlier, columns, older, by):
    """In the next delivery ids may be written in another way: dealt anew, those who were tested would be trained on."""
    cells, before, folder = earlier
    if older:
        as_older(folder)
    now = renamed(cells, **columns)
    after = split_of(now, keep=str(folder))
    side = before.set_index("path")["side"]
    assert (after["side"] == after["path"].str.removeprefix("new/").map(side)).all()
    told = keep_split(after, folder).subjects
    assert told == {"named": 0, "by_image": 0, "by_path": 0, "new": 0, "gone": 0} | {f"by_{by}": 16}
    words = f"16 subjects (16 under another name, known by their {by}s) of the split in then; 0 are new."
    assert kept_told("then", told) == f"Kept the sides of {words}"


def test_where_nobody_is_known_nothing_is_kept_and_that_is_told(earlier):
    cells, _, folder = earlier
    now = renamed(cells, subject="P-", path="new/", pixel_sha256="f")
    with pytest.raises(CheckRefused, match=r"cells of the 16 patients .* none of its images is among these"):
        split_of(now, keep=str(folder))


def test_patients_who_are_gone_are_counted(earlier):
    cells, before, folder = earlier
    trained = before[before["side"] == "train"].drop_duplicates("label")["subject"]
    left = dataclasses.replace(cells, rows=cells.rows[~cells.rows["subject"].isin(trained)])
    told = keep_split(split_of(left, keep=str(folder)), folder).subjects
    assert told == {"named": 14, "by_image": 0, "by_path": 0, "new": 0, "gone": 2}
    assert kept_told("earlier", told).endswith("0 are new. 2 of its subjects are gone.")


def numbered(rows, without=()):
    """The rows without these subjects, their files numbered in the order of subjects, as a table may name them."""
    rows = rows[~rows["subject"].isin(without)].sort_values(["subject", "path"], ignore_index=True)
    return rows.assign(path=[f"cells/{number:04}.png" for number in range(len(rows))])


@pytest.mark.parametrize("older", [False, True])
def test_numbered_files_that_a_new_patient_shifts_move_nobody(tmp_path, older):
    """Every path holds another cell then: subjects and pixels tell, and a path proves nothing."""
    cells = cohort_of(SIZES | {"00": 7})  # more cells than a patient had, so that their paths were those of two
    rows = split_of(cells).assign(group=lambda rows: rows["subject"])
    then, now = numbered(rows, without=["00"]), numbered(rows)
    then[list(KEPT_COLUMNS)].to_parquet(tmp_path / SPLIT)
    write_json(tmp_path / SPLIT_FACTS, {
        "digest": split_digest(then), "rows_digest": columns_digest(then, KEPT_COLUMNS)
    })  # fmt: skip
    if older:
        as_older(tmp_path)
    kept = keep_split(now.drop(columns="side"), tmp_path)
    assert kept.sides == dict(zip(then["group"], then["side"], strict=True))
    assert kept.subjects == {"named": 16, "by_image": 0, "by_path": 0, "new": 1, "gone": 0}


def test_of_an_older_split_the_name_of_a_patient_tells_more_than_a_path(earlier):
    """It holds no pixels: a path may hold another cell by now."""
    cells, before, folder = earlier
    as_older(folder)
    side = before.drop_duplicates("subject").set_index("subject")["side"]
    trained, tested = (next(s for s in SIZES if side[s] == wanted) for wanted in ("train", "test"))
    rows = cells.rows.copy()
    one, other = (rows.index[rows["subject"] == subject][0] for subject in (trained, tested))
    rows.loc[[one, other], "path"] = rows.loc[[other, one], "path"].to_numpy()
    kept = keep_split(rows.assign(group=rows["subject"]), folder)
    assert kept.sides == side.to_dict()


def test_patients_of_two_sides_in_one_group_by_their_paths_alone_are_told_so(tmp_path):
    older_split(tmp_path, ["A", "B"], ["train", "test"])
    now = rows_of(["X", "X"], ["X", "X"]).assign(path=["then/0.bmp", "then/1.bmp"])
    told = r"path then/0\.bmp \(train\), path then/1\.bmp \(test\); 1 groups in all.*give a path that now holds"
    with pytest.raises(CheckRefused, match=told):
        keep_split(now, tmp_path)


def test_a_cell_that_was_tested_is_not_trained_on_under_the_name_of_another(earlier):
    cells, before, folder = earlier
    tested = before.loc[(before["side"] == "test") & (before["label"] == "all"), "path"].iloc[0]
    trained = before.loc[(before["side"] == "train") & (before["label"] == "all"), "subject"].iloc[0]
    moved = cells.rows.copy()
    moved.loc[moved["path"] == tested, "subject"] = trained
    with pytest.raises(CheckRefused, match=rf"{trained} \(train\), image {tested} \(test\); 1 groups in all"):
        split_of(dataclasses.replace(cells, rows=moved), keep=str(folder))


@pytest.mark.parametrize(
    ("column", "values", "older"),
    [("side", ("test", "train"), False), ("subject", ("1", "2"), False), ("side", ("test", "train"), True)],
)
def test_a_split_that_was_changed_is_not_kept(earlier, column, values, older):
    """The digest of the split does not cover subjects."""
    cells, _, folder = earlier
    if older:
        as_older(folder)
    rows = pd.read_parquet(folder / SPLIT)
    changed = rows.assign(**{column: rows[column].replace(dict([values, values[::-1]]))})
    changed.to_parquet(folder / SPLIT)
    with pytest.raises(DataError, match=r"split\.parquet \(split\.keep\) was changed"):
        split_of(cells, keep=str(folder))
