"""`blastwatch data`: the chain from a drawn cohort to a split, what `--json` prints, and exit codes."""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import f_oneway

from blastwatch.manifest import read_cells
from tests.policies import lenient
from training.audit import audit_cells
from training.importing import import_cells
from training.looks import look
from training.near_duplicates import near_duplicates

ROOT = Path(__file__).parents[3]
ARCHIVE = ROOT.parent / "shared/data/cnmc/fold_1.tar"


@pytest.fixture(scope="module", autouse=True)
def on_the_path(commands):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(commands), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with a drawn cohort, imported, audited and split."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "params.yaml").write_text("split: {seed: 3}\n")
    run(folder, "synth", "--patients", 20, "--cells", 2, "--seed", 1, "--out", "data/source")
    run(folder, "import", "data/source", "--kind", "cnmc", "--out", "data/cells")
    run(folder, "audit", "data/cells", "--out", "data/audit")
    run(folder, "split", "data/cells", "--audit", "data/audit", "--out", "data/split")
    return folder


def call(folder, *arguments):
    """Run the command as a person does, in a process of its own."""
    command = ["blastwatch", "data", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def run(folder, *arguments):
    done = call(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_chain_leaves_its_files_and_prints_nothing_on_standard_output(work):
    assert {path.name for path in (work / "data").iterdir()} == {"source", "cells", "audit", "split"}
    assert json.loads((work / "data/cells/import.json").read_text())["root"] == "../source"
    facts = json.loads((work / "data/split/split.json").read_text())
    assert facts["seed"] == 3
    assert facts["leaky"] is False
    assert facts["synthetic"] is True


def test_json_is_all_that_is_printed(work):
    audit = json.loads(run(work, "audit", "data/cells", "--out", "again", "--split", "data/split", "--json"))
    assert set(audit) == {"images", "findings", "groups", "links", "odd", "alike", "leak"}
    assert audit["images"] == 40
    assert [finding["kind"] for finding in audit["findings"]] == ["exact", "exact"]
    assert audit["leak"] is False
    card = json.loads(run(work, "show", "data/cells", "--json"))
    assert card["synthetic"] is True
    assert card["labels"] == {"hem": {"cells": 16, "subjects": 8}, "all": {"cells": 24, "subjects": 12}}
    assert card["sizes"] == {"450x450": 40}
    assert sum(row["cells"] for row in card["by_subject"]) == 40
    assert card["leaks"] is None
    told = run(work, "show", "data/cells")
    assert "synthetic: no patient is behind these cells" in told
    assert "leaks      not looked for" in told


def test_the_card_tells_leaks_and_stain_and_draws_a_page(work):
    card = json.loads(run(work, "show", "data/cells", "--audit", "data/audit", "--html", "card/data.html", "--json"))
    assert card["leaks"]["findings"] == {"exact": 2}
    assert card["leaks"]["between_subjects"] == 2
    assert card["leaks"]["two_labels"] == card["leaks"]["without_background"] == 0
    assert len(card["leaks"]["groups"]) == 2 and card["leaks"]["patients"] == 18
    assert card["licences"] == dict.fromkeys(card["sources"], "drawn: no rights of others")
    rows, table = (
        pd.read_parquet(work / name) for name in ("data/cells/manifest.parquet", "data/audit/statistics.parquet")
    )
    table = table.merge(rows[["path", "subject"]])
    groups = [of_subject["od_red"] for _, of_subject in table.groupby("subject")]
    f, _ = f_oneway(*groups)  # eta squared and F are two ways to say one thing
    between, within = len(groups) - 1, len(table) - len(groups)
    assert card["stain"]["od_red"]["between_subjects"] == pytest.approx(f * between / (f * between + within), rel=1e-4)
    text = (work / "card/data.html").read_text()
    assert text.count("data:image/webp") == 24  # twelve of each label: of eight healthy subjects some stand twice
    assert "http" not in text and "no patient is behind these cells" in text


def test_a_split_by_image_is_refused_by_the_audit_with_exit_code_3(work):
    run(work, "split", "data/cells", "--audit", "data/audit", "--out", "leaky", "--set", "split.by=image")
    done = call(work, "audit", "data/cells", "--out", "again", "--split", "leaky", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["leak"] is True
    assert "blastwatch data split" in done.stderr
    assert (work / "again/audit.json").read_bytes() == (work / "data/audit/audit.json").read_bytes()


def test_the_contract_stops_a_data_set_with_exit_code_3(work):
    assert all(
        rule["passed"]
        for rule in json.loads(
            run(
                work,
                "check",
                "data/cells",
                "--audit",
                "data/audit",
                "--out",
                "checked",
                "--set",
                "contract.least_cells=16",
                "--json",
            )
        )
    )
    done = call(work, "check", "data/cells", "--audit", "data/audit", "--out", "checked")
    assert done.returncode == 3
    assert "Broken: enough cells with the label hem. Expected at least 40 but got 16." in done.stderr
    assert json.loads((work / "checked/check.json").read_text())["passed"] is False


def test_links_of_the_user_tie_patients(work):
    run(work, "audit", "data/cells", "--out", "linked", "--set", 'audit.links=[["5", "7"]]')
    groups = json.loads((work / "linked/audit.json").read_text())["groups"]
    assert [group for group in groups if "5" in group and "7" in group]
    assert "5 = 7" in (work / "linked/audit.html").read_text()
    same = ("data/cells", "--audit", "linked", "--out", "tied", "--set", "split.seed=4")
    for command in ("check", "split"):  # with the links of params.yaml, which has none
        done = call(work, command, *same)
        assert done.returncode == 1 and "[['5', '7']], but the parameters say []" in done.stderr, done.stderr
    assert not (work / "tied").exists()
    run(work, "split", *same, "--set", 'audit.links=[["7", "5"]]')


def test_a_split_says_what_a_promotion_will_miss_in_it(work):
    made = ("split", "data/cells", "--audit", "data/audit", "--out", "small")
    told = call(work, *made).stderr
    assert (
        "The drift reference will have 10 cells of 5 patients, and no version is promoted below 300 cells and 10 "
        "patients: import more patients, raise split.validation and split.calibration, or take a policy" in told
    )
    assert "The test side has 1 of hem and 2 of all patients, and no version replaces a champion below 5 of" in told
    more = call(
        work,
        *made,
        "--set",
        "train.fit=logistic",
        "--set",
        "train.weights=imagenet",
        "--set",
        "evaluate.calibrate_on=out-of-fold",
    ).stderr
    assert "reference will have 34 cells of 15 patients, and" in more and "split.calibration and split.train" in more
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLASTWATCH_POLICY", str(lenient(work)))
        assert "promoted below" not in (told := call(work, *made).stderr) and "replaces a champion" in told


def test_a_split_that_keeps_another_says_whom_it_knew(work):
    made = ("split", "data/cells", "--audit", "data/audit", "--out", "kept", "--set", "split.keep=data/split")
    done = call(work, *made)
    assert done.returncode == 0
    assert "Kept the sides of 20 subjects of the split in data/split; 0 are new." in done.stderr
    facts = json.loads((work / "kept/split.json").read_text())
    assert facts["kept_subjects"] == {"named": 20, "by_image": 0, "by_path": 0, "new": 0, "gone": 0}


def test_restain(work):
    source = work / "data/source/C-NMC_training_data/fold_0/hem"
    done = json.loads(run(work, "restain", source, "--out", "stained", "--strength", 0.8, "--json"))
    assert done == {"written": len(list(source.iterdir())), "refused": 0, "strength": 0.8}
    stained = {path.name for path in (work / "stained").iterdir()}
    assert stained == {"SYNTHETIC.json", *(path.name for path in source.iterdir())}


def test_what_cannot_be_done_ends_with_one_line_and_its_exit_code(work):
    (work / "empty").mkdir()
    for arguments, code, told in (
        (("import", "empty", "--kind", "folder", "--out", "x"), 1, "found no image in empty"),
        (("import", "empty", "--kind", "zip", "--out", "x"), 2, "zip"),
        (("show", "empty"), 1, "blastwatch data import"),
        (("split", "data/cells", "--audit", "empty", "--out", "x"), 1, "blastwatch data audit"),
        (("split", "data/cells", "--audit", "data/audit", "--out", "x", "--params", "no.yaml"), 2, "no.yaml"),
    ):
        done = call(work, *arguments)
        assert done.returncode == code, done.stderr
        assert told in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


@pytest.mark.realdata
@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"the real cells are missing: {ARCHIVE}")
def test_real_cells_of_one_subject_stand_in_the_data_twice(tmp_path):
    """Folds 0 and 1 of C-NMC 2019 hold five pairs of equal images, all of subject H10; the other side of the pair
    that H10 shares with H3 lies in fold 2. The images 129 to 161 of H10 stand there a second time as 162 to 194."""
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive if re.search(r"/UID_H10_|/UID_H(2|4)_1\d_", member.name)]
        archive.extractall(tmp_path / "source", members=members, filter="data")
    import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc")
    cells = read_cells(tmp_path / "cells")
    found = audit_cells(cells, near_duplicates(look(cells)))
    exact = [finding for finding in found.findings if finding.kind == "exact"]
    near = [finding for finding in found.findings if finding.kind == "near"]
    assert len(exact) == 5 and len(exact) + len(near) == len(found.findings)
    assert all("UID_H10_" in finding.a and "UID_H10_" in finding.b for finding in exact)
    image = re.compile(r"UID_H10_(\d+)_")
    later = [
        int(image.search(finding.b)[1]) - int(image.search(finding.a)[1]) for finding in near if "H10" in finding.a
    ]
    assert later.count(33) >= 70
    assert all(len(group) == 1 for group in found.groups)
