"""What the monitor's document says of a moment: since when a verdict stands, and by which clock."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from blastwatch.settings import load
from monitoring.examples import Examples
from monitoring.retention import Usage
from monitoring.status import Status
from monitoring.timeline import HALF_WRITTEN
from tests.drift_status import NOW, Told, report

FETCHED = SimpleNamespace(
    entry=SimpleNamespace(version="2"), package=SimpleNamespace(digest="5f" * 32, info=SimpleNamespace(synthetic=True))
)
USAGE = Usage(predictions=1, images=0, image_bytes=0, bytes=1, oldest=None, newest=None)
EXAMPLES = Examples(document={"policy": "never", "statistic": None, "now": None, "before": None})


@pytest.fixture
def status(tmp_path):
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path)}), Told())
    status.watch(FETCHED)
    return status


@pytest.fixture
def made(tmp_path):
    """Writes a report of this many hours after `NOW`, or half of one, and gives its document and its path."""

    def write(hours, score, *, half=False):
        moment = NOW + timedelta(hours=hours)
        document = report(moment, "2", {"od_red": score})
        path = load({"BLASTWATCH_HOME": str(tmp_path)}).drift / f"drift-{moment:%Y%m%dT%H%M%S.%fZ}-v2.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document)[: 40 if half else None])
        return document, path

    return write


def after(hours):
    return (NOW + timedelta(hours=hours)).isoformat()


def test_behind_a_report_that_cannot_be_read_the_row_of_before_is_not_that_of_now(status, made):
    made(0, 0.5)
    status.judge(made(1, 0.5)[0])
    _, damaged = made(2, 1.5, half=True)
    drifted, _ = made(3, 1.5)
    status.judge(drifted)
    status.fail("")
    told = status.document()
    assert (told["state"], told["since"]) == ("drift", {"at": after(3), "at_least": True, "reports": 1})
    assert status.standing() == (drifted, after(1))  # until when it was calm, as far as one knows
    os.utime(damaged, (time.time() - 2 * HALF_WRITTEN,) * 2)  # nobody is writing it any more
    status.tell("no prediction since the last report", USAGE, None, EXAMPLES)
    told = status.document()
    assert told["since"] == {"at": after(3), "at_least": False, "reports": 1}
    assert told["timeline"][-1]["at"] == after(3) and status.standing() == (drifted, after(1))


def test_a_first_report_behind_one_that_cannot_be_read_is_dated_by_itself(status, made):
    made(0, 1.5, half=True)
    status.judge(made(1, 1.5)[0])
    status.fail("")
    assert status.document()["since"] == {"at": after(1), "at_least": True, "reports": 1}
    status.judge(None)
    status.fail("")
    assert (status.document()["state"], status.document()["since"]) == ("waiting", None)


def test_the_same_verdict_behind_one_that_cannot_be_read_is_no_part_of_the_row(status, made):
    made(0, 1.5)
    status.judge(made(1, 1.5)[0])
    made(2, 0.5, half=True)
    status.judge(made(3, 1.5)[0])
    status.fail("")
    assert status.document()["since"] == {"at": after(3), "at_least": True, "reports": 1}


def test_every_answer_has_the_monitors_time_and_since_when_a_look_is_awaited(tmp_path):
    began = datetime.now(UTC)
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path)}), Told())
    first, second = status.document(), status.document()
    moments = [datetime.fromisoformat(told[name]) for told in (first, second) for name in ("begun_at", "now")]
    assert began <= moments[0] == moments[2] <= moments[1] < moments[3]
    status.begin("Nothing to watch yet.")  # as at every look without a version that serves: none is overdue
    assert datetime.fromisoformat(status.document()["begun_at"]) > moments[3]
    status.fail("the database is away")
    assert status.document()["begun_at"] > second["now"] and status.document()["looked_at"] is None


def test_a_promotion_is_dated_by_the_restoration_that_says_that_its_clock_ran_ahead(tmp_path):
    def record(action, alias, hours):
        return SimpleNamespace(action=action, alias=alias, time=after(hours), before="", after="2", who="ana")

    records = [record("promote", "champion", 7200), record("restore", "", 1)]
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path)}), SimpleNamespace(records=lambda: records))
    status.watch(FETCHED)
    [move] = status.document()["promotions"]
    assert datetime.fromisoformat(move["at"]) == NOW + timedelta(hours=1)
