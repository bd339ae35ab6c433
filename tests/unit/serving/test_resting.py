"""When no follower is needed, and when one is started again."""

import dataclasses
import os
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest

from blastwatch.errors import AliasNotSet, SignatureInvalid
from blastwatch.signing import PROMOTER, ROLES, TRAINER
from serving import follower, follower_child
from serving.follower_child import FollowerChild
from serving.live_folder import HEARTBEAT_SECONDS, LiveFolder, Status
from serving.resting import RESTS_AFTER, Rest
from tests.running import until

ALIASES = ["champion"]


def commit(settings):
    """As whoever promotes does, in a file that is made where it is missing."""
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database, database:
        database.execute("create table if not exists said (word text)")
        database.execute("insert into said values ('moved')")


@pytest.fixture
def store(settings):
    settings.home.mkdir(parents=True, exist_ok=True)
    commit(settings)
    return settings


@pytest.fixture
def folder(store):
    return LiveFolder(store.home)


@pytest.fixture
def rest(store, folder):
    return Rest(store, folder, ALIASES)


def next_moment(folder):
    """Until the clock of files has moved: on an older kernel two changes within one tick look alike."""
    probe = folder / "moment"
    probe.touch()
    first = probe.stat().st_ctime_ns

    def moved():
        probe.touch()
        return probe.stat().st_ctime_ns != first

    until(moved)


def test_it_holds_until_something_is_committed(rest, store):
    assert not rest.holds()
    rest.begin(rest.seen())
    assert rest.holds()
    with closing(sqlite3.connect(store.home / "mlflow.db")) as database:
        database.execute("select * from said").fetchall()
    assert rest.holds()
    commit(store)
    assert not rest.holds()


def test_a_commit_to_the_log_of_a_database_that_keeps_one_ends_it(rest, store):
    with closing(sqlite3.connect(store.home / "mlflow.db")) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("select * from said").fetchall()  # from here on it has the database open
        commit(store)
        rest.begin(rest.seen())
        before = (store.home / "mlflow.db").stat()
        commit(store)
        assert (store.home / "mlflow.db").stat().st_mtime_ns == before.st_mtime_ns  # it stands beside it for now
        assert not rest.holds()


@pytest.mark.parametrize("own_folder", [False, True], ids=["under home", "a folder of its own"])
@pytest.mark.parametrize("what", ["taken away", "added", "another in its place", "not to be read", "another role"])
def test_other_trusted_keys_end_it(store, folder, tmp_path, own_folder, what):
    """What they signed counts from now on, or counts no more, though nobody told the registry anything."""
    settings = dataclasses.replace(store, trusted_keys=tmp_path / "trusted") if own_folder else store
    keys = tmp_path / "trusted" if own_folder else store.keys
    for role in ROLES:
        (keys / role).mkdir(parents=True)
    anna = keys / PROMOTER / "anna.pem"
    anna.write_text("key 1")
    rest = Rest(settings, folder, ALIASES)
    rest.begin(rest.seen())
    assert rest.holds()
    written = anna.stat()
    next_moment(tmp_path)
    if what == "taken away":
        anna.unlink()
    elif what == "added":
        (keys / TRAINER / "bert.pem").write_text("key 2")
    elif what == "another in its place":  # as long as the one before, and as old by what `touch` says
        anna.write_text("key 2")
        os.utime(anna, ns=(written.st_atime_ns, written.st_mtime_ns))
    elif what == "not to be read":
        anna.chmod(0)
    else:
        anna.rename(keys / TRAINER / anna.name)
    assert not rest.holds()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_folder_of_keys_that_may_not_be_entered_holds_up_nobody(store, folder, monkeypatch, moment):
    """Whoever runs the tests may enter every folder, so pathlib's refusal is drawn."""
    (store.keys / PROMOTER).mkdir(parents=True)
    rest = Rest(store, folder, ALIASES)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    if moment == "before":
        monkeypatch.setattr("pathlib.Path.glob", refuse)
        rest.begin(rest.seen())
        assert rest.holds()
    else:
        (store.keys / PROMOTER / "anna.pem").write_text("key 1")
        rest.begin(rest.seen())
        monkeypatch.setattr("pathlib.Path.glob", refuse)
        assert not rest.holds()


