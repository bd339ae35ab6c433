"""A registry of 1,000 entries, and everything that somebody might do to it."""

import sqlite3
import time
from dataclasses import replace

import pytest

from blastwatch import history
from blastwatch.errors import HistoryBroken
from blastwatch.recording import HEAD_TAG, Writer
from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER, TRAINER
from blastwatch.verification import verify
from tests.packages import make_package

ENTRIES = 1000
WEIGHTS_SIZE = 45_000_000  # bytes, as of a ResNet-18


@pytest.fixture(scope="module")
def long_history(tmp_path_factory, empty_store):
    """Settings over two versions whose champion changed until there were 1,000 entries; MLflow was told of all."""
    import shutil

    import mlflow

    from blastwatch.settings import load

    home = tmp_path_factory.mktemp("long") / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "tester"})
    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.create_experiment("test", artifact_location=settings.artifacts.as_uri())
    registry = Registry(settings)
    for seed in (1, 2):
        run = client.create_run(experiment).info.run_id
        folder = home.parent / f"package{seed}"
        registry.register(make_package(folder, run_id=run, seed=seed, weights=bytes([seed]) * WEIGHTS_SIZE))
    both = [registry.entry("1"), registry.entry("2")]
    with registry.writing(PROMOTER) as writer:
        tell, writer._tell = writer._tell, lambda row: None  # the mirror of the last two says it all
        for number in range(3, ENTRIES + 1):
            if number > ENTRIES - 2:
                writer._tell = tell
            writer.move("promote", "champion", both[number % 2], why=f"number {number}")
    registry.ledger.close()
    assert verify(registry).faults == []
    return settings


@pytest.fixture
def copied(long_history, tmp_path):
    """A copy to do harm to; the versions' files are shared."""
    import shutil

    home = tmp_path / "home"
    shutil.copytree(long_history.home, home, ignore=shutil.ignore_patterns("mlartifacts", "packages"))
    return replace(
        long_history, home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
        history_url=f"sqlite:///{home / 'history.db'}",
    )  # fmt: skip


def harm(settings, *statements):
    with sqlite3.connect(settings.home / "history.db") as database:
        for statement, *values in statements:
            database.execute(statement, values)
    database.close()


def found(settings, **options):
    return verify(Registry(settings), **options).faults


def test_a_thousand_entries_and_the_files_take_less_than_five_seconds(long_history):
    """Read once to warm the page cache, then timed generously: the figure itself stands in docs/promotion.md."""
    started = time.perf_counter()
    result = verify(Registry(long_history))
    seconds = time.perf_counter() - started
    assert (result.entries, result.versions, result.faults) == (ENTRIES, 2, [])
    print(f"{seconds:.2f} s")


@pytest.mark.parametrize("column", ["body", "gates", "hash", "signature"])
@pytest.mark.parametrize("number", [1, 500, 999, 1000])
def test_one_changed_character(copied, number, column):
    at = f"substr({column}, 1, 20) || char(unicode(substr({column}, 21, 1)) + 1) || substr({column}, 22)"
    if column == "gates":
        at = "'[1]'"
    harm(copied, (f"update history set {column} = {at} where number = ?", number))
    assert found(copied)[0].entry == number


@pytest.mark.parametrize("value", ["'\"x\"'", "'null'", "'[\"1\"]'", "'5'"], ids=["word", "null", "list", "number"])
def test_a_version_that_is_none_ends_in_no_failure(copied, value):
    harm(copied, (f"update history set body = json_set(body, '$.version', json({value})) where number = 1",))
    assert found(copied, files=False)[0].entry == 1


@pytest.mark.parametrize("number", [1, 500, 999])
def test_a_removed_entry(copied, number):
    harm(copied, ("delete from history where number = ?", number))
    assert found(copied)[0].entry == number + 1


def test_a_removed_entry_whose_followers_moved_up(copied):
    harm(copied, ("delete from history where number = 500",),
         ("update history set number = -number where number > 500",),
         ("update history set number = -number - 1 where number < 0",))  # fmt: skip
    assert found(copied)[0].entry == 500


def test_two_swapped(copied):
    harm(copied, ("update history set number = -1 where number = 300",),
         ("update history set number = 300 where number = 301",),
         ("update history set number = 301 where number = -1",))  # fmt: skip
    assert found(copied)[0].entry == 300


