"""What callers are told of the model: by its verified package, whatever somebody wrote into MLflow's tags."""

from dataclasses import replace

from serving.keys import KeyFolder
from tests.in_thread import front


def test_figures_and_day_are_those_of_the_package(served, tmp_path):
    entry = replace(served.entry, created="2031-01-01T00:00:00+00:00", metrics={"weighted_f1": 1.0, "f2": 1.0})
    key = KeyFolder(tmp_path / "api-keys").add("lab")
    with front(replace(served, entry=entry), tmp_path) as service:
        told = service.ask("/v1/model", key).json()
    assert told["created"] == served.package.info.created != entry.created
    assert told["metrics"] == {"weighted_f1": 0.9}
    assert told["intervals"].keys() == {"weighted_f1"}
