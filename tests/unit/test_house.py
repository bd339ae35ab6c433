"""The rules of the house that a machine can check: the way imports run, and that importing opens nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "blastwatch": {"blastwatch"},
    "monitoring": {"blastwatch", "monitoring"},
    "training": {"blastwatch", "monitoring", "training"},
    "serving": {"blastwatch", "monitoring", "serving"},
}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
# Made of a heavy library, and loaded when needed: the loop and the engine of a GPU of torch, a drawing
# of Evidently.
OF_HEAVY = (
    "blastwatch.folding",
    "blastwatch.graph_engine",
    "blastwatch.stage_pooling",
    "blastwatch.torch_engine",
    "monitoring.embedding_plane",
    *(
        f"training.{name}"
        for name in (
            "augmentation", "choosing", "crossvalidation", "distributed", "embedding", "evaluation", "feeding",
            "fitting", "fold_answers", "linear_probe", "loop", "optimizing", "out_of_fold", "pooled", "precision",
            "pretraining", "robust", "search", "side_by_side", "training_run",
        )
    ),
)  # fmt: skip
HEAVY = ("torch", "torchvision", "mlflow", "bentoml", "evidently", "openvino", "nncf", "onnx", "matplotlib", "dvc")


def imported(path):
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package]


def test_only_the_command_line_reaches_up():
    """`blastwatch/cli.py` names modules of the packages above as text; nobody else of `blastwatch` does."""
    uppers = [f'"{package}.' for package in MAY_IMPORT if package != "blastwatch"]
    for path in sorted((ROOT / "blastwatch").rglob("*.py")):
        found = [word for word in uppers if word in path.read_text()]
        assert not found or path.name == "cli.py", f"{path} reaches up: {found}"


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_importing_opens_nothing(package, tmp_path):
    """Import every module of a package in a fresh process that records what is opened for writing, or connected."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.relative_to(ROOT).parts[0] == package and path.name != "__main__.py"
    ]
    names = [name for name in names if name != "serving.service"]  # what `bentoml serve` runs; it needs bentoml
    script = f"""
import sys
seen = []
def watch(event, args):
    if event == "socket.connect" or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        seen.append((event, str(args[0])))
sys.addaudithook(watch)
import importlib, logging, os
before = dict(os.environ)
quick = [name for name in {names} if name not in {list(OF_HEAVY)}]
for name in quick:
    importlib.import_module(name)
heavy = [name for name in {HEAVY} if name in sys.modules]
assert not heavy, f"heavy libraries loaded at import: {{heavy}}"
assert dict(os.environ) == before, "the environment was changed"
for name in {names}:
    importlib.import_module(name)
assert not seen, seen
assert not logging.getLogger().handlers, "logging was set up"
"""
    # -B: Python itself would write bytecode.
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_stay_readable():
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in long.items() if lines > 400}
    assert not [path for path in MODULES if path.stem in ("utils", "common", "helpers")]
