"""Changes of a camera that no last layer was kept from reading: what they do to a cell, and to nothing beside it."""

import numpy as np
import pytest

from training.nuisances import CAMERAS
from training.unsimulated import UNSIMULATED

CELL = (200, 100, 60)  # its mean is 120


@pytest.fixture
def image():
    """A cell of one colour on black."""
    shown = np.zeros((6, 8, 3), np.uint8)
    shown[2:4, 3:6] = CELL
    return shown


@pytest.mark.parametrize(("name", "expected"), [
    ("gamma of 0.7", [255 * (level / 255) ** 0.7 for level in CELL]),
    ("half as colourful", [160, 110, 90]),
    ("more contrast", [212, 82, 30]),
])  # fmt: skip
def test_the_cell_is_changed_and_what_is_black_stays_so(image, name, expected):
    before = image.copy()
    found = UNSIMULATED[name](image)
    assert found.dtype == np.uint8 and found.shape == image.shape
    np.testing.assert_array_equal(found[2, 3], np.rint(expected))
    np.testing.assert_array_equal(found.any(axis=2), image.any(axis=2))
    np.testing.assert_array_equal(image, before)


def test_the_darkest_of_a_cell_never_becomes_background(image):
    image[2, 3] = 1
    for change in UNSIMULATED.values():
        assert change(image)[2, 3].min() >= 1


def test_no_training_looks_at_them():
    assert not set(UNSIMULATED) & {name for name, _ in CAMERAS}
