"""The reports of before: read once, thinned without losing an alarm, and since when things are as they are."""

import functools
import json
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from monitoring import timeline as module
from monitoring.drift import _put, names_of
from monitoring.timeline import STANDING, Point, Timeline, before, counted, followed_by, since, thinned
from tests.drift_status import NOW, report, write_reports


def point(number, *, drifted=False, version="1", score=0.5, digest=""):
    at = f"{number:04d}"
    return Point(at=at, version=version, digest=digest, cells=30, score=score, column="focus", drifted=drifted)


def rows(*points):
    return functools.reduce(followed_by, points, [])


def read(folder):
    """As a monitor that starts."""
    timeline = Timeline(folder)
    timeline.refresh()
    return timeline


def write(folder, number, *, drifted=False, version="1", **more):
    """A report a minute."""
    moment = NOW + timedelta(minutes=number)
    document = report(moment, version, {"focus": 2.0 if drifted else 0.5}) | more
    (folder / f"drift-{moment:%Y%m%dT%H%M%S.%fZ}-v{version}.json").write_text(json.dumps(document))
    return moment.isoformat()


def test_of_two_reports_at_one_moment_both_are_kept_and_read_by_whoever_looks_in_between(tmp_path):
    """Two monitors of one home, or a monitor and a person: the first is drawing its page when the second is ready."""
    seen, second_done = [], threading.Event()
    timeline = Timeline(tmp_path)

    class Page:
        def __init__(self, meanwhile):
            self.meanwhile = meanwhile

        def save_html(self, path):
            Path(path).write_text("half")
            self.meanwhile()
            seen.append(sorted(path.name for path in tmp_path.glob("drift-*")))
            Path(path).write_text("whole")

    def make(meanwhile=lambda: None):
        _put(tmp_path, NOW, {"on_request": False} | report(NOW, "1", {"focus": 0.5}), Page(meanwhile))

    def second():
        make()
        timeline.refresh()
        second_done.set()

    other = threading.Thread(target=second)

    def meanwhile():
        other.start()
        second_done.wait(0.5)  # where it is let in, it is done by then

    make(meanwhile)
    other.join()
    timeline.refresh()
    first, last = "drift-20261124T120000.000000Z-v1", "drift-20261124T120000.000001Z-v1"
    assert seen == [[], [f"{first}.html", f"{first}.json"]]  # nothing half is there under the name of a report
    assert names_of(tmp_path) == [f"{stem}.{ending}" for stem in (first, last) for ending in ("html", "json")]
    assert len(timeline.points()) == 2 and timeline.rows()[0].reports == 2
    for stem in (first, last):
        assert (tmp_path / f"{stem}.html").read_text() == "whole"
        assert json.loads((tmp_path / f"{stem}.json").read_text())["report"] == str(tmp_path / f"{stem}.html")


def test_reports_are_read_once_and_a_half_written_one_later(tmp_path):
    write_reports(tmp_path)
    timeline = Timeline(tmp_path)
    timeline.refresh()
    points = timeline.points()
    assert len(points) == len(list(tmp_path.glob("drift-*.json"))) and points[-1].at == NOW.isoformat()
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


def test_a_report_in_the_making_holds_up_those_after_it_and_one_of_a_maker_that_was_killed_does_not(tmp_path):
    """Two monitors of one home: whatever a reading passes over is never read."""
    write(tmp_path, 0)
    timeline = read(tmp_path)
    began = write(tmp_path, 1, drifted=True)
    half = max(tmp_path.glob("drift-*.json"))
    whole = half.read_text()
    half.write_text(whole[:50])
    write(tmp_path, 2, drifted=True)
    timeline.refresh()
    assert len(timeline.points()) == 1
    half.write_text(whole)
    timeline.refresh()
    assert since(timeline.rows(), "1") == {"at": began, "at_least": False, "reports": 2}
    for name, age in (("drift-20261124T120230.000000Z-v1.json", 3600), ("drift-20261124T120240.000000Z-v1.json", -1e8)):
        (tmp_path / name).write_text(whole[:50])
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write(tmp_path, 3, drifted=True)
    timeline.refresh()
    assert since(timeline.rows(), "1")["reports"] == 3


