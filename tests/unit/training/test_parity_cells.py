"""On which cells engines are compared, and that nothing was fitted on them."""

import numpy as np
import pandas as pd
import pytest

from training.parity_cells import FEWEST_COMPARED, deal_parity


def dealt(tested, calibrating, *, most=500, ranges=256, patients=8):
    """Of a split with so many cells on the sides."""
    sides = ["train"] * 300 + ["validation"] * 40 + ["calibration"] * calibrating + ["test"] * tested
    groups = [f"{number % patients}" for number in range(len(sides))]  # by image: all sides share the patients
    rows = pd.DataFrame({"path": [f"{n}.bmp" for n in range(len(sides))], "side": sides, "group": groups})
    return rows, deal_parity(rows, most=most, ranges=ranges, random=np.random.default_rng(1))


def counts(found):
    """Cells compared of the test and the calibration side, cells that int8 takes, and how many are both."""
    compared, ranges = set(found.compared["path"]), set(found.ranges["path"])
    assert len(compared) == len(found.compared) and set(found.ranges["side"]) <= {"calibration"}
    sides = found.compared["side"].value_counts()
    return sides.get("test", 0), sides.get("calibration", 0), len(ranges), len(compared & ranges)


@pytest.mark.parametrize(("tested", "calibrating", "expected"), [
    (800, 400, (500, 0, 256, 0)),  # of test cells alone
    (500, 0, (500, 0, 0, 0)),
    (499, 2000, (499, 1, 256, 0)),
    (100, 2000, (100, 400, 256, 0)),
    (100, 600, (100, 344, 256, 0)),  # int8 keeps what it wants
    (100, 300, (100, 150, 150, 0)),  # or half
    (60, 81, (60, 40, 41, 0)),
    (40, 100, (40, 60, 50, 10)),  # the floor: ten that int8 was calibrated on
    (10, 12, (10, 12, 6, 6)),
])  # fmt: skip
def test_calibration_cells_that_nothing_is_fitted_on_fill_up(tested, calibrating, expected):
    rows, found = dealt(tested, calibrating)
    assert counts(found) == expected
    assert tested + calibrating < FEWEST_COMPARED or len(found.compared) >= FEWEST_COMPARED
    others = found.others(rows)
    assert not set(others["path"]) & set(found.compared["path"]) and len(others) + len(found.compared) == len(rows)


def test_no_more_cells_are_compared_on_than_asked_for():
    assert counts(dealt(20, 30, most=40, ranges=20)[1]) == (20, 20, 15, 5)
    assert counts(dealt(90, 30, most=40, ranges=20)[1]) == (40, 0, 20, 0)


def test_the_card_says_on_how_many_of_the_compared_cells_something_was_fitted():
    assert dealt(800, 400)[1].told() == "Compared on 500 test cells, on which nothing of an engine was fitted."
    assert dealt(100, 300)[1].told() == (
        "Compared on 100 test cells and, since these are fewer than 500, 150 calibration cells. Nothing of an engine "
        "was fitted on any of them."
    )
    assert dealt(40, 100)[1].told() == (
        "Compared on 40 test cells and, since these are fewer than 500, 60 calibration cells. On 10 of them int8 was "
        "calibrated, on the others nothing of an engine was fitted."
    )
