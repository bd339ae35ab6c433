"""The pictures of an evaluation: which errors are shown, and that they can be drawn of any table."""

import numpy as np
import pytest
from PIL import Image

from blastwatch.images import Preprocessing
from blastwatch.network import build
from tests.answers import draw_answers
from training.pack import Packed
from training.plots import certain_errors, plot_explained_errors


def test_the_most_certain_errors_come_first():
    table = draw_answers(4, patients=10, cells=12)
    worst = certain_errors(table, 12)
    wrong = (table["probability"] >= 0.5) != (table["label"] == "all")
    assert len(worst) == 12
    assert worst["gap"].is_monotonic_decreasing
    assert worst["gap"].min() >= np.sort(np.abs(table["probability"] - (table["label"] == "all"))[wrong])[-12]
    # One half itself is called a blast: an error only where the cell is normal.
    assert set(certain_errors(table.assign(probability=0.5), 1000)["label"]) == {"hem"}


@pytest.mark.parametrize("cells", [1, 12])
@pytest.mark.parametrize("right", [True, False])
def test_errors_are_drawn_with_their_maps(tmp_path, cells, right):
    table = draw_answers(4, patients=4, cells=cells)
    if right:
        table["probability"] = (table["label"] == "all").astype(float)
    random = np.random.default_rng(1)
    crops = random.integers(0, 256, (len(table), 32, 32, 3), dtype=np.uint8)
    packed = Packed(crops=crops, paths=tuple(table["path"]), preprocessing=Preprocessing(size=32), digest="")
    plot_explained_errors(table, packed, build("resnet18"), tmp_path / "errors.png", synthetic=True)
    with Image.open(tmp_path / "errors.png") as image:
        assert image.size == (1210, 660)