def test_a_copy_that_somebody_keeps_beside_the_reports_is_none(tmp_path):
    write(tmp_path, 0)
    timeline = read(tmp_path)
    first = next(tmp_path.glob("drift-*.json"))
    for name in ("drift-before-the-new-stain", f"{first.stem}-kept", f"{first.stem} 2"):
        (tmp_path / f"{name}.json").write_text(first.read_text())
    for number in range(1, 6):
        write(tmp_path, number, drifted=True)
        timeline.refresh()
    assert [row.reports for row in timeline.rows()] == [5] and len(timeline.points()) == 6
    assert read(tmp_path).rows() == timeline.rows()


def test_a_report_on_request_of_a_window_long_past_is_not_the_present(tmp_path):
    write_reports(tmp_path)
    past = report(NOW - timedelta(days=25), "1", {"focus": 9.0})
    (tmp_path / "drift-20261125T000000.000000Z-v1.json").write_text(json.dumps(past))
    timeline = Timeline(tmp_path)
    timeline.refresh()
    assert timeline.points()[-1].at == NOW.isoformat() and timeline.points()[-1].version == "2"
    assert since(timeline.rows(), "2")["at"] == (NOW - timedelta(days=2)).isoformat()


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
        assert timeline.points() == alone.points() and timeline.rows() == alone.rows()


def test_since_when():
    assert since([], "1") is None and before([], "1") is None
    calm = [point(n) for n in range(3)]
    assert since(rows(*calm), "2") is None and before(rows(*calm), "1") is None
    assert since(rows(*calm), "1") == {"at": "0000", "at_least": True, "reports": 3}
    drifted = rows(*calm, point(3, drifted=True), point(4, drifted=True))
    assert since(drifted, "1") == {"at": "0003", "at_least": False, "reports": 2} and before(drifted, "1") == "0002"
    other = rows(*calm, point(3, version="2"))
    assert since(other, "2") == {"at": "0003", "at_least": False, "reports": 1} and before(other, "2") is None


def test_what_is_said_of_a_version_goes_on_where_it_comes_back():
    """After a rollback and a new promotion; its first report is of cells from before the rollback."""
    made = [point(0), point(1, drifted=True), point(2, version="2"), point(1, drifted=True), point(3, drifted=True)]
    for end in (4, 5):
        found = rows(*made[:end])
        assert since(found, "1") == {"at": "0001", "at_least": False, "reports": end - 2}
        assert before(found, "1") == "0000"
    assert since(rows(*made), "2") == {"at": "0002", "at_least": False, "reports": 1}


def test_another_package_of_the_same_number_has_a_row_of_its_own():
    """Where MLflow began anew, its numbers start at 1 again."""
    found = rows(*(point(n, drifted=True, digest="a") for n in range(3)), point(3, digest="b"))
    assert since(found, "1", "b") == {"at": "0003", "at_least": False, "reports": 1} and before(found, "1", "b") is None
    assert since(found, "1", "a")["reports"] == 3
    same = rows(point(0, digest="a"), point(1, version="2", digest="a"))  # one package, registered twice
    assert since(same, "2", "a")["reports"] == 2
    older = rows(point(0), point(1, digest="a"))  # reports of an older Blastwatch name no package
    assert since(older, "1", "a")["reports"] == 2


