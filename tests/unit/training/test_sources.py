"""Trees of classes: who the patient is, one spelling of a name, and what is passed over is told."""

import sys

import pytest

from blastwatch.errors import DataError
from tests.unit.training.test_import import by_path, draw, preliminary_cells, training_cells
from training.importing import import_cells
from training.sources import image_files, list_cnmc, list_folder

SLIDES = ("P1/all/S1/1.png", "P1/all/S2/2.png", "P2/hem/S3/3.png")
BATCHES = ("all/B1/P1/1.png", "all/B1/P2/2.png", "hem/B2/P3/3.png")

NAMED_LIKE = ("small/all/P1/1.png", "small/hem/P2/2.png", "wahem/ALL/P3/3.png")  # above: names that end like a class
BELOW_CLASS = "(?i)(^|/)(all|hem)/(?P<subject>[^/]+)/"


@pytest.fixture
def source(tmp_path):
    """Draws images of these names below a folder, and gives the folder."""

    def drawn(*names):
        for number, name in enumerate(names):
            draw(tmp_path / "source" / name, number)
        return tmp_path / "source"

    return drawn


@pytest.mark.parametrize(
    ("names", "told", "pattern", "subjects"),
    [
        (SLIDES, "above the class and folders below it too, as in P1/all/S1/1.png", "^(?P<subject>[^/]+)/", "P1 P1 P2"),
        (BATCHES, "between the class and the file, as in all/B1/P1/1.png", "(?P<subject>[^/]+)/[^/]+$", "P1 P2 P3"),
        (BATCHES, "several folders", BELOW_CLASS, "B1 B1 B2"),
        (NAMED_LIKE, "above the class", BELOW_CLASS, "P1 P2 P3"),
        (NAMED_LIKE, "above the class", "(?P<subject>[^/]+)/[^/]+$", "P1 P2 P3"),
        (NAMED_LIKE, "above the class", "^(?P<subject>[^/]+)/", "small small wahem"),
    ],
)
def test_where_slides_or_batches_could_be_the_patient_a_pattern_is_asked_for(source, names, told, pattern, subjects):
    folder = source(*names)
    with pytest.raises(DataError, match=told) as refused:
        list_folder(folder, name="x")
    assert pattern in str(refused.value)
    found = list_folder(folder, name="x", subject_pattern=pattern).candidates
    assert [candidate.subject for candidate in found] == subjects.split()


def test_classes_in_several_folders_need_no_pattern_where_names_tell_the_subject(source):
    folder = source("fold_0/all/UID_1_1_1_all.png", "fold_1/hem/UID_H2_1_1_hem.png")
    assert [candidate.subject for candidate in list_folder(folder, name="x").candidates] == ["1", "H2"]


def test_parts_of_a_data_set_above_the_classes_are_no_patients(source):
    parts = ("Train", "training", "TEST", "validation", "val", "fold_0", "x/fold_12")
    folder = source(*(f"{part}/{label}/{label}1/{n}.png" for n, part in enumerate(parts) for label in ("all", "hem")))
    with pytest.raises(DataError, match="above the class"):
        list_folder(folder, name="x")
    (folder / "x/fold_12").rename(folder / "Fold_12")
    found = list_folder(folder, name="x", subject_pattern="").candidates  # that of params.yaml, which is none
    assert len(found) == 14 and {candidate.subject for candidate in found} == {"all1", "hem1"}


def test_a_folder_name_of_two_encodings_is_one_patient(source):
    """A Mac writes the umlaut as a letter and a mark."""
    folder = source("all/Mu\u0308ller/1.png", "all/M\u00fcller/2.png", "hem/B /3.png")
    assert {candidate.subject for candidate in list_folder(folder, name="x").candidates} == {"M\u00fcller", "B"}
    found = list_folder(folder, name="x", subject_pattern="(?P<subject>M\u00fc|B)").candidates
    assert {candidate.subject for candidate in found} == {"M\u00fc", "B"}


