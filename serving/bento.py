"""A bento that serves one model version by itself: code, package and pinned requirements, no registry.

src/blastwatch, src/monitoring, src/serving    the code
src/model/live.json, src/model/package/        the version (see `serving.live`)
env/python/requirements.txt                    installed versions of what the service imports, no index address
env/docker/Dockerfile                          runs on a GPU where the container gets one, else on the CPU
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blastwatch.errors import BlastwatchError, UsageError
from serving.live import BENTO_MODEL, Served, hand_over

SOURCES = ("blastwatch", "monitoring", "serving")

# What the service process imports; what they need in turn is found in the installed metadata. Training, MLflow and
# Evidently stay out: a bento needs no registry, and reports are the monitor's work. uvicorn takes httptools and uvloop
# where they are installed, and is slower by itself; BentoML does not ask for them, nor for what sends spans.
ROOTS = (
    "alembic",
    "bentoml",
    "click",
    "cryptography",
    "httptools",
    "httpx",
    "numpy",
    "opentelemetry-exporter-otlp-proto-http",
    "openvino",
    "pandas",
    "pillow",
    "prometheus-client",
    "psutil",
    "psycopg",
    "psycopg-binary",
    "pyyaml",
    "rich",
    "safetensors",
    "sqlalchemy",
    "torch",
    "torchvision",
    "uvloop",
)

# Set in the bento's container. torch's packages bring CUDA's libraries with
# them, so a plain Python image is enough for a GPU: the driver comes from the host, asked for by NVIDIA's two.
ENVIRONMENT = {
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Built:
    """A finished bento: its BentoML tag, its folder, the text of its Dockerfile."""

    tag: str
    folder: Path
    dockerfile: str


def build_bento(served: Served, out: Path) -> Built:
    """Build the bento in a new folder.

    Raises:
        UsageError: the folder is there already.
        BlastwatchError: BentoML refused; its words are in the message.
    """
    if out.exists():
        raise UsageError(f"Expected a new folder for the bento but {out} is there already.")
    with tempfile.TemporaryDirectory(prefix="blastwatch-bento-") as scratch:
        context, home = Path(scratch) / "context", Path(scratch) / "home"
        context.mkdir()
        _lay_out(served, context)
        tag = _run_build(context, home)
        name, version = tag.split(":")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(home / "bentos" / name / version, out)
    return Built(tag=tag, folder=out, dockerfile=(out / "env" / "docker" / "Dockerfile").read_text())


def _lay_out(served: Served, context: Path) -> None:
    """Everything that the bento shall contain, and the bentofile that says so."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in SOURCES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, context / name, ignore=ignore)
    package = shutil.copytree(served.package.folder, context / BENTO_MODEL / "package")
    hand_over(served, context / BENTO_MODEL / "live.json", package=package)
    (context / "requirements.txt").write_text("\n".join(pinned(ROOTS)) + "\n")
    (context / "bentofile.yaml").write_text(json.dumps(_bentofile(served), indent=2))  # JSON is YAML


def _bentofile(served: Served) -> dict[str, Any]:
    return {
        "service": "serving.service:Blastwatch",
        "labels": {
            "model_version": served.entry.version,
            "package": served.package.digest[:63],
            "synthetic": str(served.package.info.synthetic).lower(),
        },
        "include": [*(f"{name}/**" for name in SOURCES), f"{BENTO_MODEL}/**"],
        # Without this BentoML resolves anew and writes the address of an index into the bento.
        "python": {"requirements_txt": "./requirements.txt", "lock_packages": False},
        "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
        "envs": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
    }


def _run_build(context: Path, home: Path) -> str:
    """Run `bentoml build` in a process of its own: it imports the service from the context, not from here."""
    home.mkdir()
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(context),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", str(context)]
    done = subprocess.run(  # noqa: S603  (every word of the command is ours)
        command, cwd=context, env=environment, capture_output=True, text=True, check=False
    )
    words = done.stdout.split("__tag__:")
    if done.returncode != 0 or len(words) != 2:
        raise BlastwatchError(f"BentoML built no bento: {(done.stderr or done.stdout).strip()[-2000:]}")
    return words[1].split()[0]


def pinned(roots: tuple[str, ...]) -> list[str]:
    """The installed versions of some packages and of all that they need, as `name==version` lines, sorted."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    waiting = [(canonicalize_name(name), frozenset[str]()) for name in roots]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version.split("+")[0]
        for text in distribution.requires or ():
            need = Requirement(text)
            contexts = [{"extra": extra} for extra in ("", *extras)]
            if need.marker is not None and not any(need.marker.evaluate(context) for context in contexts):
                continue
            item = (canonicalize_name(need.name), frozenset(need.extras))
            if item not in seen:
                seen.add(item)
                waiting.append(item)
    return [f"{name}=={version}" for name, version in sorted(found.items())]