@pytest.mark.parametrize("left", [999, 998, 10, 0])
def test_a_cut_tail(copied, left):
    harm(copied, ("delete from history where number > ?", left))
    assert any(fault.entry == left + 1 and "cut tail" in fault.fault for fault in found(copied))
    with pytest.raises(HistoryBroken, match="tail was cut"), Registry(copied).writing(PROMOTER):
        pass


def test_a_changed_file_of_a_version(copied, long_history):
    [card, *_] = sorted(long_history.artifacts.rglob("card.md"))
    before = card.read_bytes()
    card.write_bytes(before + b"\n")
    try:
        [fault] = found(copied)
        assert "card.md was changed" in fault.fault and fault.entry in (1, 2)
        assert found(copied, files=False) == []
    finally:
        card.write_bytes(before)


def test_an_alias_moved_by_hand(copied):
    import mlflow

    mlflow.MlflowClient(copied.tracking_uri, copied.tracking_uri).set_registered_model_alias(
        "blastwatch", "champion", "2"
    )
    [fault] = found(copied)
    assert fault.entry == ENTRIES and "stands on version 2 but the history says 1" in fault.fault


def test_a_deleted_version_and_a_changed_digest(copied):
    import mlflow

    client = mlflow.MlflowClient(copied.tracking_uri, copied.tracking_uri)
    client.set_model_version_tag("blastwatch", "2", "blastwatch.digest", "0" * 64)
    assert found(copied)[0].entry == 2
    client.delete_model_version("blastwatch", "2")
    assert "version 2 is no longer in MLflow" in "; ".join(map(str, found(copied)))


def test_a_mirrored_head_that_was_made_up(copied):
    import json

    import mlflow

    client = mlflow.MlflowClient(copied.tracking_uri, copied.tracking_uri)
    said = json.loads(client.get_registered_model("blastwatch").tags[HEAD_TAG])
    forged = said | {"body": said["body"].replace('"number":1000', '"number":1001')}
    client.set_registered_model_tag("blastwatch", HEAD_TAG, json.dumps(forged))
    assert found(copied)
    registry = Registry(copied)
    assert history.faults(registry.ledger.rows(), registry.trusted, model=registry.name) == []


@pytest.fixture
def acting(copied, monkeypatch):
    """A registry on which somebody promotes version 2 whenever it is asked for MLflow's model, a number of times."""
    registry, left = Registry(copied), []

    def model():
        if left:
            left.pop()
            other = Registry(copied)
            with other.writing(PROMOTER) as writer:
                writer.move("promote", "champion", other.entry("2"), why="meanwhile")
        return ask()

    ask = registry.store.model
    monkeypatch.setattr(registry.store, "model", model)
    monkeypatch.setattr("blastwatch.verification._PAUSE", 0)
    return registry, left


def test_a_promotion_in_between_is_no_fault(acting):
    registry, left = acting
    left += [True] * 2
    found = verify(registry, files=False)
    assert (found.faults, found.entries, left) == ([], ENTRIES + 2, [])


def test_a_registry_that_never_stands_still_is_taken_as_it_was_seen(acting):
    registry, left = acting
    left += [True] * 100
    assert any("cut tail" in fault.fault for fault in verify(registry, files=False).faults)
    assert left, "it does not look for ever"


def test_a_promotion_that_mlflow_is_told_of_a_moment_later_is_no_fault(copied, monkeypatch):
    registry = Registry(copied)
    monkeypatch.setattr(Writer, "_tell", lambda *_: None)
    with registry.writing(PROMOTER) as writer:
        writer.move("promote", "champion", registry.entry("2"), why="under way")
    monkeypatch.undo()

    def finish(_seconds):
        with Registry(copied).writing(PROMOTER):
            pass

    monkeypatch.setattr("blastwatch.verification.time.sleep", finish)
    assert verify(registry, files=False).faults == []


def test_a_version_whose_entry_comes_a_moment_later_is_no_fault(copied, monkeypatch):
    import mlflow

    client, registry = mlflow.MlflowClient(copied.tracking_uri, copied.tracking_uri), Registry(copied)
    known = client.get_model_version("blastwatch", "1")
    client.create_model_version("blastwatch", source=known.source, run_id=known.run_id, tags=dict(known.tags))

    def finish(_seconds):
        with Registry(copied).writing(TRAINER) as writer:
            writer.move("register", "candidate", registry.entry("3"))

    monkeypatch.setattr("blastwatch.verification.time.sleep", finish)
    assert verify(registry, files=False).faults == []
