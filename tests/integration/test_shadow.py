"""A challenger beside the champion in a real `blastwatch serve`: shadow, canary, labels, report, and the end of it."""

import contextlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from blastwatch import promotion
from blastwatch.registry import Registry
from blastwatch.settings import load
from monitoring.shadow_report import report
from monitoring.shadow_store import open_shadow_store
from monitoring.store import open_store
from tests.running import Running, environment, get, post, until
from tests.service_packages import crown, write_cell

PATIENTS = 4


def ask(running, cell, **headers):
    names = {f"Blastwatch-{name.title()}": value for name, value in headers.items()}
    answer = post(f"{running.url}/v1/predict", files={"image": cell.read_bytes()}, headers=names, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def challenger(running):
    return get(f"{running.url}/v1/model", timeout=10).json()["challenger"]


def shadows(running):
    """The children that read in shadow."""
    found = []
    for child in running.children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            found += [child] if "serving.shadow_worker" in child.cmdline() else []
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("shadow")
    shutil.copy(empty_store, folder / "mlflow.db")
    settings = load({"BLASTWATCH_HOME": str(folder), "BLASTWATCH_ACTOR": "tester"})
    crown(settings, folder / "champion")
    return settings


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    return [write_cell(folder / f"{seed}.bmp", seed) for seed in range(8)]


@pytest.fixture(scope="module")
def running(home, free_port):
    shares = {"BLASTWATCH_SHADOW_SHARE": "1", "BLASTWATCH_CANARY_SHARE": "0.5", "BLASTWATCH_THREADS": "1"}
    service = Running(home, free_port(), **shares)
    try:
        yield service.wait_until_ready()
    finally:
        if service.process.poll() is None:
            assert service.stop() == []


def test_a_challengers_life(running, home, cells):
    """In one piece, because each part goes on from the one before: alone, in shadow, in the canary, withdrawn."""
    before = [ask(running, cell) for cell in cells]
    assert {answer["model"]["version"] for answer in before} == {"1"}
    assert challenger(running)["version"] is None

    entry = crown(home, home.home / "challenger", alias="challenger", seed=1)
    until(lambda: challenger(running)["version"] == entry.version, 60)
    until(lambda: (found := challenger(running))["shadow"]["reading"] and found["canary"]["answering"], 90)

    names = [f"caller {number}" for number in range(12)]
    callers = {name: [ask(running, cells[0], caller=name) for _ in range(2)] for name in names}
    drawn = {name: {answer["model"]["version"] for answer in answers} for name, answers in callers.items()}
    assert all(len(versions) == 1 for versions in drawn.values())
    assert set().union(*drawn.values()) == {"1", entry.version}
    for answers in callers.values():
        for answer in answers:
            assert answer["model"]["alias"] == ("champion" if answer["model"]["version"] == "1" else "challenger")
    sure = next(name for name, versions in drawn.items() if versions == {"1"})
    theirs = next(name for name, versions in drawn.items() if versions == {entry.version})
    batch = post(
        f"{running.url}/v1/predict_batch", files=[("images", cell.read_bytes()) for cell in cells[:3]],
        headers={"Blastwatch-Caller": theirs}, timeout=30,
    ).json()["results"]  # fmt: skip
    assert {answer["model"]["version"] for answer in batch} == {entry.version}

    after = [ask(running, cell, caller=sure, patient=f"patient {n % PATIENTS}") for n, cell in enumerate(cells)]
    assert [row["probability"] for row in after] == pytest.approx([row["probability"] for row in before], abs=1e-6)
    pair = {"champion": after[0]["model"]["digest"], "challenger": entry.digest}
    wanted = {answer["id"] for answer in after}
    with open_shadow_store(home.predictions_url) as store:
        until(lambda: wanted <= set(store.read(**pair)["id"]), 60)
        rows = store.read(**pair).set_index("id")
    assert not set(rows.index) & {answer["id"] for answer in batch}
    row = rows.loc[after[0]["id"]]
    assert row["champion_probability"] == after[0]["probability"]
    direct = ask(running, cells[0], caller=theirs)
    assert row["challenger_probability"] == pytest.approx(direct["probability"], abs=1e-4)
    assert len(set(rows.loc[list(wanted), "patient"])) == PATIENTS and "patient 0" not in set(rows["patient"])
    seen = running.metrics()
    assert seen["blastwatch_shadow_cells_total", "compared"] >= len(cells)
    assert sum(value for key, value in seen.items() if key[0] == "blastwatch_canary_answers_total") >= 4

    with open_store(home.predictions_url) as store:
        until(lambda: wanted <= set(store.read()["id"]), 10)
        store.add_labels([(id_, "all", datetime.now(UTC)) for id_ in wanted])
    registry = Registry(home)
    with open_shadow_store(home.predictions_url) as store:
        found = report(
            store, registry.entry("champion"), registry.entry("challenger"), at=datetime.now(UTC) + timedelta(days=2)
        )
    assert (found["comparison"]["unit"], found["comparison"]["units"]) == ("patient", PATIENTS)
    assert found["labelled"]["cells"] == len(cells)
    said = subprocess.run(
        [sys.executable, "-m", "blastwatch.cli", "shadow", "report", "--json"],
        env=environment(BLASTWATCH_HOME=str(home.home)), capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert json.loads(said)["comparison"]["units_waiting"] == PATIENTS

    promotion.withdraw(registry, reason="a test")
    until(lambda: (now := challenger(running))["version"] is None and not now["shadow"]["reading"], 30)
    assert ask(running, cells[0], caller=theirs)["model"]["version"] == "1"
    until(lambda: not shadows(running), 10)


def test_a_child_that_is_killed_disturbs_nobody(running, home, cells):
    entry = next(entry for entry in Registry(home).entries() if entry.version != "1")
    promotion.challenge(Registry(home), entry.version, reason="a test")
    until(lambda: challenger(running)["shadow"]["reading"], 90)
    (child,) = shadows(running)
    child.kill()
    for cell in cells:
        ask(running, cell)
    until(lambda: running.metrics()["blastwatch_shadow_restarts_total",] == 1, 20)
    until(lambda: challenger(running)["shadow"]["reading"], 90)
    before = running.metrics()["blastwatch_shadow_cells_total", "compared"]
    for number in range(8):
        ask(running, cells[0], caller=f"caller {number}")
    until(lambda: running.metrics()["blastwatch_shadow_cells_total", "compared"] > before, 30)


def test_a_copy_that_was_damaged_is_fetched_anew(running, home):
    """By the worker, when a child that is started again finds it so."""
    entry = next(entry for entry in Registry(home).entries() if entry.version != "1")
    until(lambda: challenger(running)["shadow"]["reading"], 90)
    (damaged,) = (home.packages / entry.digest).glob("network.onnx")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    (child,) = shadows(running)
    child.kill()
    until(lambda: damaged.exists() and damaged.stat().st_size == len(whole), 60)
    until(lambda: challenger(running)["shadow"]["reading"], 90)
    assert challenger(running)["shadow"]["refused"] is None
