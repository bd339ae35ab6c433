"""`drift report` and `labels review` where cells of a clock that ran ahead are stored, and images that came again."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError
from monitoring.commands import drift
from monitoring.label_commands import labels
from monitoring.store import open_store
from tests.cohorts import record

COUNT = 12


@pytest.fixture
def now():
    return datetime.now(UTC)


@pytest.fixture
def seen(settings, monkeypatch, now):
    """The ids that `compare` and `candidates` were given, which make nothing of them. Stored are twelve cells, the last
    one three times, and twenty ahead."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    monkeypatch.setenv("BLASTWATCH_DRIFT_WINDOW", "40")
    package = SimpleNamespace(digest="d", reference=lambda: SimpleNamespace(answered=None))
    fetched = SimpleNamespace(entry=SimpleNamespace(version="1"), package=package)
    monkeypatch.setattr("monitoring.asked.asked", lambda *_: fetched)
    given = []

    def stop(*arguments, **_):
        given.append(next(one for one in arguments if hasattr(one, "columns"))["id"].tolist())
        raise DataError("seen")

    monkeypatch.setattr("monitoring.drift.compare", stop)
    monkeypatch.setattr("monitoring.review.candidates", stop)
    with open_store(settings.predictions_url) as store:
        rows = [record(f"{n:02d}", time=now + timedelta(seconds=n - 60), patient="ab"[n % 2]) for n in range(COUNT)]
        last = {"patient": rows[-1].patient, "pixel_sha256": rows[-1].pixel_sha256}
        rows += [record(f"again {n}", time=now + timedelta(seconds=n - 30), **last) for n in range(2)]
        store.add([*rows, *(record(f"ahead {n}", time=now + timedelta(days=1, seconds=n)) for n in range(20))])
    return given


def run(group, *words):
    return CliRunner().invoke(group, words)


def asked(tmp_path):
    return ((drift, ["report"]), (labels, ["review", "--out", str(tmp_path / "cells.csv")]))


def test_cells_of_a_clock_that_ran_ahead_are_left_out_and_said(seen, tmp_path):
    for group, words in asked(tmp_path):
        found = run(group, *words)
        assert str(found.exception) == "seen"
        assert seen.pop() == [f"{n:02d}" for n in range(COUNT)]
        assert "20 predictions carry a time more than 5 minutes ahead of this clock and are left out" in found.stderr


def test_a_span_that_is_named_is_taken_at_its_word(seen, tmp_path, now):
    until = ["--until", (now + timedelta(days=2)).isoformat()]
    for group, words in asked(tmp_path):
        found = run(group, *words, *until)
        assert len(seen.pop()) == COUNT + 20 and "ahead of this clock" not in found.stderr


def test_a_repeated_image_with_a_label_is_not_asked_for_again(seen, settings, tmp_path, now):
    with open_store(settings.predictions_url) as store:
        store.add_labels([("again 1", "all", now)])
    run(labels, "review", "--out", str(tmp_path / "cells.csv"))
    assert seen.pop() == [f"{n:02d}" for n in range(COUNT - 1)]
