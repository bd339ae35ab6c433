"""The reports of before: read once, thinned without losing an alarm, and since when things are as they are."""

import json
from datetime import timedelta

import pytest

from monitoring.timeline import Point, Timeline, before, since, thinned
from tests.drift_status import NOW, report, write_reports


def point(number, *, drifted=False, version="1", score=0.5):
    return Point(at=f"{number:04d}", version=version, cells=30, score=score, column="focus", drifted=drifted)


def test_reports_are_read_once_and_a_half_written_one_later(tmp_path):
    write_reports(tmp_path)
    timeline = Timeline(tmp_path)
    timeline.refresh()
    points = timeline.points()
    assert len(points) == len(list(tmp_path.glob("*.json"))) and points[-1].at == NOW.isoformat()
    assert points[-1].version == "2" and points[-1].column == "toward_stain" and points[-1].score > 1
    for path in tmp_path.glob("*.json"):
        path.unlink()
    later = NOW + timedelta(hours=1)
    text = json.dumps(report(later, "2", {"focus": 0.5}))
    half = tmp_path / "drift-20261124T130000.000000Z-v2.json"
    half.write_text(text[:50])
    timeline.refresh()
    assert timeline.points() == points
    half.write_text(text)
    timeline.refresh()
    assert timeline.points() == [*points, Point(at=later.isoformat(), version="2", cells=500, score=pytest.approx(0.5),
                                                column="focus", drifted=False)]  # fmt: skip


def test_a_report_on_request_of_a_window_long_past_is_not_the_present(tmp_path):
    write_reports(tmp_path)
    past = report(NOW - timedelta(days=25), "1", {"focus": 9.0})
    (tmp_path / "drift-20261125T000000.000000Z-v1.json").write_text(json.dumps(past))
    timeline = Timeline(tmp_path)
    timeline.refresh()
    assert timeline.points()[-1].at == NOW.isoformat() and timeline.points()[-1].version == "2"
    assert since(timeline.made(), "2")["at"] == (NOW - timedelta(days=2)).isoformat()


def test_reports_that_a_person_asked_for_interrupt_nothing(tmp_path):
    write_reports(tmp_path)
    alone = Timeline(tmp_path)
    alone.refresh()
    for number, (version, of) in enumerate((("2", {"focus": 0.5}), ("7", {"focus": 9.0}))):
        asked = report(NOW + timedelta(hours=number + 1), version, of) | {"on_request": True}
        (tmp_path / f"drift-2026112{5 + number}T000000.000000Z-v{version}.json").write_text(json.dumps(asked))
    timeline = Timeline(tmp_path)
    for _ in range(2):
        timeline.refresh()
        assert timeline.points() == alone.points() and timeline.made() == alone.made()


def test_since_when():
    assert since([], "1") is None and before([], "1") is None
    calm = [point(n) for n in range(3)]
    assert since(calm, "2") is None and before(calm, "1") is None
    assert since(calm, "1") == {"at": "0000", "at_least": True, "reports": 3}
    drifted = [*calm, point(3, drifted=True), point(4, drifted=True)]
    assert since(drifted, "1") == {"at": "0003", "at_least": False, "reports": 2} and before(drifted, "1") == "0002"
    other = [*calm, point(3, version="2")]
    assert since(other, "2") == {"at": "0003", "at_least": False, "reports": 1} and before(other, "2") is None


def test_what_is_said_of_a_version_goes_on_where_it_comes_back():
    """After a rollback and a new promotion; its first report is of cells from before the rollback."""
    made = [point(0), point(1, drifted=True), point(2, version="2"), point(1, drifted=True), point(3, drifted=True)]
    for end in (4, 5):
        assert since(made[:end], "1") == {"at": "0001", "at_least": False, "reports": end - 2}
        assert before(made[:end], "1") == "0000"
    assert since(made, "2") == {"at": "0002", "at_least": False, "reports": 1}


def test_thinning_keeps_every_peak_and_every_version():
    points = [point(n, version="1" if n < 501 else "2", score=5.0 if n in (17, 777) else 0.5) for n in range(1000)]
    kept = thinned(points, most=100)
    assert len(kept) <= 100
    assert [row["at"] for row in kept if row["score"] == 5.0] == ["0017", "0777"]
    assert {row["version"] for row in kept} == {"1", "2"}
    assert [row["at"] for row in kept] == sorted(row["at"] for row in kept)
    assert [row["at"] for row in thinned(points[:100], most=100)] == [one.at for one in points[:100]]
