"""Which engines a package is compared with, and what it says of each."""

import numpy as np
import pandas as pd
import pytest

from blastwatch.inference import Outputs
from blastwatch.package import open_package
from tests.service_packages import make_servable
from training import packaging
from training.parameters import Parameters

CELLS = 40


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("precision") / "package"))


@pytest.fixture
def maker(monkeypatch, package):
    """One whose engines all say the same, but for those in `apart`, which say what stands there."""

    def made(apart, *, gpu=False):
        monkeypatch.setattr(packaging, "has_gpu", lambda: gpu)
        same = np.random.default_rng(0).normal(size=(CELLS, 2)).astype(np.float32)

        class Maker(packaging._Maker):
            def _infer(self, rows, engine=packaging.REFERENCE):
                return Outputs(logits=apart.get(engine, same), embeddings=same)

            def _rate(self, rows, engine):
                return 8.0 if engine.startswith("openvino") else 2.0

        rows = pd.DataFrame({"path": [f"{number}.bmp" for number in range(CELLS)], "side": "test"})
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
    beyond = np.full((CELLS, 2), np.inf, np.float32)
    found = maker({"torch-f16-graphs": beyond}).precision()
    assert set(found) == set(packaging.COMPARED) - {"torch-f16-graphs"}
    assert "torch-f16-graphs is left out: the numbers of this network are beyond its range" in capsys.readouterr().err


def test_labels_that_turn_are_counted(maker, package):
    turned = np.random.default_rng(0).normal(size=(CELLS, 2)).astype(np.float32)
    turned[:4] = turned[:4, ::-1]
    found = maker({"openvino-int8": turned}).precision()
    assert found["openvino-int8"].flip_rate == 4 / CELLS
    assert found["openvino-int8"].largest_difference > 0
