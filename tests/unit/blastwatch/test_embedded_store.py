import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import pytest

from blastwatch import embedded_store
from blastwatch.embedded_store import LOCK, check_made, is_made, make_embedded, open_embedded
from blastwatch.errors import RegistryError, SettingsError
from blastwatch.settings import load
from tests.forkserver import forkserver


def experiments(home):
    """What a process that has opened the store finds in it."""
    from mlflow import MlflowClient

    settings = load({"BLASTWATCH_HOME": str(home)})
    open_embedded(settings)
    return [experiment.name for experiment in MlflowClient(settings.tracking_uri).search_experiments()]


def test_processes_that_open_a_new_store_at_once_all_get_it(tmp_path):
    with ProcessPoolExecutor(3, mp_context=forkserver()) as pool:
        assert list(pool.map(experiments, [tmp_path] * 3)) == [["Default"]] * 3


def test_a_store_that_mlflow_cannot_open_is_said(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(RegistryError, match="cannot open its store .* is not a database"):
        open_embedded(load({"BLASTWATCH_HOME": str(tmp_path)}))


def home_of(folder):
    return load({"BLASTWATCH_HOME": str(folder)})


@pytest.fixture
def made_quickly(monkeypatch):
    """In place of MLflow's tables one of ours, which takes no seconds."""

    def make(file):
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("create table experiments (name text)")
            connection.commit()

    monkeypatch.setattr(embedded_store, "_make_tables", make)
    return make


@pytest.mark.parametrize("end", [KeyboardInterrupt(), sqlite3.OperationalError("database or disk is full")])
def test_a_first_start_that_is_stopped_leaves_no_store(tmp_path, monkeypatch, made_quickly, end):
    def stopped(file):
        made_quickly(file)
        raise end

    monkeypatch.setattr(embedded_store, "_make_tables", stopped)
    told = KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else RegistryError
    with pytest.raises(told):
        make_embedded(home_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_what_a_killed_start_left_is_made_anew(tmp_path, made_quickly):
    """SQLite would play the journals back into the new file."""
    for name in ("mlflow.db", "mlflow.db.new", "mlflow.db.new-journal", "mlflow.db-journal", "mlflow.db-wal"):
        (tmp_path / name).write_bytes(b"" if name == "mlflow.db" else b"left")
    make_embedded(home_of(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, "mlflow.db"}
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("select count(*) from experiments").fetchone() == (0,)


@pytest.mark.usefixtures("made_quickly")
def test_a_store_that_is_there_stays(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"dear")
    make_embedded(home_of(tmp_path))
    assert (tmp_path / "mlflow.db").read_bytes() == b"dear"


@pytest.mark.parametrize("name", [None, "Default"])
def test_a_half_made_store_is_named_to_be_removed_and_no_other(tmp_path, monkeypatch, name):
    """As an earlier version left it, whose experiment MLflow adds last."""

    class Client:
        def __init__(self, *_):
            pass

        def search_experiments(self, **_):
            raise sqlite3.OperationalError("table runs already exists")

    monkeypatch.setattr("mlflow.MlflowClient", Client)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("create table experiments (name text)")
        connection.execute("create table runs (name text)")
        connection.executemany("insert into experiments values (?)", [(name,)] if name else [])
        connection.commit()
    with pytest.raises(RegistryError, match="table runs already exists") as said:
        open_embedded(home_of(tmp_path))
    assert (f"Remove {tmp_path / 'mlflow.db'} and" in str(said.value)) == (name is None)


def test_a_home_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(SettingsError, match="written to as BLASTWATCH_HOME but got .*file"):
            open_embedded(home_of(home))
    with pytest.raises(SettingsError, match="Expected a folder as BLASTWATCH_HOME"):
        is_made(home_of(tmp_path / "file"))


def test_a_registry_is_there_once_anything_of_it_is(tmp_path):
    assert not is_made(home_of(tmp_path / "none")) and not (tmp_path / "none").exists()
    for name in ("mlflow.db", "history.db"):
        (tmp_path / name).touch()
        assert is_made(home_of(tmp_path))
        check_made(home_of(tmp_path))
        (tmp_path / name).unlink()
    elsewhere = {"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    assert is_made(load(elsewhere))
    check_made(load(elsewhere))
    with pytest.raises(RegistryError, match=r"no registry in .*none/mlflow\.db \(BLASTWATCH_HOME\)\. Name the one"):
        check_made(home_of(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