def test_a_folder_of_keys_that_is_mounted_anew_ends_it(store, folder, tmp_path):
    """As Kubernetes does it: one link is replaced, through which every file is reached."""
    for number in (1, 2):
        (tmp_path / f"keys-{number}" / PROMOTER).mkdir(parents=True)
        (tmp_path / f"keys-{number}" / PROMOTER / "anna.pem").write_text(f"key {number}")
    link = tmp_path / "trusted"
    link.symlink_to(tmp_path / "keys-1")
    rest = Rest(dataclasses.replace(store, trusted_keys=link), folder, ALIASES)
    rest.begin(rest.seen())
    assert rest.holds()
    link.unlink()
    link.symlink_to(tmp_path / "keys-2")
    assert not rest.holds()


def test_another_policy_ends_it(store, folder, tmp_path):
    policy = tmp_path / "policy.yaml"
    settings = dataclasses.replace(store, policy=policy)
    rest = Rest(settings, folder, ALIASES)
    for change in (lambda: policy.write_text("a: 1"), lambda: policy.write_text("a: 2"), policy.unlink):
        rest.begin(rest.seen())
        assert rest.holds()
        next_moment(tmp_path)
        change()
        assert not rest.holds()
    assert not Rest(store, folder, ALIASES).holds()


def test_a_webhook_ends_it(rest, folder):
    rest.begin(rest.seen())
    folder.nudged()
    assert not rest.holds()


def test_who_asks_for_something_else_does_not_rest_on_it(rest, store, folder):
    rest.begin(rest.seen())
    others = [
        Rest(store, folder, [*ALIASES, "challenger"]),
        Rest(dataclasses.replace(store, model_name="another"), folder, ALIASES),
    ]
    assert not any(other.holds() for other in others)


@pytest.mark.parametrize("uri", ["http://mlflow.lab.example", "postgresql://lab@db.lab.example/mlflow"])
def test_a_registry_elsewhere_must_be_asked(uri, store, folder):
    assert Rest(dataclasses.replace(store, tracking_uri=uri), folder, ALIASES).seen() is None


def test_a_registry_that_is_not_there_must_be_asked(store, rest):
    rest.begin(rest.seen())
    (store.home / "mlflow.db").unlink()
    assert rest.seen() is None
    assert not rest.holds()


def test_what_cannot_be_read_is_no_rest(rest, folder):
    folder.path.mkdir(parents=True)
    folder.rest.write_text("{")
    assert not rest.holds()


@pytest.fixture
def followed(store, served, monkeypatch):
    """A clock that passes while the follower sleeps, and what its registry says."""
    at = SimpleNamespace(now=1000.0, looks=0, says=lambda: served.entry)

    class FakeRegistry:
        settings = store

        def proven(self, alias):
            at.looks += 1
            assert at.now < 1000 + 10 * RESTS_AFTER, "it did not rest"
            found = at.says()
            if isinstance(found, Exception):
                raise found
            return found

        def size_of(self, entry):
            return 1000

        def fetch_entry(self, entry, *, fresh=False):
            return served.package

    def sleep(seconds):
        at.now += seconds

    monkeypatch.setattr(follower, "Registry", lambda _: FakeRegistry())
    monkeypatch.setattr(follower.time, "monotonic", lambda: at.now)
    monkeypatch.setattr(follower.time, "sleep", sleep)
    return at


def test_a_follower_ends_when_nothing_moved_for_a_while(followed, store, rest):
    follower.follow(store, ALIASES)
    assert rest.holds()
    assert RESTS_AFTER < followed.now - 1000 < RESTS_AFTER + 2 * store.follow_seconds + 1
    assert followed.looks > 1


def test_what_moves_while_it_looks_keeps_it_awake(followed, store, served, rest):
    """The files are looked at before the registry is asked: a commit between the two is one that was not seen."""

    def says():
        if followed.now < 1000 + 2 * RESTS_AFTER:
            commit(store)
        return served.entry

    followed.says = says
    follower.follow(store, ALIASES)
    assert followed.now > 1000 + 3 * RESTS_AFTER - 2
    assert rest.holds()


