"""`blastwatch up`: the addresses that it prints, the home that it does not make, and the version that it wants."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from blastwatch.errors import AliasNotSet, RegistryError, RegistryUnreachable
from blastwatch.settings import load
from serving.live import hand_over, source_of
from serving.live_folder import LiveFolder
from serving.stack_commands import start_all, up


class Children:
    """Starts nothing and waits for nothing."""

    def start(self, name, command, *, alone=False):
        assert alone == (name == "monitor"), "a retraining goes on"
        assert name != "mlflow", "somebody else's server is there already"

    def __init__(self):
        self.asked = {}

    def wait_for(self, name, address):
        self.asked[name] = address


def test_the_address_of_a_server_is_printed_without_its_account(tmp_path):
    uri = "http://pat:s3cret@mlflow.lab:5000"
    addresses = start_all(Children(), load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
    assert addresses["mlflow"] == "http://mlflow.lab:5000" and "s3cret" not in str(addresses)


def test_where_there_is_no_registry_nothing_is_made_nor_started(tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("serving.stack_commands.start_all", lambda *_: pytest.fail("something was started"))
    found = CliRunner().invoke(up)
    assert isinstance(found.exception, RegistryError) and "There is no registry in" in str(found.exception)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("localhost", "127.0.0.1")])
def test_the_service_is_asked_where_it_listens(tmp_path, host, shown):
    children, elsewhere = Children(), {"MLFLOW_TRACKING_URI": "http://mlflow.lab:5000"}
    addresses = start_all(children, load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_HOST": host, **elsewhere}))
    assert addresses["service"] == f"http://{shown}:3000"
    assert children.asked["service"] == f"http://{shown}:3000/readyz"


@pytest.fixture
def called(tmp_path, monkeypatch, free_port):
    """Calls `up` over a home that is there, until all would be started. Returns what came of it."""
    for name in ("PORT", "MONITOR_PORT", "MLFLOW_PORT", "EVIDENTLY_PORT"):
        monkeypatch.setenv(f"BLASTWATCH_{name}", str(free_port()))
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    started = []

    def call(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        def stopped(*_):
            started.append(1)
            raise KeyboardInterrupt

        monkeypatch.setattr("serving.stack_commands.start_all", stopped)
        started.clear()
        found = CliRunner().invoke(up)
        assert bool(started) == (found.exit_code == 0)
        return found

    return call


def keep(served, alias="champion"):
    """The verified copy that an earlier start left."""
    settings = load()
    hand_over(replace(served, alias=alias, source=source_of(settings)), LiveFolder(settings.home).wanted(alias))


def test_a_server_that_is_away_holds_nothing_up_where_a_verified_copy_serves(called, served, free_port):
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    refused = called(**away)
    assert isinstance(refused.exception, RegistryUnreachable) and "blastwatch up" not in str(refused.exception)
    keep(served)
    found = called()
    assert "No MLflow server answers at" in found.stderr
    assert "Version 7 serves from its verified local copy." in found.stderr
    # Of another model it is nobody's copy.
    assert isinstance(called(BLASTWATCH_MODEL_NAME="blood-b").exception, RegistryUnreachable)


def test_the_version_that_is_wanted_is_the_one_under_the_alias_that_serves(called, served, settings, monkeypatch):
    monkeypatch.setattr("serving.stack_commands.check_made", lambda _settings: None)
    monkeypatch.setattr("blastwatch.registry.Registry.proven", lambda _, alias: {"ward-3": served.entry}[alias])
    assert called(BLASTWATCH_MODEL_ALIAS="ward-3").stderr.strip() == "Stopped."

    def nobody(_registry, alias):
        raise AliasNotSet(f"No version carries {alias}.")

    monkeypatch.setattr("blastwatch.registry.Registry.proven", nobody)
    keep(served)
    assert str(called().exception) == "No version carries ward-3."
    keep(served, "ward-3")
    assert "No version carries ward-3. Version 7 serves from its verified local copy." in called().stderr
