"""The audit: equal images, contradicting labels, and groups of subjects."""

import hashlib

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blastwatch.errors import DataError
from blastwatch.manifest import AUDIT, COLUMNS, Cells, manifest_digest, read_json, write_json
from training.audit import audit_cells, connected, contradicting, crossing, read_audit, write_audit

STATISTICS = pd.DataFrame({"path": ["0000.bmp"]})


def cells_of(rows, folder=None):
    """A data set from (subject, label, picture) rows; equal pictures have equal pixels."""
    records = [
        {
            "path": f"{number:04d}.bmp",
            "label": label,
            "subject": subject,
            "source": "test",
            "file_sha256": hashlib.sha256(str(number).encode()).hexdigest(),
            "pixel_sha256": hashlib.sha256(str(picture).encode()).hexdigest(),
            "width": 450,
            "height": 450,
        }
        for number, (subject, label, picture) in enumerate(rows)
    ]
    frame = pd.DataFrame(records, columns=list(COLUMNS))
    return Cells(folder=folder, rows=frame, facts={"digest": manifest_digest(frame), "synthetic": True})


def test_equal_images_tie_their_subjects():
    found = audit_cells(
        cells_of([("1", "all", "a"), ("2", "all", "a"), ("2", "all", "b"), ("3", "all", "b"), ("H1", "hem", "c")]), []
    )
    assert [finding.to_dict() for finding in found.findings] == [
        {"kind": "exact", "a": "0000.bmp", "b": "0001.bmp", "score": 1.0},
        {"kind": "exact", "a": "0002.bmp", "b": "0003.bmp", "score": 1.0},
    ]
    assert found.groups == [["1", "2", "3"], ["H1"]]
    assert not found.leak
    assert set(found.to_dict()) == {"images", "findings", "groups", "links", "odd", "alike", "leak"}


def test_near_duplicates_tie_their_subjects_and_cross_a_split_like_equal_images():
    cells = cells_of([("1", "all", "a"), ("2", "all", "b"), ("3", "all", "c")])
    near = [("0000.bmp", "0002.bmp", 0.9)]
    found = audit_cells(cells, near, split=cells.rows.assign(group="x", side=["train", "train", "test"]))
    assert [finding.to_dict() for finding in found.findings] == [
        {"kind": "near", "a": "0000.bmp", "b": "0002.bmp", "score": 0.9}
    ]
    assert found.groups == [["1", "3"], ["2"]] and found.leak


def test_equal_images_of_two_labels_are_a_finding_of_their_own():
    found = audit_cells(cells_of([("1", "all", "a"), ("H1", "hem", "a"), ("1", "all", "a")]), [])
    assert [finding.kind for finding in found.findings] == ["label", "exact"]
    assert found.groups == [["1", "H1"]]


def test_eleven_and_h11_are_two_people():
    assert audit_cells(cells_of([("11", "all", "a"), ("H11", "hem", "b")]), []).groups == [["11"], ["H11"]]


@pytest.mark.parametrize(
    ("sides", "leak", "kinds"),
    [
        (["train", "train", "test"], False, ["exact"]),
        (["train", "test", "test"], True, ["exact"]),
        (["train", "train", "train"], False, ["exact"]),
    ],
)
def test_a_finding_that_crosses_a_split_is_a_leak(sides, leak, kinds):
    cells = cells_of([("1", "all", "a"), ("2", "all", "a"), ("3", "all", "b")])
    found = audit_cells(cells, [], split=cells.rows.assign(group=cells.rows["subject"], side=sides))
    assert found.leak is leak
    assert [finding.kind for finding in found.findings] == kinds


def test_a_parted_subject_is_a_leak():
    cells = cells_of([("1", "all", "a"), ("1", "all", "b"), ("1", "all", "c")])
    found = audit_cells(cells, [], split=cells.rows.assign(group="1", side=["train", "test", "train"]))
    assert found.leak and found.findings == []
    assert [(finding.kind, finding.a, finding.b) for finding in found.shown] == [("subject", "0000.bmp", "0001.bmp")]
    assert [finding["kind"] for finding in found.to_dict()["findings"]] == ["subject"]


