"""What MLflow keeps of a version: the sealed package, and beside it the few files by which `mlflow.pyfunc` loads it.

No digest covers those files, and whoever may write to the store may change them: `MLmodel` names the module that is
imported and a folder of code, the others name what is installed. So each must say what `ModelStore.log` had it say.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blastwatch.errors import PackageError
from blastwatch.package import DIGESTS, Package, open_package

LOADER_MODULE = "blastwatch.pyfunc_model"
DATA, MLMODEL = "data", "MLmodel"
_HARMLESS = {"python_version", "streamable"}
ENVIRONMENT = ("requirements.txt", "conda.yaml", "python_env.yaml")
WRITTEN = (DATA, MLMODEL, *ENVIRONMENT, "registered_model_meta")
"""All that MLflow writes; the last of them comes with a download and is read by nobody."""

UV = (".python-version", "pyproject.toml", "uv.lock")
"""What MLflow copies of a folder of uv that `log_model` is called in, which `ModelStore.log` has switched off. By the
last of them its environments install whatever it names, so it cannot be borne where nobody knows who put it there."""

_LISTED = 5  # faults that are told; requirements that were locked are a hundred
_NAMES = "blastwatch|mlflow|mlflow-skinny|pip|python|setuptools|wheel"
_REQUIREMENT = re.compile(rf"({_NAMES})( *(==|<=|=) *[0-9][\w.+!-]*)?")
_CHANNELS = ("conda-forge", "defaults")


def open_logged(folder: Path, version: str, digest: str) -> Package:
    """The verified package in a version's files.

    Args:
        folder: with all the files of the version. digest: of the package that was registered.

    Raises:
        PackageError: the package is not that one, or what lies beside it is not what MLflow wrote.
    """
    seals = sorted(folder.rglob(DIGESTS))
    if len(seals) != 1:
        raise PackageError(f"Expected one {DIGESTS} in version {version} but found {len(seals)}.")
    package = open_package(seals[0].parent)
    if package.digest != digest:
        raise PackageError(f"Version {version} was registered as package {digest} but holds {package.digest}.")
    faults = list(_faults(folder, package.folder))
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise PackageError(
            f"Expected beside the package of version {version} what MLflow wrote and nothing else but "
            f"{'; '.join(faults[:_LISTED])}{more}. Its package is whole, but mlflow.pyfunc.load_model, or what is "
            f"installed for it, would run what was put there: do not load it. {_remedy(folder)}"
        )
    return package


def _remedy(folder: Path) -> str:
    anew = "register the package anew, which gives it another version: blastwatch registry register DIR"
    if any((folder / name).exists() for name in UV):
        return (
            f"MLflow itself copied {', '.join(UV)} where an earlier Blastwatch registered in a folder that has them. "
            f"If that was so, {anew}; if not, find out first who may write to the store."
        )
    return f"Find out who may write to the store, and {anew}"


def _faults(folder: Path, package: Path) -> Iterator[str]:
    strange = sorted(path.name for path in folder.iterdir() if path.name not in WRITTEN)
    data = folder / DATA
    if data.is_dir():
        strange += sorted(f"{DATA}/{path.name}" for path in data.iterdir() if path != package)
    if strange:
        yield f"{', '.join(strange)} {'is' if len(strange) == 1 else 'are'} there"
    if package.parent != data:
        yield f"the package lies in {package.relative_to(folder).as_posix()}"
    yield from _faults_of_loading(_read(folder / MLMODEL), package.relative_to(folder).as_posix())
    for name in ENVIRONMENT:
        for said in _requirements(folder / name):
            if not _REQUIREMENT.fullmatch(said):
                yield f"{name} asks for {said!r}"


def _faults_of_loading(said: Any, data: str) -> Iterator[str]:
    """What of an `MLmodel` would have MLflow import or read anything else than the package."""
    flavors = said.get("flavors") if isinstance(said, dict) else None
    loaded = flavors.get("python_function") if isinstance(flavors, dict) else None
    if not isinstance(flavors, dict) or not isinstance(loaded, dict):
        yield f"{MLMODEL} has no flavor python_function"
        return
    others = sorted(str(name) for name in flavors if name != "python_function")
    if others:
        yield f"{MLMODEL} has the flavor {', '.join(others)}"
    env = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    known = {"loader_module": LOADER_MODULE, "data": data, "code": None, "env": env}
    # A key that is not written has more code called (`predict_fn`) or other settings given to it (`config`).
    for name in [*known, *(name for name in loaded if name not in known.keys() | _HARMLESS)]:
        expected = known.get(name)
        if loaded.get(name) != expected:
            yield f"{MLMODEL} has {name} {loaded.get(name)!r} and not {expected!r}"


def _requirements(path: Path) -> Iterator[str]:
    """What a file of the environment would have installed, an item a line; one that is not there asks for nothing."""
    if not path.exists():
        return
    if path.suffix == ".txt":
        yield from filter(None, (line.strip() for line in _text(path).splitlines()))
        return
    said = _read(path)
    if not isinstance(said, dict):
        yield str(said)
        return
    known = {"name", "channels", "python", "build_dependencies", "dependencies"}
    yield from (str(name) for name in said if name not in known)
    yield from (str(name) for name in _items(said, "channels") if name not in _CHANNELS)
    yield from (f"python={version}" for version in _items(said, "python"))
    for item in [*_items(said, "build_dependencies"), *_items(said, "dependencies")]:
        if isinstance(item, dict) and set(item) == {"pip"}:
            yield from map(str, _items(item, "pip"))
        elif item != "-r requirements.txt":
            yield str(item)


def _items(said: dict[str, Any], name: str) -> list[Any]:
    """What stands under a name, one thing or a list of them."""
    value = said.get(name)
    return value if isinstance(value, list) else [] if value is None else [value]


def _read(path: Path) -> Any:
    """A YAML file. Raises `PackageError` where it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise PackageError(f"Expected YAML in {path.name} of a version but it cannot be read: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PackageError(f"Expected {path.name} beside the package of a version but {error}.") from error
