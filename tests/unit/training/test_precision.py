"""Which engines a package is compared with, and what it says of each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blastwatch.inference import Outputs
from blastwatch.package import open_package
from tests.service_packages import make_servable
from training import packaging
from training.parameters import Parameters

CELLS = 40
LOGITS = np.random.default_rng(0).normal(size=(40 * CELLS, 2))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("precision") / "package"))


@pytest.fixture
def maker(monkeypatch, package):
    """One whose engines all say `LOGITS` of as many cells to train on and to test on, but for those in `apart`, each
    with what it makes of the logits of some rows."""

    def made(apart, *, gpu=False, calibrating=0):
        monkeypatch.setattr(packaging, "has_gpu", lambda: gpu)

        class Maker(packaging._Maker):
            def _infer(self, rows, engine=packaging.REFERENCE):
                logits = LOGITS[[int(Path(path).stem) for path in rows["path"]]]
                logits = apart[engine](logits, rows) if engine in apart else logits
                return Outputs(logits=logits.astype(np.float32), embeddings=logits)

            def _rate(self, rows, engine):
                return 8.0 if engine.startswith("openvino") else 2.0

        sides = ["train"] * CELLS + ["test"] * CELLS + ["calibration"] * calibrating
        paths = [f"{number}.bmp" for number in range(len(sides))]
        rows = pd.DataFrame(
            {"path": paths, "side": sides, "group": [f"{side}-{n % 8}" for n, side in enumerate(sides)]}
        )
        return Maker(package, rows, None, Parameters(), package.folder)

    return made


def test_without_a_gpu_its_engine_is_compared_and_not_timed(maker):
    found = maker({}).precision()
    assert set(found) == set(packaging.COMPARED)
    assert {name for name, row in found.items() if row.speed is None} == {"torch-f16-graphs"}
    assert found["openvino-int8"].speed == 4.0
    assert all(row.cells == CELLS and row.flip_rate == row.largest_difference == 0 for row in found.values())


def test_on_a_gpu_all_its_engines_are_compared_and_timed(maker):
    found = maker({}, gpu=True).precision()
    assert set(found) == {*packaging.COMPARED, *packaging.COMPARED_ON_GPU}
    assert all(row.speed for row in found.values())


def test_an_engine_beyond_whose_range_a_network_is_is_left_out_and_said(maker, capsys):
    found = maker({"torch-f16-graphs": lambda logits, rows: logits * np.inf}).precision()
    assert set(found) == set(packaging.COMPARED) - {"torch-f16-graphs"}
    assert "torch-f16-graphs is left out: the numbers of this network are beyond its range" in capsys.readouterr().err


def test_labels_that_turn_are_counted(maker, package):
    def turned(logits, rows):
        wrong = (rows["side"] == "test") & (np.arange(len(rows)) < 4)
        return np.where(wrong.to_numpy()[:, None], logits[:, ::-1], logits)

    found = maker({"openvino-int8": turned}).precision()
    assert found["openvino-int8"].flip_rate == 4 / CELLS
    assert found["openvino-int8"].largest_difference > 0


@pytest.mark.parametrize("engine", ["openvino-bf16", "openvino-int8", "torch-bf16", "torch-f16-graphs"])
def test_what_an_engine_does_to_all_cells_alike_is_taken_off(maker, engine):
    found = maker({engine: lambda logits, rows: (logits - [1.5, -1.0]) / 1.25}).precision()
    assert (found[engine].scale, *found[engine].shift) == pytest.approx((1.25, 1.5, -1.0), abs=1e-5)
    assert found[engine].flip_rate == 0 and found[engine].largest_difference < 1e-5


def test_a_correction_is_found_on_all_patients_but_those_tested(maker):
    asked = []
    maker({"openvino-int8": lambda logits, rows: asked.append(rows) or logits}).precision()
    tested, fitted = asked
    assert set(tested["side"]) == {"test"}
    assert set(fitted["group"]) == {f"train-{number}" for number in range(8)} and len(fitted) == CELLS


@pytest.mark.parametrize("calibrating", [0, 100, 1200])
def test_nothing_is_fitted_on_cells_that_are_compared_on_but_what_int8_takes(maker, calibrating):
    """No correction is, of cells of calibration patients neither."""
    asked = []
    made = maker({"openvino-int8": lambda logits, rows: asked.append(rows) or logits}, calibrating=calibrating)
    assert {row.cells for row in made.precision().values()} == {{0: CELLS, 100: 100, 1200: 500}[calibrating]}
    compared, corrected = (set(rows["path"]) for rows in asked)
    assert compared == set(made.parity.compared["path"]) and set(made._side("test")["path"]) <= compared
    assert corrected and not compared & corrected
    ranges = set(made.parity.ranges["path"])
    assert (len(ranges), len(ranges & compared)) == {0: (0, 0), 100: (50, 10), 1200: (256, 0)}[calibrating]
