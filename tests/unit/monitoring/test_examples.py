"""The example cells of the drift page: the nearest and the farthest whose picture is kept, now and before the drift."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from scipy.spatial.distance import cdist

from blastwatch.settings import load
from monitoring.examples import EACH, ExampleCells
from monitoring.image_store import ImageRecord, open_image_store
from monitoring.retention import open_retention
from monitoring.review import NEIGHBOURS
from monitoring.store import EMBEDDING, open_store
from tests.cohorts import START, as_records, draw_cohort, unsealed_package

LATER = START + timedelta(days=1)
AWAY = "d" * 64


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(5), patients=12, cells=20)


@pytest.fixture(scope="module")
def reference(cohort):
    return cohort[cohort["group"] < "P008"].reset_index(drop=True)


@pytest.fixture
def package(tmp_path, reference):
    return unsealed_package(tmp_path / "package", reference)


@pytest.fixture
def settings(tmp_path):
    return load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_KEEP_IMAGES": "sampled"})


@pytest.fixture
def store(settings, cohort):
    """A calm day and a drifted one, every second cell with a picture."""
    new = cohort[cohort["group"] >= "P008"].reset_index(drop=True)
    with open_store(settings.predictions_url) as opened, open_image_store(settings.predictions_url) as images:
        for start, shift in ((START, 0.0), (LATER, 4.0)):
            records = as_records(new.assign(e00=new["e00"] + shift), digest=AWAY, start=start)
            records = [one if start == START else _renamed(one) for one in records]
            opened.add(records)
            images.add([_picture(one) for one in records[::2]])
        yield opened


@pytest.fixture
def cells(settings):
    opened = ExampleCells(settings)
    yield opened
    opened.close()


def _renamed(record):
    object.__setattr__(record, "id", f"later-{record.id}")
    return record


def _picture(record):
    return ImageRecord(id=record.id, time=record.time, reason="sampled", patient="", png=record.id.encode())


def report(store, *, drifted=True, names=("embedding", "od_green", "brightness")):
    now = store.read(since=LATER)["time"]
    columns = [
        {"name": name, "score": 3.0 - 0.5 * rank, "threshold": 1.0, "drifted": drifted}
        for rank, name in enumerate(names)
    ]
    window = {"since": now.min().isoformat(), "until": now.max().isoformat(), "cells": len(now)}
    return {"version": "1", "window": window, "drifted": drifted, "columns": columns}


def calm_until(store):
    return store.read(until=LATER)["time"].max().isoformat()


def test_the_nearest_and_the_farthest_of_each_span(store, package, cells, reference):
    told = cells.choose(store, package, report(store), calm_until=calm_until(store))
    known = reference[list(EMBEDDING)].to_numpy(np.float64)
    scale = known.std(axis=0)
    for span, rows in (("now", store.read(since=LATER)), ("before", store.read(until=LATER))):
        rows = rows.iloc[::2].reset_index(drop=True)
        plain = np.sort(cdist(rows[list(EMBEDDING)] / scale, known / scale), axis=1)[:, :NEIGHBOURS].mean(axis=1)
        order = np.argsort(plain)
        wanted = {"farthest": rows["id"][order[::-1][:EACH]].tolist(), "nearest": rows["id"][order[:EACH]].tolist()}
        assert {end: [cell["id"] for cell in found] for end, found in told.document[span].items()} == wanted
    assert told.document["statistic"]["name"] == "od_green"
    low, high = told.document["statistic"]["known"]
    assert [low, high] == pytest.approx(np.quantile(reference["od_green"], [0.05, 0.95]))
    shown = [cell for span in ("now", "before") for end in told.document[span].values() for cell in end]
    assert told.pictures == {cell["id"]: cell["id"].encode() for cell in shown} and len(told.pictures) == 4 * EACH
    values = store.read().set_index("id")["od_green"]
    assert all(cell["value"] == values[cell["id"]] for cell in shown)


def test_without_drift_there_is_no_before_and_no_statistic(store, package, cells):
    told = cells.choose(store, package, report(store, drifted=False), calm_until=calm_until(store)).document
    assert told["now"] is not None and told["before"] is None and told["statistic"] is None
    assert told["now"]["nearest"][0]["value"] is None


def test_a_row_from_before_a_statistic_has_no_value_of_it(store, package, cells, settings):
    engine = sa.create_engine(settings.predictions_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE predictions SET chroma_noise = NULL"))
    engine.dispose()
    told = cells.choose(store, package, report(store, names=("chroma_noise",)), calm_until=None).document
    assert told["statistic"]["name"] == "chroma_noise" and told["now"]["farthest"][0]["value"] is None


def test_a_drift_from_the_beginning_has_no_before(store, package, cells):
    assert cells.choose(store, package, report(store), calm_until=None).document["before"] is None


def test_no_cell_stands_twice(store, package, cells, settings):
    with open_retention(settings.predictions_url) as retention:
        retention.images_by_age(store.read(since=LATER)["time"].iloc[-6])  # leaves three pictures
    told = cells.choose(store, package, report(store), calm_until=None).document["now"]
    ids = [cell["id"] for end in told.values() for cell in end]
    assert [len(told["farthest"]), len(told["nearest"]), len(set(ids))] == [2, 1, 3]


def test_an_image_that_is_sent_again_is_shown_once(store, package, cells, settings, cohort):
    (far,) = as_records(cohort.iloc[:1].assign(e00=100.0), digest=AWAY, start=LATER)
    later = [
        replace(far, id=f"again-{n}", time=LATER + timedelta(hours=5, seconds=n), pixel_sha256="f" * 64)
        for n in range(30)
    ]
    store.add(later)
    with open_image_store(settings.predictions_url) as images:
        images.add([_picture(one) for one in later])
    told = cells.choose(store, package, report(store), calm_until=None).document["now"]
    shown = [cell["id"] for cell in told["farthest"]]
    assert shown[0] == "again-0" and len(shown) == EACH and not any(one.startswith("again") for one in shown[1:])


def test_without_a_picture_or_a_report_nothing_is_shown(package, cells, settings, cohort):
    with open_store(settings.predictions_url) as store:
        rows = cohort[cohort["group"] >= "P008"].reset_index(drop=True)
        store.add(as_records(rows, digest=AWAY, start=LATER))
        empty = {"policy": "sampled", "statistic": None, "now": None, "before": None}
        for known in (report(store), None):
            told = cells.choose(store, package, known, calm_until=None)
            assert told.document == empty and told.pictures == {}
