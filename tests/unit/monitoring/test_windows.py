"""The predictions that drift is looked for in: whose they are, how far back they reach, and each image once."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.drift import TooFewPredictions, compare
from monitoring.store import open_store
from monitoring.windows import AHEAD, CAUTION, ENOUGH, FURTHEST, latest, not_ahead, once, spanned, told, who, words
from tests.cohorts import NOON, as_predictions, draw_cohort, record, unsealed_package, window_of

LATER = NOON + timedelta(days=9)


@pytest.fixture
def store(settings):
    with open_store(settings.predictions_url) as opened:
        yield opened


def came(store, *patients, start=NOON):
    """A cell a second of these patients, in this order, each of another image."""
    first = store.count()
    store.add(
        [
            record(f"{first + n:06d}", time=start + timedelta(seconds=first + n), patient=patient)
            for n, patient in enumerate(patients)
        ]
    )


def window(store, size=10):
    return latest(store, model_digest="d", size=size, until=LATER)


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=30))
def test_the_effective_number_is_that_of_its_formula(keys):
    counts = pd.Series([key for key in keys if key]).value_counts().to_numpy()
    found = who(pd.DataFrame({"patient": keys}))
    if 2 * counts.sum() < len(keys):
        assert (found.patients, found.effective) == (None, None)
    else:
        assert found.patients == len(counts)
        assert found.effective == pytest.approx(counts.sum() ** 2 / (counts**2).sum())


def test_a_window_reaches_back_until_it_has_two_patients(store):
    came(store, *"b" * 6, *"c" * 40, *"b" * 30, *"a" * 30)
    cells = window(store).cells
    assert cells["patient"].value_counts().to_dict() == {"a": 30, "b": 30}  # and no further
    assert who(cells).effective == ENOUGH
    assert len(window(store, size=80).cells) == 80


def test_a_window_of_many_patients_is_no_longer_than_asked(store):
    came(store, *"abcdefghij" * 5)
    assert list(window(store).cells["id"]) == [f"{n:06d}" for n in range(40, 50)]


def test_a_window_reaches_no_further_than_its_bound(store):
    came(store, *"b" * 50, *"a" * 10 * FURTHEST)
    assert set(window(store).cells["patient"]) == {"a"} and len(window(store).cells) == 10
    assert len(window(store, size=11).cells) == 11  # b's cells are within ten times as many, but too few of them
    came(store, *"b" * 60)
    assert len(window(store, size=30).cells) == 120


def test_without_keys_a_window_is_the_latest_cells(store):
    came(store, *"b" * 20, *[""] * 6, *"aaaa")
    assert len(window(store).cells) == 10 and who(window(store).cells).patients is None
    came(store, *[""] * 30)
    assert len(window(store).cells) == 10
    came(store, *"aaaaaa")  # most of the latest carry a key, and fewer than half of those that reach to another patient
    found = window(store)
    assert list(found.cells["patient"]) == [""] * 4 + ["a"] * 6 and not found.keyed
    assert told(found.cells, 0, keyed=found.keyed)["caution"] == CAUTION


def test_whether_a_window_goes_by_patients_does_not_come_and_go_with_one_who_is_named(store):
    """Each day twenty cells of one patient with a key, then fifty without."""
    kept = []
    for day in "abcd":
        for keys in (*[[day] * 5] * 4, *[[""] * 10] * 5):
            came(store, *keys)
            kept.append(window(store).keyed)
    assert set(kept[9:]) == {False}  # before, there was nobody without a key


def test_whoever_comes_alone_with_a_key_is_one_patient(store):
    came(store, *"a" * 40)
    assert window(store).keyed and who(window(store).cells).patients == 1


def test_nothing_stored_is_an_empty_window(store):
    assert window(store).cells.empty and window(store).repeated == 0


def again(store, *ids, after):
    """The same images of the same patients once more."""
    rows = store.read().set_index("id")
    for number, id_ in enumerate(ids):
        store.add(
            [
                record(f"again {after:%H%M%S}-{number}", time=after + timedelta(seconds=number),
                       patient=rows.loc[id_, "patient"], pixel_sha256=rows.loc[id_, "pixel_sha256"])
            ]
        )  # fmt: skip


def test_an_image_that_is_sent_again_counts_once_and_displaces_no_other(store):
    came(store, *"abcdefghij" * 2)
    before = window(store)
    again(store, *["000019"] * 40, after=NOON + timedelta(minutes=5))
    found = window(store)
    assert list(found.cells["id"]) == list(before.cells["id"]) and found.repeated == 40
    assert words(told(found.cells, found.repeated)) == "10 cells of 10 patients, 40 repeated left out"
    whole = spanned(store, model_digest="d", since=NOON, until=None)
    assert (len(whole.cells), whole.repeated) == (20, 40)


def test_behind_many_probes_the_cells_before_them_are_found(store, monkeypatch):
    came(store, *"abcdefghij" * 2)
    start = NOON + timedelta(minutes=5)
    store.add([record(f"probe {n:03d}", time=start + timedelta(seconds=n), patient="probe", pixel_sha256="f" * 64)
               for n in range(350)])  # fmt: skip
    found = window(store)
    assert list(found.cells["id"]) == [f"{n:06d}" for n in range(11, 20)] + ["probe 000"] and found.repeated == 349
    monkeypatch.setattr("monitoring.windows.MOST_ANSWERS", 200)  # and no further than that
    found = window(store)
    assert list(found.cells["id"]) == ["probe 150"] and found.repeated == 199


def test_cells_that_are_sent_again_later_are_the_latest_ones(store):
    """As once a lamp is repaired."""
    came(store, *"abcde" * 2, *"fghij" * 2)
    again(store, *(f"{n:06d}" for n in range(10)), after=NOON + timedelta(minutes=5))
    found = window(store)
    assert set(found.cells["patient"]) == set("abcde") and found.repeated == 0


def test_an_image_of_another_patient_is_another(store):
    store.add([record(str(n), time=NOON + timedelta(seconds=n), patient="ab"[n % 2], pixel_sha256="f" * 64)
               for n in range(4)])  # fmt: skip
    assert list(window(store).cells["patient"]) == ["a", "b"] and window(store).repeated == 2


def test_of_equal_images_the_one_with_a_label_stands_for_the_truth():
    cells = pd.DataFrame({"id": list("wxyz"), "patient": list("aaab"), "pixel_sha256": ["1"] * 4})
    assert list(once(cells)["id"]) == ["w", "z"]
    told = cells.assign(truth=[None, "all", "hem", None])
    assert list(once(told)["id"]) == ["x", "z"]


def test_of_a_patients_cells_each_image_counts_once(store):
    start = {"model_digest": "d", "since": NOON, "until": LATER}
    came(store, *"p" * 12)
    again(store, *["000000"] * 30, after=NOON + timedelta(milliseconds=500))
    assert len(store.patient_cells("p", **start, most=50)) == 12
    assert len(store.patient_cells("p", **start, most=5)) == 5


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(2), patients=12, cells=60)


@pytest.fixture(scope="module")
def package(cohort, tmp_path_factory):
    return unsealed_package(tmp_path_factory.mktemp("windows") / "package", cohort[cohort["group"] < "P008"])


def test_one_patients_cells_get_no_verdict(cohort, package, tmp_path):
    rows = window_of(cohort, ["P008"], 60, np.random.default_rng(0))
    current = as_predictions(rows, digest=package.digest, keyed=True)
    with pytest.raises(TooFewPredictions, match=r"at least 2 patients .* the 60 of version 1 are of 1 \(effective num"):
        compare(package, current, version="1", folder=tmp_path)
    unknown = compare(package, current, version="1", folder=tmp_path / "unknown", keyed=False).document
    assert unknown["window"]["patients"] is None and unknown["window"]["caution"] == CAUTION
    shutil.rmtree(tmp_path / "unknown")
    outweighed = current.assign(patient=["a"] * 54 + ["b"] * 3 + ["c"] * 3)
    with pytest.raises(TooFewPredictions, match=r"of 3 \(effective number 1\.227\)"):
        compare(package, outweighed, version="1", folder=tmp_path)
    few = r"^5 of the 30 cells that a verdict takes are here, and 495 that repeat an image: each .* counts once\.$"
    with pytest.raises(TooFewPredictions, match=few):
        compare(package, current.head(5), version="1", folder=tmp_path, repeated=495)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_ran_ahead_is_left_out_and_said(store):
    now = datetime.now(UTC)
    came(store, *"ab" * 5)
    assert not_ahead(store, model_digest="d")[1] == ""
    ahead = [record(f"ahead {n}", time=now + timedelta(days=1, seconds=n)) for n in range(3)]
    store.add([*ahead, replace(ahead[0], id="another", model_digest="x")])
    until, said = not_ahead(store, model_digest="d")
    assert now + AHEAD <= until <= datetime.now(UTC) + AHEAD
    assert said.startswith("3 predictions carry a time more than 5 minutes ahead of this clock and are left out.")
