"""What the targets of the Makefile leave alone, and what the installation parts."""

import importlib.metadata
import re
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


def spelt(name):
    """A name of a package as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_two_parts_of_an_installation_write_the_same_files():
    """Each part is unpacked by a pip of its own, and pip removes a file that is there before it writes its own."""
    recipe = re.search(r"awk -v part=\$\$part '(.*?)'", (ROOT / "Makefile").read_text())[1]
    owners, parts = {}, {}
    for part in range(4):
        command = ["awk", "-v", f"part={part}", recipe, "requirements/dev.txt"]
        pins = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        parts |= {spelt(name): part for name in re.findall(r"^([^ =\[]+).*==", pins, re.MULTILINE)}
    assert len(set(parts.values())) == 4
    for package in importlib.metadata.distributions():
        part = parts.get(spelt(package.name))
        for file in package.files or [] if part is not None else []:
            if file.suffix != ".pyc":
                owners.setdefault(str(package.locate_file(file)), set()).add(part)
    assert owners and not {file: found for file, found in owners.items() if len(found) > 1}
