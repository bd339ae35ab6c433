"""The synthetic cohort: the same for the same seed, in the layout of C-NMC, and cells that look like cells."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from blastwatch.digests import folder_digests
from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import read_cells
from training.audit import audit_cells
from training.importing import import_cells
from training.looks import look
from training.near_duplicates import near_duplicates
from training.sources import MARKER
from training.staining import restain_files
from training.synthesis import cohort, draw_style, synthesise
from training.synthesis_cell import SIDE, draw_cell


def cells_of(label, patients, each):
    """Drawn cells by patient: shape (patients, each, height, width, 3)."""
    found = []
    for number in range(patients):
        style = draw_style(label, np.random.default_rng([number, 0]))
        found.append([draw_cell(style, np.random.default_rng([number, cell + 1])) for cell in range(each)])
    return np.array(found)


def test_the_same_seed_draws_the_same_bytes(tmp_path):
    for out in ("one", "two"):
        synthesise(tmp_path / out, patients=5, cells=2, seed=3, duplicates=1)
    synthesise(tmp_path / "other", patients=5, cells=2, seed=4, duplicates=1)
    one, two, other = (folder_digests(tmp_path / out) for out in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


def test_a_patient_is_the_same_in_a_larger_cohort(tmp_path):
    synthesise(tmp_path / "small", patients=2, cells=1, seed=3, duplicates=0)
    synthesise(tmp_path / "large", patients=5, cells=2, seed=3, duplicates=0)
    small, large = folder_digests(tmp_path / "small", leave_out=[MARKER]), folder_digests(tmp_path / "large")
    assert small.items() <= large.items()


def test_layout_marker_and_planted_duplicates(tmp_path):
    marker = synthesise(tmp_path / "source", patients=10, cells=3, seed=0, duplicates=3)
    assert json.loads((tmp_path / "source/SYNTHETIC.json").read_text()) == marker
    assert marker["synthetic"] is True
    done = import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc")
    assert done.facts["synthetic"] is True
    assert done.facts["refused"] == 0
    assert done.facts["labels"] == {"all": 18, "hem": 12}
    assert done.facts["subjects"] == 10
    assert set(done.rows["source"]) == {"C-NMC fold 0", "C-NMC fold 1", "C-NMC fold 2"}
    assert set(done.rows["width"]) == set(done.rows["height"]) == {SIDE}

    cells = read_cells(tmp_path / "cells")
    found = audit_cells(cells, near_duplicates(look(cells)))
    assert [[finding.a, finding.b] for finding in found.findings] == sorted(sorted(p) for p in marker["duplicates"])
    assert {finding.kind for finding in found.findings} == {"exact"}
    assert [group for group in found.groups if len(group) > 1] == [["1", "2"], ["3", "4"], ["H1", "H2"]]


def test_parts_and_restained_copies_of_a_cohort_are_synthetic_too(tmp_path):
    synthesise(tmp_path / "source", patients=2, cells=1, seed=0, duplicates=0)
    part = tmp_path / "source/C-NMC_training_data/fold_0"
    restain_files([part], tmp_path / "stained", strength=1.0)
    table = tmp_path / "cells.csv"
    table.write_text("path,label,subject\nsource/C-NMC_training_data/fold_0/all/UID_1_1_1_all.bmp,all,1\n")
    for source, kind in ((part, "cnmc"), (part / "all", "cnmc"), (tmp_path / "stained", "cnmc"), (table, "table")):
        assert import_cells(source, tmp_path / "cells", kind=kind).facts["synthetic"] is True


def test_drawn_and_photographed_cells_are_not_imported_together(tmp_path):
    source = tmp_path / "source"
    synthesise(source / "drawn", patients=2, cells=1, seed=3, duplicates=0)
    photographed = source / "fold_1/all/UID_77_1_1_all.bmp"
    photographed.parent.mkdir(parents=True)
    photographed.write_bytes(next((source / "drawn").rglob("*_all.bmp")).read_bytes())
    with pytest.raises(DataError, match=r"but drawn/.* and fold_1/all/UID_77_1_1_all\.bmp does not\. Import"):
        import_cells(source, tmp_path / "cells", kind="cnmc")
    assert not (tmp_path / "cells").exists()
    assert import_cells(source / "drawn", tmp_path / "cells", kind="cnmc").facts["synthetic"] is True
    assert import_cells(source / "fold_1", tmp_path / "cells", kind="cnmc").facts["synthetic"] is False


def test_cells_are_segmented_on_black_and_of_the_size_of_real_ones():
    cells = cells_of("all", 3, 4).reshape(-1, SIDE, SIDE, 3)
    assert cells.dtype == np.uint8
    background = (cells.max(axis=-1) == 0).mean(axis=(1, 2))
    assert background.min() > 0.6
    assert background.max() < 0.95
    assert cells[:, :40].max() == 0
    colour = np.array([cell[cell.max(axis=-1) > 0].mean(axis=0) for cell in cells])
    assert (colour[:, 1] < colour[:, [0, 2]].min(axis=1)).all()  # purple: the least of green


def test_patients_differ_more_in_colour_than_their_cells():
    cells = cells_of("hem", 8, 4)
    colour = np.array([[cell[cell.max(axis=-1) > 0].mean(axis=0) for cell in patient] for patient in cells])
    between = colour.mean(axis=1).std(axis=0)
    within = colour.std(axis=1).mean(axis=0)
    assert (between > within).all()


def test_blasts_are_larger_with_overlap():
    areas = {label: (cells_of(label, 12, 3).max(axis=-1) > 0).sum(axis=(2, 3)).ravel() for label in ("all", "hem")}
    assert np.median(areas["all"]) > 1.1 * np.median(areas["hem"])
    assert np.quantile(areas["all"], 0.1) < np.quantile(areas["hem"], 0.9)


def test_arguments_that_do_not_go_together(tmp_path):
    with pytest.raises(UsageError, match="patients"):
        cohort(1)
    for wrong in ({"cells": 0}, {"duplicates": 3}, {"seed": -1}):
        with pytest.raises(UsageError):
            synthesise(tmp_path / "out", **{"patients": 5, "cells": 1, "seed": 0, "duplicates": 0, **wrong})
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="new or empty folder"):
        synthesise(tmp_path, patients=5, cells=1, seed=0)


def test_a_small_cohort_gets_as_many_duplicates_as_there_can_be(tmp_path):
    made = {patients: tmp_path / str(patients) for patients in (2, 3, 5)}
    drawn = {
        patients: len(synthesise(out, patients=patients, cells=1, seed=0)["duplicates"])
        for patients, out in made.items()
    }
    assert drawn == {2: 0, 3: 1, 5: 2}


def test_what_is_wrong_is_named(tmp_path):
    wanted = {"patients": 2, "cells": 1, "seed": 0, "duplicates": 2}
    with pytest.raises(UsageError, match=r"0 to 0 duplicates \(--duplicates\) among 2 patients"):
        synthesise(tmp_path / "out", **wanted)
    with pytest.raises(UsageError, match="cells a patient"):
        synthesise(tmp_path / "out", **(wanted | {"cells": 0}))
    with pytest.raises(UsageError, match="a seed of 0"):
        synthesise(tmp_path / "out", **(wanted | {"seed": -1}))


def test_a_place_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written to .*file/out: Not a directory"):
        synthesise(tmp_path / "file" / "out", patients=2, cells=1, seed=0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        synthesise(tmp_path / "out", patients=2, cells=1, seed=0)


def test_images_are_bmp_of_the_naming(tmp_path):
    synthesise(tmp_path, patients=2, cells=5, seed=0, duplicates=0)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bmp"))
    assert names[0] == "C-NMC_training_data/fold_0/all/UID_1_1_1_all.bmp"
    assert names[-1] == "C-NMC_training_data/fold_0/hem/UID_H1_2_1_hem.bmp"
    with Image.open(tmp_path / names[0]) as image:
        assert (image.format, image.size, image.mode) == ("BMP", (SIDE, SIDE), "RGB")