def test_what_is_passed_over_is_counted_by_why(source, tmp_path):
    folder = source("all/A/1.png", "all/A/.2.png", "all/.old/3.png", "all/A/4.gif.png")
    for name in ("all/A/5.gif", "all/A/6.png ", "all/A/7", "all/A/8.0001", "all/A/._1.png", "notes.TXT", "x.csv"):
        (folder / name).touch()
    (folder / "__MACOSX").mkdir()
    listing = list_folder(folder, name="x")
    assert [candidate.path for candidate in listing.candidates] == ["all/A/1.png", "all/A/4.gif.png"]
    assert listing.refused == []
    assert listing.skipped == {
        "files ending in '.gif'": 1,
        "files ending in '.png '": 1,
        "files of no known kind": 2,
        "hidden files": 1,
        "hidden folders": 1,
    }
    (tmp_path / "gone/hem/B").mkdir(parents=True)
    (tmp_path / "gone/hem/B/1.gif").touch()
    with pytest.raises(DataError, match=r"named all and hem .* left aside were 1 of the files ending in '\.gif'"):
        import_cells(tmp_path / "gone", tmp_path / "cells", kind="folder")


def test_links_to_what_is_read_already_are_counted_and_two_labels_refused(source, tmp_path):
    folder = source("all/A/1.png", "all/.store/B/2.png")
    draw(tmp_path / "elsewhere/C/3.png", 3)
    for link, target in {
        "all/A2": folder / "all/A",
        "all/B": folder / "all/.store/B",  # no other name reads it
        "hem": tmp_path / "elsewhere",
        "zzz": tmp_path / "elsewhere",
    }.items():
        (folder / link).symlink_to(target)
    listing = list_folder(folder, name="x")
    assert [candidate.path for candidate in listing.candidates] == ["all/A/1.png", "all/B/2.png", "hem/C/3.png"]
    assert listing.skipped == {"hidden folders": 1, "links to folders that are read by another name": 2}
    (folder / "all/C").symlink_to(tmp_path / "elsewhere/C")
    with pytest.raises(DataError, match="all/C is a link to what is read as hem/C too"):
        list_folder(folder, name="x")


def test_a_link_to_what_holds_a_folder_that_is_read_reads_the_rest_alone(source, tmp_path):
    folder = source("all/A/1.png")
    for number, name in enumerate(("hem/B/2.png", "hem/C/3.png"), 2):
        draw(tmp_path / "archive" / name, number)
    (folder / "hem").symlink_to(tmp_path / "archive/hem/B")
    (folder / "rest").symlink_to(tmp_path / "archive")
    (folder / "up").symlink_to(folder.parent)
    listing = list_folder(folder, name="x", subject_pattern="(?P<subject>[^/]+)/[^/]+$")
    assert [candidate.path for candidate in listing.candidates] == ["all/A/1.png", "hem/2.png", "rest/hem/C/3.png"]
    assert listing.skipped == {"links to folders that are read by another name": 3}
    (folder / "all/B").symlink_to(tmp_path / "archive/hem/B")
    with pytest.raises(DataError, match="all/B is a link to what is read as hem too"):
        list_folder(folder, name="x", subject_pattern="(?P<subject>[^/]+)/[^/]+$")


def test_a_link_to_an_image_of_another_label_is_refused(source, tmp_path):
    """One of the same label, or to what is read by no other name, is taken: the audit finds what is equal."""
    folder = source("all/A/1.png", "hem/B/2.png", "hem/B/.3.png")
    draw(tmp_path / "store/5f2e.png", 4)
    for link, target in {"all/C/1.png": folder / "all/A/1.png", "all/C/3.png": folder / "hem/B/.3.png"}.items():
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to(target)
    (folder / "hem/B/4.png").symlink_to(tmp_path / "store/5f2e.png")
    paths = [candidate.path for candidate in list_folder(folder, name="x").candidates]
    assert paths == ["all/A/1.png", "all/C/1.png", "all/C/3.png", "hem/B/2.png", "hem/B/4.png"]
    (folder / "all/A/2.png").symlink_to(folder / "hem/B/2.png")
    with pytest.raises(DataError, match="all/A/2.png is a link to what is read as hem/B/2.png too"):
        list_folder(folder, name="x")


