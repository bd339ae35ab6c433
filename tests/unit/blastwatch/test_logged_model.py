"""What lies beside a package in MLflow's store: no digest covers it, and `mlflow.pyfunc` runs what it names."""

import os
import re

import pytest
import yaml

from blastwatch.errors import PackageError
from blastwatch.gates import evaluate
from blastwatch.logged_model import open_logged
from blastwatch.package import open_package
from blastwatch.policy import load_policy
from blastwatch.registry import Registry
from blastwatch.verification import verify
from tests.packages import make_package

ENV = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
LOADED = {
    "code": None,
    "data": "data/package",
    "env": ENV,
    "loader_module": "blastwatch.pyfunc_model",
    "python_version": "3.11.7",
    "streamable": False,
}
CONDA = {
    "channels": ["conda-forge"],
    "dependencies": ["python=3.11.7", "pip<=23.2.1", {"pip": ["mlflow==3.17.2", "blastwatch"]}],
    "name": "mlflow-env",
}
PYTHON = {
    "python": "3.11.7",
    "build_dependencies": ["pip==23.2.1", "setuptools==84.2.1", "wheel"],
    "dependencies": ["-r requirements.txt"],
}
REQUIREMENTS = "mlflow==3.17.2\nblastwatch"


@pytest.fixture
def logged(tmp_path):
    """A version's files as MLflow writes them, and opens them."""
    folder = tmp_path / "version"
    (folder / "data").mkdir(parents=True)
    digest = open_package(make_package(folder / "data" / "package")).digest

    def write(**changed):
        said = {"loaded": LOADED, "conda": CONDA, "python": PYTHON} | changed
        flavors = {"python_function": said["loaded"]} | said.get("flavors", {})
        (folder / "MLmodel").write_text(said.get("mlmodel") or yaml.safe_dump({"flavors": flavors}))
        (folder / "conda.yaml").write_text(yaml.safe_dump(said["conda"]))
        (folder / "python_env.yaml").write_text(yaml.safe_dump(said["python"]))
        (folder / "requirements.txt").write_text(said.get("requirements", REQUIREMENTS))
        (folder / "registered_model_meta").write_text("model_name: blastwatch\nmodel_version: '1'\n")
        return folder

    return write, lambda: open_logged(folder, "7", digest)


def test_what_mlflow_writes_is_taken(logged):
    write, opened = logged
    write()
    assert opened().folder.name == "package"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loaded": LOADED | {"loader_module": "evil_loader"}}, "MLmodel has loader_module 'evil_loader' and not"),
        ({"loaded": LOADED | {"code": "code"}}, "MLmodel has code 'code' and not None"),
        ({"loaded": LOADED | {"data": "."}}, "MLmodel has data '.' and not 'data/package'"),
        ({"loaded": LOADED | {"predict_fn": "system"}}, "MLmodel has predict_fn 'system' and not None"),
        ({"loaded": LOADED | {"config": {"a": 1}}}, "MLmodel has config {'a': 1} and not None"),
        ({"loaded": LOADED | {"model_code_path": "a.py"}}, "MLmodel has model_code_path 'a.py'"),
        ({"loaded": LOADED | {"env": ENV | {"conda": "/srv/other/conda.yaml"}}}, "MLmodel has env {'conda': '/srv/oth"),
        ({"loaded": LOADED | {"env": {"conda": "conda.yaml"}}}, "MLmodel has env {'conda': 'conda.yaml'}"),
        ({"loaded": LOADED | {"data": None}}, "MLmodel has data None"),
        ({"loaded": "sklearn"}, "MLmodel has no flavor python_function"),
        ({"flavors": {"sklearn": {"pickled_model": "model.pkl"}}}, "MLmodel has the flavor sklearn"),
        ({"mlmodel": "[]"}, "MLmodel has no flavor python_function"),
        ({"requirements": "mlflow==3.17.2\nblastwatch\nevil"}, "requirements.txt asks for 'evil'"),
        (
            {"requirements": "--index-url http://evil\nblastwatch"},
            "requirements.txt asks for '--index-url http://evil'",
        ),
        ({"requirements": "blastwatch @ http://evil/b.whl"}, "requirements.txt asks for 'blastwatch @ http"),
        ({"conda": CONDA | {"channels": ["evil"]}}, "conda.yaml asks for 'evil'"),
        ({"conda": CONDA | {"dependencies": [{"pip": ["evil"]}]}}, "conda.yaml asks for 'evil'"),
        ({"conda": CONDA | {"variables": {"PYTHONPATH": "code"}}}, "conda.yaml asks for 'variables'"),
        ({"python": PYTHON | {"dependencies": ["evil==1"]}}, "python_env.yaml asks for 'evil==1'"),
    ],
)
def test_what_would_load_something_else_is_named(logged, changed, said):
    write, opened = logged
    write(**changed)
    with pytest.raises(PackageError, match="of version 7 what MLflow wrote and nothing else") as caught:
        opened()
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["evil_loader.py", "code/evil_loader.py", "data/evil_loader.py", "data/other/a.py"])
def test_what_lies_beside_it_is_named(logged, name):
    write, opened = logged
    path = write() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("raise SystemExit")
    with pytest.raises(PackageError, match=r"(evil_loader.py|code|data/other) is there"):
        opened()