def test_a_drift_may_last_longer_than_a_start_reads_back(tmp_path, monkeypatch):
    calm, began = write(tmp_path, 0), write(tmp_path, 1, drifted=True)
    read(tmp_path)
    monkeypatch.setattr(module, "LATEST", 5)
    for number in range(2, 12):
        write(tmp_path, number, drifted=True)
    for timeline in (read(tmp_path), read(tmp_path)):
        assert since(timeline.rows(), "1") == {"at": began, "at_least": False, "reports": 11}
        assert before(timeline.rows(), "1") == calm and len(timeline.points()) == 5
    write(tmp_path, 12)
    timeline.refresh()
    assert [found.reports for found in timeline.rows()] == [1] and len(timeline.points()) == 5
    assert read(tmp_path).points() == timeline.points()


@pytest.mark.parametrize("damage", ["", "{", '{"last": "x", "rows": 3}', '{"last": "gone.json", "rows": []}', "[]"])
def test_what_is_kept_beside_the_reports_is_made_anew_where_it_is_missing_or_damaged(tmp_path, monkeypatch, damage):
    began = write(tmp_path, 0, drifted=True)
    for number in range(1, 9):
        write(tmp_path, number, drifted=True)
    kept = tmp_path / STANDING
    whole = read(tmp_path).rows()
    monkeypatch.setattr(module, "LATEST", 5)
    kept.write_text(damage)
    for _ in range(2):
        assert read(tmp_path).rows() == whole and whole[0].first == began and whole[0].at_least
        kept.unlink()


def test_a_start_reads_the_latest_reports_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LATEST", 5)
    for number in range(20):
        write(tmp_path, number)
    whole = read(tmp_path).rows()
    for path in sorted(tmp_path.glob("drift-*.json"))[:-5]:
        path.write_text("no report")
    assert read(tmp_path).rows() == whole


def test_old_reports_go_into_a_folder_of_their_month_and_count_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LATEST", 2)
    monkeypatch.setattr(module, "NEAR", 4)
    monkeypatch.setattr(module, "MOST_MOVED", 3)
    for number in range(9):
        write(tmp_path, number, drifted=number > 0)
    timeline = read(tmp_path)
    assert len(list(tmp_path.glob("drift-*.json"))) == 6
    timeline.refresh()
    assert len(list(tmp_path.glob("drift-*.json"))) == 4 and len(list(tmp_path.glob("202611/drift-*.json"))) == 5
    assert read(tmp_path).rows() == timeline.rows() and timeline.rows()[0].reports == 8
    (tmp_path / STANDING).unlink()
    again = read(tmp_path)
    assert again.rows() == timeline.rows() and again.points() == timeline.points()


def test_a_full_disk_hides_no_verdict(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    timeline = Timeline(tmp_path)
    for number in range(2):
        write(tmp_path, number)
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_state", full)
            timeline.refresh()
        assert timeline.rows()[0].reports == number + 1 and not (tmp_path / STANDING).exists()
    timeline.refresh()
    assert (tmp_path / STANDING).exists() and read(tmp_path).rows() == timeline.rows()


def test_thinning_keeps_every_peak_and_every_version():
    points = [point(n, version="1" if n < 501 else "2", score=5.0 if n in (17, 777) else 0.5) for n in range(1000)]
    kept = thinned(points, most=100)
    assert len(kept) <= 100
    assert [row["at"] for row in kept if row["score"] == 5.0] == ["0017", "0777"]
    assert {row["version"] for row in kept} == {"1", "2"}
    assert [row["at"] for row in kept] == sorted(row["at"] for row in kept)
    assert [row["at"] for row in thinned(points[:100], most=100)] == [one.at for one in points[:100]]
    assert "digest" not in kept[0]


def test_what_was_thinned_is_counted_as_it_was():
    points = [point(n, drifted=n % 100 == 0, score=1.2 if n % 100 == 0 else 0.5) for n in range(10_000)]
    assert sum(row["drifted"] for row in thinned(points)) == 100 < len(thinned(points)) == 120
    assert counted(points) == {"reports": 10_000, "drifted": 100, "run": 84}
    assert counted(points[:240]) == {"reports": 240, "drifted": 3, "run": 1}
    assert counted([]) == {"reports": 0, "drifted": 0, "run": 1}
