"""A clock that ran ahead: what it wrote is told, nothing waits for it for ever, and a promoter says that it was so."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from blastwatch import clocks, history, promotion
from blastwatch.errors import RegistryError, UsageError
from blastwatch.history import Record
from blastwatch.registry import Registry
from blastwatch.signing import TRAINER
from blastwatch.verification import verify

START = datetime(2026, 11, 17, 14, 0, tzinfo=UTC)


def entries(*steps):
    """Entries of an action and the minute after `START` that they bear."""
    return [
        Record(
            model="blastwatch", number=number, time=(START + timedelta(minutes=minute)).isoformat(), who="ana",
            action=action, alias=history.MOVES.get(action, ""), version="1", before="", after="1", why="",
            digest="d", data_digest="", split_digest="", git_commit="", overridden=[], report="", key="", previous="",
        )
        for number, (action, minute) in enumerate(steps, start=1)
    ]  # fmt: skip


def minutes(records):
    return [(moment - START) / timedelta(minutes=1) for moment in clocks.written(records)]


def unsure(records, minute, now=200):
    return clocks.unsure(records, START + timedelta(minutes=minute), START + timedelta(minutes=now))


def test_a_restoration_alone_says_that_a_clock_ran_ahead():
    ahead = ("promote", 5000)
    assert minutes(entries(("register", 0), ahead, ("restore", 10), ("promote", 20))) == [0, 10, 10, 20]
    assert minutes(entries(("register", 0), ahead, ("register", 10))) == [0, 5000, 10]


def test_entries_of_a_clock_that_ran_ahead_are_unsure_between_those_around_them():
    settled = entries(("register", 0), ("promote", 5000), ("promote", 5000), ("restore", 100), ("promote", 120))
    assert [unsure(settled, minute) for minute in (0, 99, 100, 130)] == [[2, 3], [2, 3], [], []]
    assert unsure(settled, -1) == []
    until_now = entries(("register", 0), ("promote", 5000))
    assert (unsure(until_now, 100), unsure(until_now, -1), unsure(until_now, 199, now=4996)) == ([2], [], [])


@pytest.fixture
def hurried(lenient_settings, register, monkeypatch):
    """A registry whose version 2 was promoted by a clock that ran 300 days ahead."""
    registry = Registry(lenient_settings)
    register(registry)
    promotion.promote(registry, "1", reason="", cells=None).check()
    register(registry)
    with monkeypatch.context() as patched:
        patched.setattr(history, "now", lambda: in_utc(timedelta(days=300)))
        promotion.promote(registry, "2", reason="", cells=None).check()
    return registry


def in_utc(later=timedelta(0)):
    return (datetime.now(UTC) + later).isoformat(timespec="microseconds")


def told(registry, at=None):
    return history.told(registry.ledger.rows(), at and history.parse_time(at))


def test_without_a_time_what_serves_now_goes_by_number(hurried):
    assert told(hurried)["version"] == "2" and told(hurried)["unsure"] == []
    asked = told(hurried, in_utc())
    assert (asked["version"], asked["unsure"]) == ("1", [4]), "it may have been written before that moment, or after"


def test_what_would_bear_the_time_of_a_clock_that_ran_ahead_is_not_written(hurried, register, monkeypatch):
    monkeypatch.setattr(promotion, "evaluate", lambda *_, **__: pytest.fail("it was judged"))
    monkeypatch.setattr(hurried.store, "log", lambda *_: pytest.fail("it was put into MLflow"))
    for action in (
        lambda: promotion.promote(hurried, "1", reason="", cells=None),
        lambda: promotion.challenge(hurried, "1", reason=""),
        lambda: register(hurried),
    ):
        with pytest.raises(
            RegistryError,
            match=r"is of 20.* by tester, which is still to come.*Look at it first.* --clock --reason",
        ):
            action()
    assert len(hurried.records()) == 4


def test_in_an_emergency_a_rollback_is_written_all_the_same(hurried):
    assert promotion.rollback(hurried, reason="bad").version == "1"
    assert hurried.proven("champion").version == told(hurried)["version"] == "1"
    assert [fault.entry for fault in verify(hurried).faults] == [4, 5]


def test_a_restoration_writes_down_that_the_other_clock_was_wrong(hurried, register):
    [fault] = verify(hurried).faults
    assert fault.entry == 4 and "its time is still to come" in fault.fault and "registry restore --clock" in fault.fault
    between = in_utc()
    done = promotion.restore(hurried, reason="the clock of the trainer", clock=True)
    assert (done.done, done.ahead, done.time) == (True, [4], hurried.records()[-1].time)
    assert verify(hurried).faults == [] and hurried.records()[-1].time < in_utc()
    now = told(hurried, in_utc())
    assert (now["version"], now["unsure"]) == ("2", []) and told(hurried, between)["unsure"] == [4]
    assert not promotion.restore(hurried, reason="again", clock=True).done
    assert now["since"] == now["promoted"]["time"] == hurried.entry("champion").promoted_at == done.time
    register(hurried)
    assert hurried.records()[-1].time < in_utc()


def test_a_clock_that_every_entry_is_ahead_of_is_to_be_looked_at(hurried, monkeypatch):
    monkeypatch.setattr(history, "now", lambda: "2020-01-01T00:00:00.000000+00:00")
    with (
        hurried.writing(TRAINER) as writer,
        pytest.raises(RegistryError, match="every entry lies after it. Look"),
    ):
        writer.check_clock()


@pytest.mark.parametrize("hours", [-5, -24 * 365])
def test_a_restoration_alone_says_nothing_about_clocks(hurried, monkeypatch, hours):
    """A machine that lags behind may put an alias back, and makes no entry older by it."""
    before = hurried.records()
    monkeypatch.setattr(history, "now", lambda: in_utc(timedelta(hours=hours)))
    assert not promotion.restore(hurried, reason="to be sure").done
    hurried.store.delete_alias("champion")
    done = promotion.restore(hurried, reason="by hand")
    assert (done.done, done.ahead, hurried.records()[-1].time) == (True, [], before[-1].time)
    assert clocks.told_times(hurried.records())[:-1] == [record.time for record in before]


def test_a_registry_whose_first_entry_lies_ahead_is_not_stuck(lenient_settings, register, monkeypatch):
    registry = Registry(lenient_settings)
    with monkeypatch.context() as patched:
        patched.setattr(history, "now", lambda: in_utc(timedelta(days=300)))
        register(registry)
    with pytest.raises(RegistryError, match="if it is wrong, set it right. If it is right.*restore --clock"):
        register(registry)
    with pytest.raises(UsageError, match="--reason TEXT with --clock"):
        promotion.restore(registry, reason=" ", clock=True)
    assert promotion.restore(registry, reason="the first machine", clock=True).ahead == [1]
    register(registry)
    assert registry.records()[-1].time < in_utc() and verify(registry).faults == []


def test_a_trainer_is_told_that_a_promoter_writes_it_down(people, register, monkeypatch):
    tom, pat = people
    with monkeypatch.context() as patched:
        patched.setattr(history, "now", lambda: in_utc(timedelta(days=300)))
        register(tom)
    with pytest.raises(RegistryError, match="a promoter has to write down.* --clock .*can be registered afterwards"):
        register(tom)
    with pat.writing(TRAINER) as writer, pytest.raises(RegistryError, match="right, write down.*was written.$"):
        writer.check_clock()


def test_a_name_breaks_no_line_of_what_is_said_about_clocks(hurried):
    with hurried.writing(TRAINER) as writer:
        writer.records[-1] = replace(writer.records[-1], who="eve\nforged")
        with pytest.raises(RegistryError, match=r"by eve\\nforged,"):
            writer.check_clock()


def test_clocks_that_lie_a_little_apart_stop_nobody(hurried, register, monkeypatch):
    promotion.restore(hurried, reason="the clock of the trainer", clock=True)
    last = hurried.records()[-1].time
    early = (datetime.fromisoformat(last) - timedelta(minutes=4)).isoformat(timespec="microseconds")
    monkeypatch.setattr(history, "now", lambda: early)
    register(hurried)
    assert hurried.records()[-1].time == last and verify(hurried).faults == []