def test_what_was_copied_of_a_folder_of_uv_is_told_with_what_to_do(logged):
    """MLflow's environments install what `uv.lock` names, and nobody can tell any more who put it there."""
    write, opened = logged
    (write() / "uv.lock").write_text("version = 1")
    with pytest.raises(PackageError, match="uv.lock is there.* MLflow itself copied .* registry register DIR; if not"):
        opened()


def test_of_many_faults_the_first_are_told(logged):
    write, opened = logged
    write(requirements="\n".join(f"locked{number}==1.0" for number in range(150)))
    with pytest.raises(PackageError, match=r"asks for 'locked4==1.0'; and 145 more\. Its package is whole") as caught:
        opened()
    assert "locked5=" not in str(caught.value)


def test_a_folder_of_uv_and_a_wish_to_lock_add_nothing(lenient_settings, register, tmp_path, monkeypatch):
    """MLflow would copy the folder's files, and lock what is required where `uv` is installed."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in (("uv.lock", "version = 1"), ("pyproject.toml", "[project]"), (".python-version", "3.11")):
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_LOCK_MODEL_DEPENDENCIES", "true")
    monkeypatch.delenv("MLFLOW_UV_AUTO_DETECT", raising=False)
    seen = []
    monkeypatch.setattr("mlflow.utils.environment.shutil.which", seen.append)
    registry = Registry(lenient_settings)
    register(registry)
    assert verify(registry).intact and "uv" not in seen
    assert os.environ["MLFLOW_LOCK_MODEL_DEPENDENCIES"] == "true" and "MLFLOW_UV_AUTO_DETECT" not in os.environ


def test_a_package_whose_version_was_changed_is_registered_anew(lenient_settings, register, tmp_path):
    registry = Registry(lenient_settings)
    register(registry)
    assert registry.register(tmp_path / "package0").version == "1"
    (registry.store.download("1", None) / "evil_loader.py").write_text("raise SystemExit")
    again = registry.register(tmp_path / "package0")
    assert (again.version, again.aliases) == ("2", ["candidate"])
    [fault] = verify(registry).faults
    assert fault.entry == 1 and "registry register DIR" in fault.fault
    assert registry.register(tmp_path / "package0").version == "2"


@pytest.mark.parametrize("text", ["flavors: [", None])
def test_a_description_that_cannot_be_read_is_no_description(logged, text):
    write, opened = logged
    path = write(mlmodel=text) / "MLmodel"
    if text is None:
        path.unlink()
    with pytest.raises(PackageError, match="MLmodel"):
        opened()


def test_another_loader_in_the_store_stops_gates_verify_and_services(lenient_settings, register):
    """All that MLflow itself writes is taken before that."""
    registry = Registry(lenient_settings)
    entry = register(registry)
    assert verify(registry).intact
    folder = registry.store.download("1", None)
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(re.sub("loader_module: .*", "loader_module: evil_loader", text))
    (folder / "evil_loader.py").write_text("raise SystemExit")
    said = "evil_loader.py is there; MLmodel has loader_module 'evil_loader'"
    [fault] = verify(registry).faults
    [gate] = evaluate(registry, entry, load_policy(lenient_settings.policy), None, "somebody else")
    assert said in fault.fault and (gate.name, gate.passed) == ("digests", False) and said in str(gate.value)
    with pytest.raises(PackageError, match="evil_loader"):
        registry.fetch("1")
