"""Whether an MLflow server answers, or something in front of one that is down."""

import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blastwatch import model_store
from blastwatch.embedded_store import open_embedded
from blastwatch.errors import RegistryError, RegistryUnreachable
from blastwatch.model_store import REACH_TIMEOUT, ModelStore, check_reachable
from blastwatch.registry import Registry
from blastwatch.settings import load


@pytest.fixture
def door(tmp_path):
    """A server that answers every request with `status`, others than for its health with `sick`; settings over it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(server.sick if server.sick and self.path != "/health" else server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.sick = asked, None
    server.settings = load({
        "BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}/",
    })  # fmt: skip
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_proxy_before_a_server_that_is_down_is_no_registry(door, status):
    door.status = status
    with pytest.raises(RegistryUnreachable, match=rf"No MLflow server answers at http.* \(HTTP {status}\)\. Start it"):
        check_reachable(door.settings)
    assert door.asked == ["/health"]


@pytest.mark.parametrize("status", [200, 401, 404])
def test_whoever_answers_for_itself_is_one(door, status):
    door.status = status
    check_reachable(door.settings)
    assert door.asked == ["/health"]


def test_a_server_that_answers_with_errors_alone_is_as_good_as_away(door, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    door.status, door.sick = 200, 500
    with pytest.raises(RegistryUnreachable, match="refused: API request to http"):
        ModelStore(door.settings).model()
    assert len(door.asked) == 2


@pytest.mark.parametrize(("name", "clause"), [("blastwatch", "'blastwatch'"), ("ward's", '"ward\'s"')])
def test_a_name_with_a_quote_is_asked_for(settings, name, clause):
    store = ModelStore(replace(settings, model_name=name))
    store.ensure_model()
    store.ensure_model()
    assert store.versions() == [] and model_store._quoted(name) == clause
    store._client.create_model_version(name, source=str(settings.artifacts))
    assert [version.number for version in store.versions()] == ["1"]


def test_nobody_at_all(tmp_path, free_port):
    address = f"http://127.0.0.1:{free_port()}"
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": address})
    with pytest.raises(RegistryUnreachable, match=rf"No MLflow server answers at {address} \(.+\)\. Start it"):
        check_reachable(settings)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_database_that_is_away_is_said_at_once(tmp_path, free_port, scheme):
    """MLflow alone tries to open it ten times, for 100 s, and raises what SQLAlchemy does."""
    where = f"127.0.0.1:{free_port()}/mlflow"
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"{scheme}://pat:s3cret@{where}"})
    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=re.escape(f"MLflow's store {scheme}://{where} cannot be")) as said:
        ModelStore(settings).model()
    assert time.monotonic() - began < REACH_TIMEOUT and "s3cret" not in str(said.value)


def test_a_database_that_goes_away_before_mlflow_opens_it_is_unreachable_too(tmp_path, free_port, monkeypatch):
    monkeypatch.setattr(model_store, "check_reachable", lambda _: None)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 0)
    uri = f"postgresql+psycopg://pat:s3cret@127.0.0.1:{free_port()}/mlflow"
    with pytest.raises(RegistryUnreachable, match=r"cannot be reached or is busy: connection failed") as said:
        ModelStore(load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri})).model()
    assert "s3cret" not in str(said.value)


# -- an account in the address is no part of any message ----------------------------------------------------------


def test_a_server_that_is_away_is_named_without_its_account(tmp_path, free_port):
    address = f"127.0.0.1:{free_port()}"
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://pat:s3cret@{address}"})
    assert settings.tracking_shown == f"http://{address}"
    with pytest.raises(RegistryUnreachable, match=f"No MLflow server answers at http://{address} ") as said:
        Registry(settings).entries()
    assert "pat" not in str(said.value) and "s3cret" not in str(said.value)


@pytest.mark.parametrize("ask", [
    lambda store: store.model(), lambda store: store.version("1"), lambda store: store.download("1", None),
    lambda store: store.set_alias("champion", "1"), lambda store: store.size("1"),
], ids=["model", "version", "download", "alias", "size"])  # fmt: skip
def test_what_mlflow_itself_says_is_shown_without_the_account(tmp_path, free_port, monkeypatch, ask):
    """Its own errors name the address that it asked, with all that stands in it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(model_store, "check_reachable", lambda _: None)  # it went away just after it had answered
    address = f"127.0.0.1:{free_port()}"
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://pat:s3cret@{address}"})
    with pytest.raises(RegistryError, match=f"MLflow at http://{address} refused: API request to http://") as said:
        ask(ModelStore(settings))
    assert "pat" not in str(said.value) and "s3cret" not in str(said.value)


def test_who_may_not_is_told_where_without_the_account(tmp_path):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://pat:s3cret@mlflow.lab"})
    said = str(ModelStore(settings)._ours(MlflowException("no", PERMISSION_DENIED)))
    assert said.startswith("MLflow at http://mlflow.lab does not let ") and "s3cret" not in said


def test_a_database_without_a_champion_is_named_without_its_account(tmp_path, monkeypatch):
    uri = "postgresql://pat:s3cret@db.lab/mlflow"
    registry = Registry(load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
    monkeypatch.setattr(registry.store, "model", lambda: None)
    for ask in (registry.entry, registry.proven):
        for alias in ("champion", "challenger"):
            with pytest.raises(RegistryError, match="postgresql://db.lab/mlflow") as said:
                ask(alias)
            assert "pat" not in str(said.value) and "s3cret" not in str(said.value)


def test_a_store_that_cannot_be_opened_is_named_without_an_account(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 0)  # fifteen of them take 100 s
    uri = "postgresql://pat:s3cret@127.0.0.1:9/mlflow?connect_timeout=1"
    with pytest.raises(RegistryError, match="cannot open its store postgresql://127.0.0.1:9/mlflow") as said:
        open_embedded(load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
    assert "s3cret" not in str(said.value)
