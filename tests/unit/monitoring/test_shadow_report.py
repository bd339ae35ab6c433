"""What `blastwatch shadow report` says of planted answers and labels."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from blastwatch.entry import Entry
from blastwatch.sequential import follow
from monitoring.metrics import MonitorMetrics
from monitoring.retention import open_retention
from monitoring.shadow_commands import shadow
from monitoring.shadow_entries import keep_entries
from monitoring.shadow_report import Rules, report
from monitoring.shadow_store import open_shadow_store
from monitoring.store import open_store
from tests.cohorts import NOON, pixels, record, shadowed

DAY = timedelta(days=1)


def entry(version, digest):
    return Entry(version=version, digest=digest, run_id="", created="", synthetic=True, registered_by="tester")


PAIR = (entry("1", "c" * 64), entry("2", "d" * 64))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'predictions.db'}"


class Clinic:
    """Cells that both versions read, and labels given at chosen times."""

    def __init__(self, url):
        self.shadow, self.store, self.number = open_shadow_store(url), open_store(url), 0

    def close(self):
        self.shadow.close()
        self.store.close()

    def read(self, patient, champion, challenger, *, time=NOON, image=None):
        self.number += 1
        name = f"cell-{self.number}"
        probability = {"hem": 0.2, "all": 0.9}
        said = {
            "champion_label": champion, "challenger_label": challenger,
            "champion_probability": probability[champion], "challenger_probability": probability[challenger],
            "champion_decision": champion, "challenger_decision": challenger,
        }  # fmt: skip
        self.store.add([record(name, time=time, pixel_sha256=pixels(image) if image else None)])
        self.shadow.add([shadowed(name, time=time, patient=patient, **said)])
        return name

    def tell(self, name, label, time):
        self.store.add_labels([(name, label, time)])

    def report(self, at, **rules):
        return report(self.shadow, *PAIR, at=at, rules=Rules(**rules))


@pytest.fixture
def clinic(url):
    opened = Clinic(url)
    yield opened
    opened.close()


def test_nothing_was_read_yet(clinic):
    found = clinic.report(NOON)
    assert (found["cells"], found["agreement"], found["decisions"]) == (0, None, [])
    assert (found["comparison"]["units"], found["comparison"]["verdict"]) == (0, "undecided")
    json.dumps(found, allow_nan=False)


def test_agreement_needs_no_label(clinic):
    for pair in (("hem", "hem"), ("hem", "all"), ("all", "hem"), ("all", "hem")):
        clinic.read("", *pair)
    found = clinic.report(NOON + DAY)
    assert (found["cells"], found["agreement"]) == (4, 0.25)
    assert found["flips"] == {"hem_to_all": 1, "all_to_hem": 2}
    assert found["probability_difference"] == pytest.approx(
        {"mean": -0.7 / 4, "mean_absolute": 2.1 / 4, "largest": 0.7}
    )
    assert {"champion": "all", "challenger": "hem", "cells": 2} in found["decisions"]
    assert found["labelled"]["cells"] == 0
    assert "Research software" in found["disclaimer"] and found["champion"]["synthetic"] is True


def test_cells_without_a_label_are_counted_and_none_of_them_is_read(clinic, monkeypatch):
    """A monitor asks at every look, of hundreds of thousands."""
    read, frames = clinic.shadow.read, []

    def counted(**asked):
        frames.append(read(**asked))
        return frames[-1]

    monkeypatch.setattr(clinic.shadow, "read", counted)
    for number in range(30):
        clinic.read("p" if number == 7 else "", "hem", "all" if number % 3 else "hem", time=NOON + number * DAY)
    clinic.tell("cell-1", "hem", NOON)
    found = clinic.report(NOON + 20 * DAY)
    assert (found["cells"], found["agreement"], found["flips"]["hem_to_all"]) == (20, 7 / 20, 13)
    assert (found["since"], found["until"]) == (NOON.isoformat(), (NOON + 19 * DAY).isoformat())
    assert found["labelled"]["cells"] == found["labelled"]["cells_without_patient"] == 1
    assert found["comparison"]["unit"] == "patient"  # as one of those says that were not read
    assert [len(frame) for frame in frames] == [1]
    keep_entries(clinic.shadow, [("c" * 64, "d" * 64)], NOON + 20 * DAY)
    assert [len(frame) for frame in frames] == [1, 1]


def test_a_patient_enters_once_and_later_words_change_nothing(clinic):
    first, second, late = (clinic.read("p", champion, "all") for champion in ("hem", "all", "hem"))
    clinic.tell(first, "all", NOON + timedelta(hours=1))
    clinic.tell(second, "all", NOON + timedelta(hours=20))
    waiting = clinic.report(NOON + DAY)["comparison"]
    assert (waiting["units"], waiting["units_waiting"]) == (0, 1)
    at = NOON + DAY + timedelta(hours=2)
    found = clinic.report(at)["comparison"]
    assert (found["unit"], found["units"], found["difference"]["mean"]) == ("patient", 1, 0.5)
    clinic.tell(late, "hem", at)
    clinic.tell(first, "hem", at + timedelta(minutes=1))  # a correction after the entry
    later = clinic.report(at + 3 * DAY)
    assert later["comparison"]["history"] == found["history"]
    assert later["labelled"]["cells"] == 3
    assert later["labelled"]["per_patient"][0]["champion"] == 1.0  # what is known now takes the correction in


def test_a_correction_before_the_entry_counts(clinic):
    name = clinic.read("p", "hem", "all")
    clinic.tell(name, "hem", NOON)
    clinic.tell(name, "all", NOON + timedelta(hours=2))
    assert clinic.report(NOON + 2 * DAY)["comparison"]["difference"]["mean"] == 1.0


def test_a_correction_at_the_very_moment_of_the_entry_changes_nothing_that_was_seen(clinic):
    name = clinic.read("p", "hem", "all")
    clinic.tell(name, "all", NOON)
    seen = clinic.report(NOON + DAY)["comparison"]
    assert (seen["units"], seen["units_waiting"]) == (0, 1)
    clinic.tell(name, "hem", NOON + DAY)
    assert clinic.report(NOON + DAY)["comparison"] == seen
    assert clinic.report(NOON + 2 * DAY)["comparison"]["units"] == 1


def test_patients_weigh_the_same_and_cells_without_a_key_are_left_out(clinic):
    names = [clinic.read("p", "all", "all") for _ in range(8)] + [
        clinic.read("q", "hem", "all"),
        clinic.read("", "hem", "all"),
    ]
    for name in names:
        clinic.tell(name, "all", NOON)
    found = clinic.report(NOON + 2 * DAY)
    assert (found["comparison"]["units"], found["comparison"]["difference"]["mean"]) == (2, 0.5)
    assert (found["labelled"]["cells_without_patient"], found["labelled"]["patients"]) == (1, 2)
    assert found["labelled"]["accuracy_by_patient"] == {"champion": 0.5, "challenger": 1.0}
    assert found["labelled"]["accuracy_by_cell"] == {"champion": 0.8, "challenger": 1.0}


def test_without_any_key_it_is_by_cell_and_says_so(clinic):
    for champion in ("hem", "all", "hem"):
        clinic.tell(clinic.read("", champion, "all"), "all", NOON)
    found = clinic.report(NOON + 2 * DAY)["comparison"]
    assert (found["unit"], found["units"]) == ("cell", 3)
    assert "cells are independent" in found["assumes"]
    assert found["assumes"].startswith("neither version learned from any of these patients")


def test_one_image_of_a_patient_counts_once_however_often_it_was_asked(clinic):
    names = [clinic.read("p", "all", "all") for _ in range(9)]
    names += [clinic.read("p", "hem", "all", time=NOON + timedelta(minutes=n), image="again") for n in range(20)]
    names += [clinic.read("q", "hem", "all", image="again")]  # of somebody else it is another one
    for name in names:
        clinic.tell(name, "all", NOON + timedelta(hours=1))
    found = clinic.report(NOON + 3 * DAY)
    assert (found["cells"], found["repeated"]) == (11, 19)
    assert (found["agreement"], found["flips"]["hem_to_all"]) == (9 / 11, 2)
    assert found["labelled"]["per_patient"] == [
        {"patient": "p", "cells": 10, "champion": 0.9, "challenger": 1.0},
        {"patient": "q", "cells": 1, "champion": 0.0, "challenger": 1.0},
    ]
    assert found["comparison"]["units"] == 2
    assert found["comparison"]["difference"]["mean"] == pytest.approx((0.1 + 1.0) / 2)


def test_one_cell_asked_again_and_again_decides_nothing(clinic, url):
    """Without keys as well, also where who has entered was written down and that cell has been deleted since."""
    for number in range(60):
        name = clinic.read("", "hem", "all", time=NOON + number * timedelta(hours=1), image="again")
        clinic.tell(name, "all", NOON + number * timedelta(hours=1))
    at = NOON + 10 * DAY
    found = clinic.report(at)["comparison"]
    assert (found["unit"], found["units"], found["verdict"]) == ("cell", 1, "undecided")
    with open_retention(url) as retention:
        assert retention.by_age(NOON + timedelta(hours=30)).shadow == 30
    assert clinic.report(at)["comparison"] == found


def test_who_entered_under_the_id_of_a_cell_enters_no_second_time(clinic):
    """As entries were written down before images counted once."""
    names = [clinic.read("", "hem", "all", image=str(number)) for number in range(5)]
    for name in names:
        clinic.tell(name, "all", NOON)
    entered = pd.DataFrame({"key": names[:3], "enters": pd.Timestamp(NOON + DAY), "difference": 1.0})
    clinic.shadow.keep(entered, unit="cell", champion=PAIR[0].digest, challenger=PAIR[1].digest)
    assert clinic.report(NOON + 10 * DAY)["comparison"]["units"] == 5


def test_the_cell_whose_label_came_first_stands_for_its_image(clinic):
    early, late = (clinic.read("p", champion, "all", image="same") for champion in ("all", "hem"))
    clinic.tell(late, "all", NOON + timedelta(hours=1))
    clinic.tell(early, "hem", NOON + timedelta(hours=2))
    assert clinic.report(NOON + 2 * DAY)["comparison"]["difference"]["mean"] == 1.0
    clinic.tell(late, "hem", NOON + 3 * DAY)
    found = clinic.report(NOON + 4 * DAY)
    assert found["comparison"]["difference"]["mean"] == 1.0
    assert found["labelled"]["accuracy_by_cell"] == {"champion": 1.0, "challenger": 0.0}


def test_a_cell_whose_prediction_is_on_its_way_is_one_of_its_own(clinic):
    clinic.shadow.add([shadowed(name) for name in "ab"])
    found = clinic.report(NOON + DAY)
    assert (found["cells"], found["repeated"]) == (2, 0)


ASKED = st.tuples(st.sampled_from(["", "p", "q", "r"]), st.sampled_from("1234"), st.booleans(), st.booleans())
TOLD = st.tuples(st.integers(0, 11), st.sampled_from(["hem", "all"]), st.integers(0, 200))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keyed=st.booleans(),
    asked=st.lists(ASKED, min_size=1, max_size=12),
    told=st.lists(TOLD, min_size=1, max_size=20),
    looks=st.lists(st.integers(1, 300), min_size=2, max_size=4),
)
def test_every_look_is_a_beginning_of_the_last_one(tmp_path_factory, keyed, asked, told, looks):
    """However often and whenever it is looked: what was seen at one look stands unchanged in all later ones. Images
    come again, labels late, in any order, and are corrected; looks are made before the later words are there."""
    clinic = Clinic(f"sqlite:///{tmp_path_factory.mktemp('looks') / 'predictions.db'}")
    names = [
        clinic.read(patient if keyed else "", "all" if ours else "hem", "all" if theirs else "hem", image=image)
        for patient, image, ours, theirs in asked
    ]
    seen = {}
    for cell, label, hour in sorted(told, key=lambda word: word[2]):
        for at in [look for look in looks if look <= hour and look not in seen]:
            seen[at] = clinic.report(NOON + timedelta(hours=at))["comparison"]
        clinic.tell(names[cell % len(names)], label, NOON + timedelta(hours=hour))
    for at in looks:
        again = clinic.report(NOON + timedelta(hours=at))["comparison"]
        assert seen.setdefault(at, again) == again
    end = clinic.report(NOON + timedelta(hours=400))["comparison"]
    for hour, one in seen.items():
        today = (NOON + timedelta(hours=hour)).date().isoformat()
        whole_days = [row for row in one["history"] if row["day"] < today]
        assert whole_days == end["history"][: len(whole_days)]
        assert end["better"]["p"] <= one["better"]["p"] and end["difference"]["low"] >= one["difference"]["low"]
    clinic.close()


def test_a_planted_advantage_decides(clinic, url):
    random = np.random.default_rng(3)
    with open_shadow_store(url) as shadow_store, open_store(url) as store:
        ids, rows, labels = [], [], []
        for patient in range(120):
            for cell in range(5):
                name = f"{patient}-{cell}"
                said = {"champion_label": "all" if random.random() < 0.8 else "hem", "challenger_label": "all"}
                ids.append(record(name))
                rows.append(shadowed(name, patient=f"p{patient:03d}", **said))
                labels.append((name, "all", NOON + timedelta(hours=patient)))
        store.add(ids)
        shadow_store.add(rows)
        store.add_labels(labels)
        differences = [
            np.mean([row.champion_label == "hem" for row in rows if row.patient == f"p{n:03d}"]) for n in range(120)
        ]
    found = clinic.report(NOON + 10 * DAY)["comparison"]
    last = follow(np.array(differences))[-1]
    assert found["verdict"] == "better" and found["units"] == 120
    assert found["better"]["e"] == pytest.approx(last.better) and found["difference"]["low"] == last.low
    assert len(found["history"]) == 6
    early = clinic.report(NOON + 2 * DAY)["comparison"]
    assert early["history"][0] == found["history"][0]


def test_the_gauges_say_what_the_report_says(clinic):
    metrics = MonitorMetrics(CollectorRegistry())

    def gauge(name, **labels):
        return metrics.registry.get_sample_value(f"blastwatch_shadow_{name}", labels)

    clinic.tell(clinic.read("p", "hem", "all"), "all", NOON)
    found = clinic.report(NOON + 2 * DAY)
    metrics.tell_shadow(found)
    assert (gauge("agreement_ratio"), gauge("compared_units", unit="patient")) == (0.0, 1)
    assert gauge("accuracy_difference", bound="mean") == 1.0
    assert gauge("accuracy_difference", bound="low") == found["comparison"]["difference"]["low"]
    assert gauge("evidence", question="better") == found["comparison"]["better"]["e"] == pytest.approx(1.5)
    metrics.tell_shadow(None)
    assert gauge("compared_units", unit="patient") is None and np.isnan(gauge("agreement_ratio"))


def test_the_command(clinic, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path))
    monkeypatch.setattr("monitoring.asked.check_made", lambda _settings: None)
    monkeypatch.setattr("blastwatch.registry.Registry.proven", lambda _self, ref: PAIR[ref == "challenger"])
    said = CliRunner().invoke(shadow, ["report"], catch_exceptions=False).output
    assert "No cell was read by both yet" in said and "Research software" in said
    clinic.tell(clinic.read("p", "hem", "all", time=datetime.now(UTC) - 3 * DAY), "all", datetime.now(UTC) - 2 * DAY)
    said = CliRunner().invoke(shadow, ["report"], catch_exceptions=False).output
    assert "trained on synthetic cells" in said and "Compared patients: 1" in said and "Undecided" in said
    assert "This holds where neither version learned from any of these patients" in said and "repeated" not in said
    for image in ("again", "again"):
        clinic.read("p", "hem", "all", time=datetime.now(UTC) - 3 * DAY, image=image)
    said = CliRunner().invoke(shadow, ["report"], catch_exceptions=False).output
    assert "2 cells read by both (1 repeated left out), the same label for 0.00%" in said
    printed = CliRunner().invoke(shadow, ["report", "--json"], catch_exceptions=False).stdout
    assert json.loads(printed)["comparison"]["units"] == 1


def years_ago(clinic, url, patients=30):
    """A comparison that was decided long ago, each patient's cells half a day apart; returns a moment after it."""
    random, began = np.random.default_rng(0), NOON - timedelta(days=400)
    for number in range(patients):
        times = [began + timedelta(days=number, hours=hours) for hours in (0, 6, 12)]
        said = ["all" if random.random() < 0.8 else "hem" for _ in times]
        names = [clinic.read(f"{number:02d}", "hem", word, time=time) for word, time in zip(said, times, strict=True)]
        with sa.create_engine(url).begin() as connection:
            change = sa.text("UPDATE predictions SET patient = :key WHERE id = :id")
            connection.execute(change, [{"key": f"{number:02d}", "id": name} for name in names])
        for name, time in zip(names, times, strict=True):
            clinic.tell(name, "all", time + 2 * DAY)
    return began + timedelta(days=patients + 10)


