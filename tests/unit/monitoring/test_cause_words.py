"""What is said of causes and columns: every one has its words, and the sign says which way it went."""

import pytest

from monitoring.cause_words import TITLES, WORDS, in_words, titled
from monitoring.scores import METHODS
from monitoring.signatures import CAUSES
from monitoring.statistics import STATISTICS


def test_every_column_has_a_title_and_every_cause_its_words():
    assert set(TITLES) == {*METHODS, *STATISTICS} and len(set(TITLES.values())) == len(TITLES)
    assert set(WORDS) == {cause.word for cause in CAUSES.values()}
    assert titled("od_red") == "darkness in red light (od_red)" and titled("contrast") == "contrast"
    assert titled("gloss") == "gloss"  # of a later version


@pytest.mark.parametrize(
    ("cause", "moved", "way"),
    [
        ("illumination", {"brightness": 9.0}, "images are lighter"),
        ("illumination", {"brightness": -9.0}, "images are darker"),
        ("white balance", {"od_red": -0.1, "od_blue": 0.1}, "images are redder"),  # as the simulated one
        ("white balance", {"od_red": 0.1, "od_blue": 0.05}, "images are bluer"),
        ("stain", {"od_red": 0.1, "od_blue": -0.1}, "cells are bluer"),
        ("pixel size", {"cell_area": 0.2}, "cells are larger in the image"),
        ("focus", {}, "Images are blurred"),
    ],
)
def test_the_sign_says_which_way_it_went(cause, moved, way):
    said = in_words(cause, moved)
    assert way in said["changed"] and said["check"] and said["images"]


def test_without_the_statistic_no_direction_is_said_and_patients_are_no_images():
    assert in_words("illumination", {})["changed"] == "The light is another one"
    assert in_words("stain", {"od_red": 0.1})["changed"] == "The stain is another one"
    assert in_words("disease mix", {"brightness": 9.0})["images"] is None
    assert in_words("unknown", {})["images"] is None