@pytest.mark.parametrize("pattern", ["(?P<subject>[^/]+)/[^/]+$"])
@pytest.mark.parametrize(
    ("links", "told"),
    [
        ({"all/C/1.png": "out/B/2.png", "hem/B": "out/B"}, "all/C/1.png is a link to what is read as hem/B/2.png too"),
        ({"all/C/1.png": "out/B/2.png", "hem/B": "out"}, "all/C/1.png is a link to what is read as hem/B/B/2.png too"),
        (
            {"all/C/1.png": "out/B/2.png", "all/D/1.png": "out/B/2.png", "hem/C/3.png": "out/B/2.png"},
            "hem/C/3.png is a link to what is read as all/C/1.png too",
        ),
    ],
)
def test_an_image_under_two_labels_is_found_in_whatever_order_links_come(source, tmp_path, links, told, pattern):
    """Those of one label are taken: two equal cells have one place in a store."""
    folder = source("all/A/1.png", "hem/H/1.png")
    draw(tmp_path / "out/B/2.png", 4)
    for link, target in links.items():
        assert list_folder(folder, name="x", subject_pattern=pattern).candidates
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=told):
        list_folder(folder, name="x", subject_pattern=pattern)


def test_a_linked_folder_that_is_not_there_stops_the_listing(source, tmp_path):
    """As on a disk that is not mounted: a cohort without it would be another. What is no folder is passed over."""
    folder = source("all/A/1.png")
    for name in ("notes.txt", ".hidden", "all/2.gif"):
        (folder / name).symlink_to(tmp_path / "gone")
    (folder / "all/3.png").symlink_to(tmp_path / "gone")  # whoever reads it finds out
    assert list(image_files(folder)) == ["all/3.png", "all/A/1.png"]
    (folder / "hem").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="/source/hem but cannot: it is a link to what is not there .* Mount what"):
        list_folder(folder, name="x")


def test_a_link_costs_the_same_however_many_there_are(tmp_path):
    def calls(links):
        folder, made = tmp_path / f"{links}", 0
        (folder / "cells/all/A").mkdir(parents=True)
        for number in range(links):
            (folder / f"store/{number}").mkdir(parents=True)
            (folder / f"store/{number}/1.png").touch()
            (folder / f"cells/all/{number}").symlink_to(folder / f"store/{number}")
            (folder / f"cells/all/A/{number}.png").symlink_to(folder / f"store/{number}/1.png")

        def count(_frame, event, _of):
            nonlocal made
            made += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            assert len(list_folder(folder / "cells", name="x").candidates) == 2 * links
        finally:
            sys.setprofile(before)
        return made

    assert calls(80) < 4.5 * calls(20)


def test_a_table_of_the_preliminary_set_in_another_encoding_is_told(tmp_path):
    training_cells(tmp_path / "source")
    table = tmp_path / "source/prelim_labels.csv"
    preliminary_cells(tmp_path / "source/C-NMC_test_prelim_phase_data", table)
    table.write_bytes(table.read_bytes() + "M\u00fcller,7.bmp,1\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"prelim_labels\.csv cannot be read as a CSV in UTF-8: .*save it in UTF-8"):
        list_cnmc(tmp_path / "source")


def test_a_manifest_in_a_linked_folder_finds_its_images(source, tmp_path):
    """The link is followed before the dots of a relative path are, so the place is written as it is."""
    folder = source("all/A/1.png")
    (tmp_path / "disk/deep/cells").mkdir(parents=True)
    (tmp_path / "cells").symlink_to(tmp_path / "disk/deep/cells")
    done = import_cells(folder, tmp_path / "cells", kind="folder", work_folder=tmp_path)
    assert done.facts["root"] == str(folder)
    plain = import_cells(folder, tmp_path / "plain", kind="folder", work_folder=tmp_path)
    assert plain.facts["root"] == "../source"
    assert by_path(plain).loc["all/A/1.png", "subject"] == "A"
