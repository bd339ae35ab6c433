"""`blastwatch up`: the addresses that it prints."""

from blastwatch.settings import load
from blastwatch.stack_commands import start_all


class Children:
    """Starts nothing and waits for nothing."""

    def start(self, name, command):
        assert name != "mlflow", "somebody else's server is there already"

    def wait_for(self, name, address):
        pass


def test_the_address_of_a_server_is_printed_without_its_account(tmp_path):
    uri = "http://pat:s3cret@mlflow.lab:5000"
    addresses = start_all(Children(), load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
    assert addresses["mlflow"] == "http://mlflow.lab:5000" and "s3cret" not in str(addresses)