def test_who_entered_stays_when_cells_are_deleted(clinic, url):
    """By age, within a patient, by size and on request: what decided is not undone, and nobody enters twice."""
    at = years_ago(clinic, url)
    before = clinic.report(at)["comparison"]
    assert before["verdict"] == "better" and before["units"] == 30
    with open_retention(url) as retention:
        assert retention.by_age(NOON - timedelta(days=380) + timedelta(hours=9)).shadow > 50
        found = clinic.report(at)
        assert found["comparison"] == before and found["cells"] < 40
        retention.forget("25")
        assert clinic.report(at)["comparison"] == before
        retention.by_size(1)
        gone = clinic.report(at)
        assert gone["comparison"] == before and gone["cells"] == 0
    with sa.create_engine(url).connect() as connection:
        keys = list(connection.execute(sa.text("SELECT key FROM shadow_entries")).scalars())
    assert "24" in keys and "25" not in keys and len(keys) == 30  # what is left of a forgotten patient names nobody


def test_a_comparison_goes_on_from_those_who_stay(clinic, url):
    at = years_ago(clinic, url, patients=5)
    with open_retention(url) as retention:
        retention.by_age(NOON - timedelta(days=390))
    name = clinic.read("new", "hem", "all", time=NOON)
    clinic.tell(name, "all", NOON + DAY)
    assert clinic.report(at)["comparison"]["units"] == 5
    later = clinic.report(NOON + 3 * DAY)["comparison"]
    assert later["units"] == 6 and clinic.report(NOON + 1.5 * DAY)["comparison"]["units_waiting"] == 1
