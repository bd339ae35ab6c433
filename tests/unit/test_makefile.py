"""What the targets of the Makefile leave alone."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_clean_removes_the_demo_and_leaves_the_home_beside_it(tmp_path):
    """`.blastwatch` is the default of BLASTWATCH_HOME."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    home = tmp_path / ".blastwatch"
    kept = [home / "mlflow.db", home / "keys" / "signing.pem", home / "predictions.db"]
    gone = [home / "demo" / "home" / "mlflow.db", tmp_path / ".venv" / "installed", tmp_path / "__pycache__" / "a.pyc"]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert all(path.exists() for path in kept)
    assert not any(path.parent.exists() for path in gone)
