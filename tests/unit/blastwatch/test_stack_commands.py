"""`blastwatch up`: the addresses that it prints, and the home that it does not make."""

import pytest
from click.testing import CliRunner

from blastwatch.errors import RegistryError
from blastwatch.settings import load
from blastwatch.stack_commands import start_all, up


class Children:
    """Starts nothing and waits for nothing."""

    def start(self, name, command):
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
    monkeypatch.setattr("blastwatch.stack_commands.start_all", lambda *_: pytest.fail("something was started"))
    found = CliRunner().invoke(up)
    assert isinstance(found.exception, RegistryError) and "There is no registry in" in str(found.exception)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("localhost", "127.0.0.1")])
def test_the_service_is_asked_where_it_listens(tmp_path, host, shown):
    children, elsewhere = Children(), {"MLFLOW_TRACKING_URI": "http://mlflow.lab:5000"}
    addresses = start_all(children, load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_HOST": host, **elsewhere}))
    assert addresses["service"] == f"http://{shown}:3000"
    assert children.asked["service"] == f"http://{shown}:3000/readyz"