def test_what_is_refused_is_tried_again_and_not_slept_over(followed, store, served, rest):
    followed.says = lambda: SignatureInvalid("nobody") if followed.now < 1000 + 4 * RESTS_AFTER else served.entry
    follower.follow(store, ALIASES)
    assert followed.now >= 1000 + 4 * RESTS_AFTER
    assert rest.holds()


def test_an_alias_that_nothing_carries_is_waited_for_at_rest(followed, store, rest):
    followed.says = lambda: AliasNotSet("no challenger")
    follower.follow(store, ALIASES)
    assert rest.holds()
    assert followed.now < 1000 + 2 * RESTS_AFTER


@pytest.fixture
def child(store, folder, rest, monkeypatch):
    """A `FollowerChild` whose processes are counted instead of started; `ends` ends the one that runs."""
    at = SimpleNamespace(now=1000.0, started=[])
    monkeypatch.setattr(follower_child.time, "monotonic", lambda: at.now)

    def start(command, **_):
        process = SimpleNamespace(returncode=None, stdin=None, wait=lambda _: None)
        process.poll = lambda: process.returncode
        at.started.append(process)
        return process

    monkeypatch.setattr(follower_child.subprocess, "Popen", start)
    at.tended = FollowerChild(folder, ALIASES, rest, {})

    def tend(seconds=0.25):
        at.now += seconds
        at.tended.tend()
        return len(at.started)

    at.tend = tend
    yield at
    at.tended.close()


def test_no_follower_runs_while_nothing_moves_and_the_status_stays_fresh(child, rest, store, folder):
    folder.write_status("champion", Status(reached=5.0))
    rest.begin(rest.seen())
    assert child.tend() == 0
    reached = folder.read_status("champion").reached
    assert reached > 5.0
    assert child.tend() == 0
    assert folder.read_status("champion").reached == reached
    assert child.tend(HEARTBEAT_SECONDS) == 0
    assert folder.read_status("champion").reached > reached
    commit(store)
    assert child.tend() == 1
    assert not folder.rest.exists()


def test_a_key_that_is_taken_away_starts_a_follower_at_once(child, rest, store):
    key = store.keys / PROMOTER / "anna.pem"
    key.parent.mkdir(parents=True)
    key.write_text("key")
    rest.begin(rest.seen())
    assert child.tend() == 0
    key.unlink()
    assert child.tend() == 1


def test_one_that_rests_is_started_at_once_where_something_moves(child, rest, store):
    assert child.tend() == 1
    child.now += RESTS_AFTER + 1
    rest.begin(rest.seen())
    child.started[0].returncode = 0
    assert [child.tend(), child.tend()] == [1, 1]
    commit(store)
    assert child.tend() == 2


def test_one_that_ends_by_an_accident_is_started_after_a_pause(child, caplog):
    assert child.tend() == 1
    child.started[0].returncode = -9
    assert child.tend() == 1
    assert child.tend(1.0) == 2
    assert "ended with code -9" in caplog.text


def test_an_alias_that_the_follower_of_another_service_does_not_ask_for_is_refused(child, store, folder, caplog):
    """One follower serves a home: that of the service which came first, by its own settings."""
    assert child.tend() == 1
    aliases = ["champion", "challenger"]
    other = FollowerChild(folder, aliases, Rest(store, folder, aliases), {})
    other.tend()
    assert folder.read_status("challenger") == Status()
    for _ in range(3):
        child.now += HEARTBEAT_SECONDS + 0.25
        other.tend()
    assert folder.read_status("champion").refused is None
    assert folder.read_status("challenger").refused.reason == "registry"
    assert caplog.text.count("Expected challenger among the aliases") == 1
    child.tended.close()
    other.tend()  # it follows now
    assert len(child.started) == 2 and folder.followed() == aliases
    other.close()


def test_workers_of_one_service_refuse_nothing(child, store, folder, rest):
    assert child.tend() == 1
    other = FollowerChild(folder, ALIASES, rest, {})
    for _ in range(3):
        child.now += HEARTBEAT_SECONDS + 0.25
        other.tend()
    assert folder.read_status("champion") == Status()
