"""The import: both layouts of C-NMC, trees of classes, tables, and what is refused."""

import csv
import json
import os
import struct
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from blastwatch.errors import DataError, UsageError
from blastwatch.images import MAX_BYTES
from blastwatch.manifest import IMPORT, MANIFEST, REFUSED, read_cells
from training.importing import import_cells, list_source, read_image
from training.sources import image_files


def draw(path, number=0, side=24):
    """A small image whose pixels depend on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def long_header(path):
    """Rewrite a BMP of a 40-byte header with one of 124 bytes, as another release of C-NMC has: 138 bytes in all."""
    data = path.read_bytes()
    body = data[54:]
    info = struct.pack("<I", 124) + data[18:54] + bytes(84)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 138 + len(body), 0, 0, 138) + info + body)


def training_cells(folder):
    names = ["fold_0/all/UID_11_1_1_all.bmp", "fold_0/hem/UID_H11_1_1_hem.bmp", "fold_1/hem/UID_h3_2_1_hem.bmp"]
    for number, name in enumerate(names):
        draw(folder / name, number)


def preliminary_cells(folder, table):
    for number in (1, 2, 3):
        draw(folder / f"{number}.bmp", 100 + number)
    table.write_text(
        "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_h10_1_1_hem.bmp,2.bmp,0\nUID_57_3_1_all.bmp,9.bmp,1\n"
    )


def by_path(done):
    return done.rows.set_index("path")


def test_cnmc_as_downloaded(tmp_path):
    source = tmp_path / "source"
    training_cells(source / "C-NMC_training_data")
    preliminary = source / "C-NMC_test_prelim_phase_data"
    preliminary_cells(preliminary, source / "C-NMC_test_prelim_phase_data_labels.csv")
    draw(source / "C-NMC_test_final_phase_data/1.bmp", 200)
    done = import_cells(source, tmp_path / "cells", kind="cnmc")
    rows = by_path(done)

    assert rows.loc["C-NMC_training_data/fold_1/hem/UID_h3_2_1_hem.bmp", "subject"] == "H3"
    assert rows.loc["C-NMC_training_data/fold_0/all/UID_11_1_1_all.bmp", "subject"] == "11"
    assert rows.loc["C-NMC_training_data/fold_0/hem/UID_H11_1_1_hem.bmp", "subject"] == "H11"
    assert rows.loc["C-NMC_test_prelim_phase_data/1.bmp", ["label", "subject"]].tolist() == ["all", "57"]
    assert rows.loc["C-NMC_test_prelim_phase_data/2.bmp", ["label", "subject"]].tolist() == ["hem", "H10"]
    assert set(rows["source"]) == {"C-NMC fold 0", "C-NMC fold 1", "C-NMC preliminary test"}
    assert done.facts["skipped"] == {"final test set without public labels": 1}
    assert {(refusal.path, refusal.reason) for refusal in done.refused} == {
        ("C-NMC_test_prelim_phase_data/3.bmp", "label"),
        ("9.bmp", "missing"),
    }


def test_cnmc_from_kaggle(tmp_path):
    source = tmp_path / "C-NMC_Leukemia"
    training_cells(source / "training_data/fold_0")  # nested: fold_0/fold_0
    validation = source / "validation_data"
    preliminary_cells(
        validation / "C-NMC_test_prelim_phase_data", validation / "C-NMC_test_prelim_phase_data_labels.csv"
    )
    draw(source / "testing_data/C-NMC_test_final_phase_data/1.bmp", 200)
    done = import_cells(source, tmp_path / "cells", kind="cnmc")
    assert by_path(done).loc["training_data/fold_0/fold_0/all/UID_11_1_1_all.bmp", "source"] == "C-NMC fold 0"
    assert done.facts["images"] == 5
    assert done.facts["labels"] == {"all": 2, "hem": 3}
    assert done.facts["skipped"] == {"final test set without public labels": 1}


@pytest.mark.parametrize(
    "start", ["C-NMC_training_data", "C-NMC_training_data/fold_0", "C-NMC_training_data/fold_0/all"]
)
def test_cnmc_from_any_folder_below(tmp_path, start):
    training_cells(tmp_path / "C-NMC_training_data")
    done = import_cells(tmp_path / start, tmp_path / "cells", kind="cnmc")
    assert "C-NMC fold 0" in set(done.rows["source"])
    assert "11" in set(done.rows["subject"])


def test_preliminary_images_without_their_table_are_left_aside_and_told(tmp_path):
    training_cells(tmp_path / "source/C-NMC_training_data")
    draw(tmp_path / "source/C-NMC_test_prelim_phase_data/1.bmp")
    done = import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc")
    assert done.facts["skipped"] == {"preliminary test set without its CSV of labels": 1}


def test_a_name_that_contradicts_its_folder_or_is_none_is_refused(tmp_path):
    training_cells(tmp_path / "source")
    draw(tmp_path / "source/fold_0/all/UID_H4_1_1_hem.bmp")
    draw(tmp_path / "source/fold_0/all/cell.bmp")
    done = import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc")
    assert [(refusal.path, refusal.reason) for refusal in done.refused] == [
        ("fold_0/all/UID_H4_1_1_hem.bmp", "label"),
        ("fold_0/all/cell.bmp", "name"),
    ]


def test_other_formats_of_the_same_naming(tmp_path):
    for number, suffix in enumerate(("png", "webp", "tif", "jpg")):
        draw(tmp_path / f"source/fold_0/all/UID_1_1_{number}_all.{suffix}", number)
    assert import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc").facts["images"] == 4


def test_a_corrupt_image_is_refused_by_name_and_the_rest_goes_on(tmp_path):
    training_cells(tmp_path / "source")
    cut = draw(tmp_path / "source/fold_0/all/UID_5_1_1_all.bmp", 9)
    cut.write_bytes(cut.read_bytes()[:500])
    (tmp_path / "source/fold_0/all/UID_5_1_2_all.bmp").write_text("no image")
    (tmp_path / "source/fold_0/all/UID_5_1_3_all.bmp").touch()
    done = import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc")
    assert done.facts["images"] == 3
    with (tmp_path / "cells" / REFUSED).open(newline="") as file:
        refused = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert refused == {
        "fold_0/all/UID_5_1_1_all.bmp": "truncated",
        "fold_0/all/UID_5_1_2_all.bmp": "not-an-image",
        "fold_0/all/UID_5_1_3_all.bmp": "empty",
    }


def test_a_file_that_is_too_large_is_refused_and_never_read(tmp_path):
    files = {"too-large": MAX_BYTES + 1, "not-an-image": MAX_BYTES}
    for reason, size in files.items():
        with (tmp_path / reason).open("wb") as file:
            file.truncate(size)  # zeros that take no room on the disk
    read_image(tmp_path / "not-an-image")  # what is loaded on first use is not counted below
    for reason, size in files.items():
        tracemalloc.start()
        try:
            fact = read_image(tmp_path / reason)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert fact["reason"] == reason
        assert (most < MAX_BYTES) == (size > MAX_BYTES)
        assert reason != "too-large" or f"at most {MAX_BYTES} bytes but got {size}" in fact["message"]


def test_what_is_no_file_is_refused_and_never_read(tmp_path):
    draw(tmp_path / "source/all/A/1.png", 1)
    os.mkfifo(tmp_path / "source/all/A/2.png")
    (tmp_path / "source/all/A/3.png").symlink_to("/dev/zero")
    done = import_cells(tmp_path / "source", tmp_path / "cells", kind="folder")
    assert list(done.rows["path"]) == ["all/A/1.png"]
    assert [(one.path, one.reason) for one in done.refused] == [(f"all/A/{n}.png", "unreadable") for n in (2, 3)]


def test_headers_differ_but_pixels_tell(tmp_path):
    first = draw(tmp_path / "source/fold_0/all/UID_1_1_1_all.bmp", 3)
    second = draw(tmp_path / "source/fold_1/all/UID_2_1_1_all.bmp", 3)
    long_header(second)
    rows = import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc").rows
    assert first.read_bytes() != second.read_bytes()
    assert rows["file_sha256"].nunique() == 2
    assert rows["pixel_sha256"].nunique() == 1


def test_the_same_cells_give_the_same_bytes(tmp_path):
    training_cells(tmp_path / "source")
    (tmp_path / "source/fold_0/all/UID_5_1_2_all.bmp").write_text("no image")
    for out in ("one", "two"):
        import_cells(tmp_path / "source", tmp_path / out, kind="cnmc", work_folder=tmp_path)
    for name in (MANIFEST, REFUSED, IMPORT):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_manifest_moves_with_its_work_folder(tmp_path):
    work = tmp_path / "work"
    training_cells(work / "data/source")
    import_cells(work / "data/source", work / "data/cells", kind="cnmc", work_folder=work)
    assert json.loads((work / "data/cells/import.json").read_text())["root"] == "../source"
    moved = work.rename(tmp_path / "moved")
    cells = read_cells(moved / "data/cells")
    assert all((cells.root / path).is_file() for path in cells.rows["path"])
    outside = import_cells(moved / "data/source", tmp_path / "cells", kind="cnmc", work_folder=moved)
    assert outside.facts["root"] == str(moved / "data/source")


def test_folder_of_classes(tmp_path):
    source = tmp_path / "laboratory"
    for number, name in enumerate(("all/anna/1.png", "all/anna/2.png", "hem/ben/3.png", "hem/UID_h3_1_1_hem.png")):
        draw(source / name, number)
    draw(source / "elsewhere/4.png", 9)
    done = import_cells(source, tmp_path / "cells", kind="folder")
    assert by_path(done)["subject"].to_dict() == {
        "all/anna/1.png": "anna",
        "all/anna/2.png": "anna",
        "hem/ben/3.png": "ben",
        "hem/UID_h3_1_1_hem.png": "H3",
    }
    assert set(done.rows["source"]) == {"laboratory"}
    assert [refusal.path for refusal in done.refused] == ["elsewhere/4.png"]


def test_folder_without_subjects(tmp_path):
    draw(tmp_path / "source/all/P7_1.png")
    with pytest.raises(DataError, match=r"subject .*all/P7_1.png.*--subject-pattern.*--kind table"):
        import_cells(tmp_path / "source", tmp_path / "cells", kind="folder")
    done = import_cells(tmp_path / "source", tmp_path / "cells", kind="folder", subject_pattern=r"(?P<subject>P\d+)_")
    assert done.rows["subject"].tolist() == ["P7"]
    for wrong in ("(", "P[0-9]"):
        with pytest.raises(UsageError, match="--subject-pattern"):
            import_cells(tmp_path / "source", tmp_path / "cells", kind="folder", subject_pattern=wrong)


@pytest.mark.parametrize("kind", ["cnmc", "table"])
def test_a_pattern_that_nothing_would_read_is_refused(tmp_path, kind):
    with pytest.raises(UsageError, match=f"with --kind folder alone, but got it with {kind}"):
        list_source(tmp_path, kind=kind, subject_pattern=r"(?P<subject>P\d+)_")


@pytest.mark.parametrize("kind", ["cnmc", "folder"])
def test_a_folder_without_images(tmp_path, kind):
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match="found no image"):
        import_cells(tmp_path / "source", tmp_path / "cells", kind=kind)
    with pytest.raises(DataError, match="missing"):
        import_cells(tmp_path / "nowhere", tmp_path / "cells", kind=kind)


def test_only_unusable_images(tmp_path):
    (tmp_path / "fold_0/all").mkdir(parents=True)
    (tmp_path / "fold_0/all/UID_5_1_2_all.bmp").write_text("no image")
    with pytest.raises(DataError, match=r"1 refused, the first fold_0/all/UID_5_1_2_all\.bmp"):
        import_cells(tmp_path, tmp_path / "cells", kind="cnmc")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table(tmp_path, suffix):
    for number in range(3):
        draw(tmp_path / f"images/{number}.png", number)
    secret = draw(tmp_path.parent / "outside.png", 8)
    rows = [
        ("images/0.png", "all", "007"),
        ("images/../images/1.png", "hem", "NA"),
        (str(tmp_path / "images/2.png"), "hem", "9"),
        ("../outside.png", "all", "1"),
        (str(secret), "all", "1"),
        ("images/0.png", "all", "007"),
        ("images/5.png", "all", "1"),
        ("images/2.png", "blast", "1"),
        ("images/2.png", "all", ""),
    ]
    frame = pd.DataFrame(rows, columns=["path", "label", "subject"])
    table = tmp_path / f"cells.{suffix}"
    frame.to_csv(table, index=False) if suffix == "csv" else frame.to_parquet(table)
    done = import_cells(table, tmp_path / "cells", kind="table", source_name="clinic")
    assert by_path(done)["subject"].to_dict() == {"images/0.png": "007", "images/1.png": "NA", "images/2.png": "9"}
    assert set(done.rows["source"]) == {"clinic"}
    assert sorted(refusal.reason for refusal in done.refused) == [
        "label",
        "missing",
        "outside",
        "outside",
        "subject",
    ]
    assert done.facts["skipped"] == {"equal rows": 1}


def test_table_rows_that_disagree_are_refused(tmp_path):
    draw(tmp_path / "0.png")
    draw(tmp_path / "1.png", 1)
    table = tmp_path / "cells.csv"
    table.write_text("path,label,subject\n0.png,all,1\n0.png,hem,1\n1.png,hem,2\n")
    done = import_cells(tmp_path, tmp_path / "cells", kind="table")  # the folder with its only table
    assert done.rows["path"].tolist() == ["1.png"]
    assert [refusal.reason for refusal in done.refused] == ["repeated"]


def test_tables_that_cannot_be_used(tmp_path):
    table = tmp_path / "cells.csv"
    table.write_text("path,label\n0.png,all\n")
    with pytest.raises(DataError, match=r"subject is missing; it has path, label"):
        import_cells(table, tmp_path / "cells", kind="table")
    table.write_text("")
    with pytest.raises(DataError, match="cannot be read as a table"):
        import_cells(table, tmp_path / "cells", kind="table")
    (tmp_path / "cells.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match="cannot be read as a table"):
        import_cells(tmp_path / "cells.parquet", tmp_path / "cells", kind="table")
    with pytest.raises(DataError, match=r"found cells\.csv, cells\.parquet"):
        import_cells(tmp_path, tmp_path / "cells", kind="table")


def test_linked_folders_are_entered_once_and_no_suffix_of_jpeg_is_lost(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    draw(source / "all/A/1.png", 1)
    draw(elsewhere / "B/2.png", 2)
    draw(elsewhere / "B/3.jpg", 3).rename(elsewhere / "B/3.JFIF")
    (elsewhere / "B/back").symlink_to(source)
    (source / "all/round").symlink_to(source)
    (source / "hem").symlink_to(elsewhere)
    (source / "zzz").symlink_to(elsewhere)
    assert list(image_files(source)) == ["all/A/1.png", "hem/B/2.png", "hem/B/3.JFIF"]
    rows = by_path(import_cells(source, tmp_path / "cells", kind="folder"))
    assert rows.loc["hem/B/2.png", "subject"] == "B"


def test_a_folder_that_cannot_be_listed_stops_the_import(tmp_path, monkeypatch):
    """Without its patients the cohort would be another, and nobody would see it."""
    draw(tmp_path / "source/all/A/1.png", 1)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("all"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"Expected to list the folder .*all but cannot: Permission denied"):
        import_cells(tmp_path / "source", tmp_path / "cells", kind="folder")


def test_a_name_that_is_not_in_utf8_is_told(tmp_path):
    draw(tmp_path / "source/all/A/1.png", 1).rename(tmp_path / os.fsdecode(b"source/all/A/m\xfcller.png"))
    with pytest.raises(DataError, match=r"names of files and folders in UTF-8 but got .*udcfcller"):
        import_cells(tmp_path / "source", tmp_path / "cells", kind="folder")


def test_tables_of_the_preliminary_set_that_contradict_each_other_stop_the_import(tmp_path):
    """And what an archive of a Mac leaves beside them is none."""
    training_cells(tmp_path / "source/C-NMC_training_data")
    table = tmp_path / "source/prelim_labels.csv"
    preliminary_cells(tmp_path / "source/C-NMC_test_prelim_phase_data", table)
    (tmp_path / "source/__MACOSX").mkdir()
    for other in ("__MACOSX/._prelim_labels.csv", "._prelim_labels.csv"):
        (tmp_path / "source" / other).write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "source/prelim_labels_2.csv").write_text(table.read_text())  # says the same
    assert import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc").facts["images"] == 5
    (tmp_path / "source/prelim_labels_2.csv").write_text(table.read_text().replace("1.bmp,1", "1.bmp,0", 1))
    with pytest.raises(
        DataError, match=r"one row for 1\.bmp but .*labels_2\.csv says UID_57_29_1_all\.bmp with label 0"
    ):
        import_cells(tmp_path / "source", tmp_path / "again", kind="cnmc")


def test_other_columns_of_a_table_may_hold_anything(tmp_path):
    draw(tmp_path / "1.png", 1)
    rows = {"path": ["1.png"], "label": ["all"], "subject": ["A"], "box": [[1, 2, 3]]}
    pd.DataFrame(rows).to_parquet(tmp_path / "cells.parquet")
    assert import_cells(tmp_path / "cells.parquet", tmp_path / "cells", kind="table").facts["images"] == 1