def parted(tmp_path):
    cells = cells_of([("1", "all", "a"), ("1", "all", "b"), ("2", "all", "a")], folder=tmp_path)
    return cells, cells.rows.assign(group="1", side=["train", "test", "train"])


def test_what_is_said_of_a_split_is_not_written_as_if_it_were_true_of_the_data(tmp_path):
    cells, split = parted(tmp_path)
    write_audit(audit_cells(cells, []), STATISTICS, tmp_path / "without")
    write_audit(audit_cells(cells, [], split=split), STATISTICS, tmp_path / "with")
    assert (tmp_path / "with" / AUDIT).read_bytes() == (tmp_path / "without" / AUDIT).read_bytes()


def test_an_earlier_audit_that_wrote_the_subjects_of_its_split_is_read_without_them(tmp_path):
    cells, split = parted(tmp_path)
    found = audit_cells(cells, [], split=split)
    write_audit(found, STATISTICS, tmp_path)
    earlier = read_json(tmp_path / AUDIT, made_by="") | {"findings": found.to_dict()["findings"], "leak": True}
    write_json(tmp_path / AUDIT, earlier)
    read = read_audit(tmp_path, cells)
    assert [finding.kind for finding in read.findings] == ["exact"] and not read.leak
    assert crossing(read.findings, split.assign(side="train")) == crossing(read.findings, split) == []


def test_pairs_under_two_labels_are_found_whatever_their_kind():
    cells = cells_of([("1", "all", "a"), ("1", "hem", "a"), ("2", "all", "b"), ("3", "hem", "c"), ("4", "all", "d")])
    found = audit_cells(cells, [("0002.bmp", "0003.bmp", 0.9), ("0002.bmp", "0004.bmp", 0.9)])
    told = [(finding.kind, finding.a, finding.b) for finding in contradicting(found.findings, cells.rows)]
    assert told == [("label", "0000.bmp", "0001.bmp"), ("near", "0002.bmp", "0003.bmp")]


def test_an_audit_is_read_back_and_belongs_to_its_manifest(tmp_path):
    cells = cells_of([("1", "all", "a"), ("2", "all", "a")], folder=tmp_path)
    found = audit_cells(cells, [])
    write_audit(found, STATISTICS, tmp_path)
    assert read_audit(tmp_path, cells) == found
    with pytest.raises(DataError, match="another manifest"):
        read_audit(tmp_path, cells_of([("1", "all", "a")], folder=tmp_path))
    with pytest.raises(DataError, match="blastwatch data audit"):
        read_audit(tmp_path / "nowhere", cells)


names = st.sampled_from([str(number) for number in range(12)])


def reached(start, ties):
    """Breadth-first, as another way to the same set."""
    seen, edge = {start}, {start}
    while edge:
        edge = {b for a, b in [*ties, *((b, a) for a, b in ties)] if a in edge} - seen
        seen |= edge
    return seen


@given(st.lists(names), st.lists(st.tuples(names, names)))
def test_groups_are_the_connected_sets(items, ties):
    groups = connected(items, ties)
    members = [item for group in groups for item in group]
    assert sorted(members) == sorted(set(members))
    assert set(members) == set(items) | {item for tie in ties for item in tie}
    for group in groups:
        assert set(group) == reached(group[0], ties)
    assert groups == connected(reversed(items), [(b, a) for a, b in reversed(ties)])


def test_links_tie_subjects_that_share_no_image():
    cells = cells_of([("1", "all", "a"), ("2", "all", "b"), ("3", "all", "c"), ("H1", "hem", "d")])
    found = audit_cells(cells, [], links=[["3", "1"]])
    assert found.groups == [["1", "3"], ["2"], ["H1"]]
    assert found.links == [["1", "3"]]
    parted = cells.rows.assign(group=cells.rows["subject"], side=["train", "train", "test", "test"])
    assert audit_cells(cells, [], links=[["3", "1"]], split=parted).leak
    assert not audit_cells(cells, [], links=[["2", "1"]], split=parted).leak
    with pytest.raises(DataError, match="among those of the data set but got 9"):
        audit_cells(cells, [], links=[["3", "9"]])
