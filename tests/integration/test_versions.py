"""DVC's versions: pushed, wiped, pulled and rebuilt to the same digests; added cells move no patient."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pandas as pd
import pytest

from blastwatch.package import open_package
from blastwatch.processes import Processes, script
from tests.integration.conftest import ROOT, Work

MADE = ("data/source", "data/cells", "data/audit", "data/check", "data/split", "data/pack",
        "results/train", "results/evaluate", "results/package")  # fmt: skip
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def project(demo, tmp_path):
    """The small run of the demo as a git project: what was made, its cache and its lock, but no remote."""
    folder = tmp_path / "project"
    shutil.copytree(
        demo.folder, folder, ignore=shutil.ignore_patterns("home", "remote", "restained", ".dvc", "second*")
    )
    shutil.copy(ROOT / ".gitignore", folder)
    work = Work(folder, demo.commands)
    for name in MADE:  # as dvc does where there is git
        with (folder / name).parent.joinpath(".gitignore").open("a") as ignored:
            ignored.write(f"/{Path(name).name}\n")
    git(work, "init", "--quiet")
    work.run("dvc", "init", "--quiet")
    shutil.copytree(demo.folder / ".dvc/cache", folder / ".dvc/cache", dirs_exist_ok=True)
    return work


@pytest.fixture
def s3(free_port, tmp_path):
    """Address of a server that speaks S3, with one bucket."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    with Processes({"PATH": str(Path(sys.executable).parent)}, tmp_path / "logs") as children:
        children.start("moto", [script("moto_server"), "-H", "127.0.0.1", "-p", str(port)])
        children.wait_for("moto", f"{address}/moto-api/")
        assert httpx.put(f"{address}/cells").status_code == 200
        yield address


def git(work, *arguments):
    who = ["-c", "user.name=tester", "-c", "user.email=tester@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=work.folder, check=True, capture_output=True, text=True)


def save(work, tag):
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", tag)
    git(work, "tag", tag)


def digests(work):
    """Of the manifest, the split, and the sealed model package."""
    manifest, split = (
        json.loads((work.folder / name).read_text())["digest"]
        for name in ("data/cells/import.json", "data/split/split.json")
    )
    return manifest, split, open_package(work.folder / "results/package").digest


def wipe(work):
    for name in (".dvc/cache", ".dvc/tmp", "home", *MADE):
        shutil.rmtree(work.folder / name, ignore_errors=True)


def test_a_changed_parameter_runs_only_what_depends_on_it(project):
    assert "Running stage" not in project.run("dvc", "repro", "--dry")
    params = project.folder / "params.yaml"
    params.write_text(params.read_text().replace("resamples: 50", "resamples: 60"))
    said = project.run("dvc", "repro", "--dry")
    assert "'evaluate'" in said and "'package'" in said
    assert not [stage for stage in ("import", "audit", "split", "pack", "train") if f"Running stage '{stage}'" in said]


def add_cells(work):
    """Six cells of three new patients of each label, and four more of a known one."""
    drawn = work.folder.parent / "drawn"
    work.run("blastwatch", "data", "synth", "--patients", "20", "--cells", "6", "--seed", "9", "--duplicates", "0",
             "--out", str(drawn))  # fmt: skip
    target = work.folder / "data/source/C-NMC_training_data/fold_0"
    ill, healthy = (
        sorted({path.name.split("_")[1] for path in drawn.rglob(f"*_{label}.bmp")}) for label in ("all", "hem")
    )
    for number, subject in enumerate([*ill[:3], *healthy[:3], ill[3]]):
        for path in sorted(drawn.rglob(f"UID_{subject}_*.bmp"))[: 4 if number == 6 else 6]:
            _, _, image, cell, rest = path.name.split("_")
            label = rest.split(".")[0]
            new = f"{'H' * (label == 'hem')}{900 + number}" if number < 6 else ill[0]
            (target / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / label / f"UID_{new}_{900 + int(image)}_{cell}_{rest}")


def test_a_version_comes_back_from_s3(project, s3):
    project.run("dvc", "remote", "add", "--default", "lab", "s3://cells/lab")
    project.run("dvc", "remote", "modify", "lab", "endpointurl", s3)
    assert "Running stage" not in project.run("dvc", "repro")
    first = digests(project)
    save(project, "v1")
    project.run("dvc", "push", **KEYS)

    before = pd.read_parquet(project.folder / "data/split/split.parquet")
    shutil.copytree(project.folder / "data/split", project.folder / "split-v1")
    add_cells(project)
    project.run("dvc", "add", "data/source")
    text = (project.folder / "params.yaml").read_text()
    (project.folder / "params.yaml").write_text(re.sub("keep: ''", "keep: split-v1", text))
    project.run("dvc", "repro", "split")
    after = pd.read_parquet(project.folder / "data/split/split.parquet")
    assert len(after) == len(before) + 40
    side = before.drop_duplicates("subject").set_index("subject")["side"]
    known = after[after["subject"].isin(side.index)]
    assert (known["side"] == known["subject"].map(side)).all()
    assert after["subject"].nunique() == before["subject"].nunique() + 6
    save(project, "v2")
    project.run("dvc", "push", **KEYS)

    wipe(project)
    git(project, "checkout", "--quiet", "v1")
    project.run("dvc", "pull", **KEYS)
    assert "Running stage" not in project.run("dvc", "repro")
    assert digests(project) == first


def test_a_version_comes_back_from_a_folder_and_is_made_anew_alike(project, tmp_path):
    """Of the cells alone, without the cache of what was made of them, the manifest and the split come out the same."""
    project.run("dvc", "remote", "add", "--default", "lab", str(tmp_path / "lab"))
    first = digests(project)
    save(project, "v1")
    project.run("dvc", "push")
    wipe(project)
    project.run("dvc", "pull", "data/source.dvc")
    said = project.run("dvc", "repro", "--force", "split")
    assert said.count("Running stage") == 4
    manifest, split = (
        json.loads((project.folder / name).read_text())["digest"]
        for name in ("data/cells/import.json", "data/split/split.json")
    )
    assert (manifest, split) == first[:2]


FORCED = ("dvc", "repro", "--force", "--single-item", "train")


def test_weights_that_were_replaced_under_their_name_are_trained_from_when_forced(commands, tmp_path):
    """And what follows is made anew by the plain call after it."""
    work = Work(tmp_path, commands)
    (tmp_path / "params.yaml").write_text("train: {weights_file: weights}\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  train: {cmd: cp weights trained, params: [train], outs: [trained]}\n"
        "  evaluate: {cmd: cp trained evaluated, deps: [trained], outs: [evaluated]}\n"
    )
    work.run("dvc", "init", "--no-scm", "--quiet")
    for content in ("first", "second"):
        (tmp_path / "weights").write_text(content)
        work.run("dvc", "repro")
        assert (tmp_path / "evaluated").read_text() == "first"
    work.run(*FORCED)
    assert (tmp_path / "evaluated").read_text() == "first"
    work.run("dvc", "repro")
    assert (tmp_path / "evaluated").read_text() == "second"


def test_the_page_names_the_commands_that_are_tested():
    page = (ROOT / "docs/versions.md").read_text()
    for command in (
        "dvc remote modify lab endpointurl",
        "dvc push",
        "git checkout v1\ndvc pull\ndvc repro",
        "`split.keep`",
        " ".join(FORCED),
    ):
        assert command in page
