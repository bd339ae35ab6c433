"""Every command of the README runs, in the order in which it stands there."""

import json
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from blastwatch.processes import Processes, script
from tests.running import until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_make_targets_exist_and_are_what_ci_runs():
    targets = [line.removeprefix("make ") for line in COMMANDS if line.startswith("make ")]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_every_other_command_runs(demo, second_package, tmp_path, free_port):
    port = str(free_port())
    work = tmp_path / "work"
    home = work / ".blastwatch" / "demo" / "home"  # where the README's own export points to
    shutil.copytree(demo.folder / "home", home)
    policy = work / "deploy/demo/policy.yaml"  # as does that of the policy
    policy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "deploy/demo/policy.yaml", policy)
    environment = demo.environment | {
        "BLASTWATCH_HOME": str(home),
        "BLASTWATCH_URL": f"http://127.0.0.1:{port}",
        "BLASTWATCH_POLICY": str(policy),
    }
    split = pd.read_parquet(demo.folder / "data/split/split.parquet")
    source = demo.folder / "data/source"
    (work / "cells").mkdir()
    for name in split.loc[split["side"] == "test", "path"].head(3):
        shutil.copy(source / name, work / "cells")
    shutil.copy(next((work / "cells").iterdir()), work / "cell.bmp")

    def stored(database, identity):
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute("SELECT 1 FROM predictions WHERE id = ?", (identity,)).fetchone()

    def run(line):
        done = subprocess.run(
            line.replace("3000", port), shell=True, cwd=work, env=environment, capture_output=True, text=True,
            check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(f"blastwatch registry register {second_package}")  # a candidate to promote
    with Processes(environment, work / "logs") as children:
        for line in COMMANDS:
            if line.startswith("make "):
                continue
            if line.startswith("export "):
                name = line.removeprefix("export ").partition("=")[0]
                if name == "PATH":
                    assert run(f'{line}; printf %s "$PATH"').split(":")[0] == f"{work}/.venv/bin"
                    continue
                assert run(f'{line}; printf %s "${name}"') == environment[name], "the state of the demo"
                continue
            if line.startswith("blastwatch serve"):
                children.start("service", [script("blastwatch"), "serve", "--port", port])
                children.wait_for("service", f"http://127.0.0.1:{port}/readyz")
                continue
            if "labels.csv" in line:
                [answer] = json.loads(run("blastwatch predict cell.bmp --json"))
                (work / "labels.csv").write_text(f"id,label\n{answer['id']},hem\n")
                until(lambda made=answer["id"]: stored(home / "predictions.db", made))
            run(line)
        [python] = blocks("python")
        (work / "ask.py").write_text(python.replace("3000", port))
        assert run("python ask.py").split()[0] in ("all", "hem", "refer")
