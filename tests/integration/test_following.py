"""A real service follows its registry: promotions and rollbacks, bad candidates under load, a registry that is away."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter

import httpx
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from blastwatch.golden import write_golden
from blastwatch.package import DIGESTS, GOLDEN, open_package, seal
from blastwatch.processes import mlflow_server
from blastwatch.registry import CHAMPION, Registry
from blastwatch.settings import load
from serving.client import Client
from serving.live_folder import LiveFolder
from tests.running import Running, environment, get, post, until
from tests.service_packages import crown, give_alias, make_servable, write_cell

PAUSE = 0.2  # seconds; without one the callers take the cores that loading a version needs
FOLLOWED = 20.0  # seconds; the figures are taken elsewhere, on a quiet machine


class Callers:
    """A few threads that ask all the time; what they were told, by version and status."""

    def __init__(self, service, cell, count=3):
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.versions, self.failed = Counter(), []
        self._threads = [threading.Thread(target=self._ask, args=(service.url, cell)) for _ in range(count)]

    def _ask(self, url, cell):
        data = cell.read_bytes()
        with httpx.Client(timeout=30) as client:
            while not self._stop.wait(PAUSE):
                response = client.post(f"{url}/v1/predict", files={"image": data})
                with self._lock:
                    if response.status_code == 200:
                        self.versions[response.json()["model"]["version"]] += 1
                    else:
                        self.failed.append(response.text)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def new_home(folder, empty_store, **variables):
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return load({"BLASTWATCH_HOME": str(folder), "BLASTWATCH_ACTOR": "tester", **variables})


def promote(settings, version):
    registry = Registry(settings)
    give_alias(registry, registry.entry(version))


def model(service):
    return get(f"{service.url}/v1/model").json()


def refused_as(service, reason):
    refused = model(service)["following"]["refused"]
    return refused is not None and refused["reason"] == reason


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store):
    """A registry with two versions of which the first is champion."""
    settings = new_home(tmp_path_factory.mktemp("following") / "home", empty_store)
    crown(settings, settings.home / "package-1")
    crown(settings, settings.home / "package-2", seed=1)
    promote(settings, "1")
    return settings


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    return write_cell(tmp_path_factory.mktemp("cells") / "cell.bmp")


@pytest.fixture(scope="module")
def service(home, free_port):
    """Two workers, one follower."""
    running = Running(home, free_port(), workers=2, BLASTWATCH_FOLLOW_SECONDS="0.5").wait_until_ready()
    yield running.wait_until_following()
    assert running.stop() == []


@pytest.fixture
def first_serves(home, service):
    """Every test begins with the first version in both workers."""
    promote(home, "1")
    until(lambda: serving(service) == {"1"}, FOLLOWED)
    # Whichever worker answers.
    until(lambda: not any(model(service)["following"]["refused"] for _ in range(8)), FOLLOWED)


def serving(service):
    """The versions that the workers export as serving."""
    return {labels for name, labels in versions_exported(service)}


def versions_exported(service):
    from prometheus_client.parser import text_string_to_metric_families

    text = get(f"{service.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "blastwatch_model_info":
                yield sample.name, sample.labels["version"]


def test_a_promotion_and_a_rollback_are_followed_and_no_request_fails(home, service, cell, first_serves):
    answered = {}
    with Callers(service, cell) as callers:
        for version in ("2", "1"):
            promote(home, version)
            until(lambda version=version: serving(service) == {version}, FOLLOWED)
            with Client(service.url) as client:
                answer = client.predict(cell)
            answered[answer["model"]["version"]] = answer["probability"]
    assert callers.failed == []
    assert set(callers.versions) == {"1", "2"}
    assert len(set(answered.values())) == 2  # the two networks do answer differently
    facts = model(service)
    assert (facts["following"]["alias"], facts["following"]["refused"], facts["overridden"]) == (CHAMPION, None, [])
    seen = service.metrics()
    assert seen["blastwatch_model_swaps_total", "swapped"] >= 4  # two workers, two moves
    assert time.time() - seen["blastwatch_registry_reached_timestamp_seconds",] < 30


def test_a_call_with_many_cells_stays_on_its_version(home, service, cell, first_serves):
    data, answers = cell.read_bytes(), []

    def ask():
        images = [("images", data)] * 200
        while (told := post(f"{service.url}/v1/predict_batch", files=images, timeout=60)).status_code == 429:
            time.sleep(int(told.headers["Retry-After"]))  # six such calls are too many for a slow machine
        answers.append(told.json()["results"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    promote(home, "2")
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    until(lambda: serving(service) == {"2"}, FOLLOWED)
    for results in answers:
        assert len({row["model"]["version"] for row in results}) == 1
        assert len(results) == 200


def register_bad(settings, folder, spoil, **options):
    """Register a package after `spoil` changed it, and make it champion."""
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    run = client.create_run(client.get_experiment_by_name("service").experiment_id)
    make_servable(folder, run_id=run.info.run_id, **options)
    spoil(folder)
    registry = Registry(settings)
    return registry.register(folder)


def wrong_golden(folder):
    package = open_package(folder)
    size = package.info.preprocessing.size
    (folder / DIGESTS).unlink()
    (folder / GOLDEN).unlink()
    write_golden(folder, np.full((2, size, size, 3), 90, np.uint8), np.array([[9, -9], [9, -9]], np.float32))
    seal(folder)


def plant_wrong_golden(settings, folder):
    entry = register_bad(settings, folder, wrong_golden, seed=5)
    promote(settings, entry.version)
    return entry.version, "golden"


def plant_corrupt(settings, folder):
    entry = register_bad(settings, folder, lambda _: None, seed=6)
    stored = [path for path in settings.artifacts.rglob("network.onnx") if version_of(path) == entry.digest]
    assert len(stored) == 1
    with stored[0].open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    promote(settings, entry.version)
    return entry.version, "corrupt"


def version_of(path):
    return json.loads((path.parent / DIGESTS).read_text())["digest"]


def plant_moved(settings, folder):
    entry = register_bad(settings, folder, lambda _: None, seed=7)
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    client.set_registered_model_alias(settings.model_name, CHAMPION, entry.version)
    return entry.version, "alias-moved"


def plant_unsigned(settings, folder):
    entry = register_bad(settings, folder, lambda _: None, seed=8)
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    for name in ("blastwatch.signature", "blastwatch.registered_by"):
        client.set_model_version_tag(settings.model_name, entry.version, name, "")
    promote(settings, entry.version)  # last: a service is quick to follow
    return entry.version, "signature"


PLANTED = {
    "wrong golden cells": plant_wrong_golden,
    "a corrupt file": plant_corrupt,
    "an alias moved by hand": plant_moved,
    "a version signed by nobody": plant_unsigned,
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_bad_candidate_never_answers(what, home, service, cell, first_serves, tmp_path):
    before = service.log.read_text().count("does not serve") + service.log.read_text().count("Not followed")
    with Callers(service, cell) as callers:
        version, reason = PLANTED[what](home, tmp_path / "package")
        until(lambda: refused_as(service, reason), FOLLOWED)
        time.sleep(1.5)
    assert callers.failed == []
    assert set(callers.versions) == {"1"}, f"version {version} answered"
    assert service.metrics()["blastwatch_follow_refused", *sorted((CHAMPION, reason))] == 1
    after = service.log.read_text().count("does not serve") + service.log.read_text().count("Not followed")
    assert 1 <= after - before <= 2  # said once by the follower, or once by each worker


def test_a_version_too_large_for_the_memory_never_answers(home, cell, tmp_path, free_port):
    """The limit leaves room for the small network that serves and not for a large one."""
    promote(home, "1")
    alone = Running(home, free_port(), BLASTWATCH_FOLLOW_SECONDS="0.5", BLASTWATCH_MEMORY_LIMIT="450")
    try:
        alone.wait_until_ready().wait_until_following()
        entry = register_bad(home, tmp_path / "large", lambda _: None, architecture="resnet50")
        with Callers(alone, cell, count=1) as callers:
            promote(home, entry.version)
            until(lambda: refused_as(alone, "too-large"), FOLLOWED)
            time.sleep(1)
        assert callers.failed == []
        assert set(callers.versions) == {"1"}
        promote(home, "1")
        until(lambda: model(alone)["following"]["refused"] is None, FOLLOWED)
    finally:
        assert alone.stop() == []


def test_the_follower_follows_without_a_library_of_data_frames(home, service, first_serves):
    promote(home, "2")
    until(lambda: serving(service) == {"2"}, FOLLOWED)
    (follower,) = service.followers()
    loaded = [mapped.path for mapped in follower.memory_maps()]
    assert any("libsqlite3." in path for path in loaded)  # it has asked MLflow
    assert not [path for path in loaded if "/pandas/" in path or "/pyarrow/" in path]


def test_no_follower_runs_before_the_registry_moves(empty_store, tmp_path, free_port):
    """The start has asked the registry, which is a file here; a promotion wakes the one that asks again."""
    settings = new_home(tmp_path / "home", empty_store)
    first = crown(settings, settings.home / "package-1")
    alone = Running(settings, free_port(), BLASTWATCH_FOLLOW_SECONDS="0.5")
    try:
        alone.wait_until_ready().wait_until_following()
        assert serving(alone) == {first.version}
        assert alone.followers() == []
        second = crown(settings, settings.home / "package-2", seed=1)
        until(lambda: serving(alone) == {second.version}, FOLLOWED)
        assert len(alone.followers()) == 1
        assert model(alone)["following"]["refused"] is None
    finally:
        assert alone.stop() == []


def test_the_follower_is_started_again_and_ends_with_its_worker(home, service, first_serves):
    until(lambda: len(service.followers()) == 1, FOLLOWED)
    (follower,) = service.followers()
    follower.send_signal(signal.SIGKILL)
    until(lambda: [new.pid for new in service.followers()] not in ([], [follower.pid]), FOLLOWED)
    (follower,) = service.followers()
    follower.parent().send_signal(signal.SIGKILL)  # the worker that holds it; the other one takes the lock
    until(lambda: not psutil.pid_exists(follower.pid), FOLLOWED)
    until(lambda: len(service.followers()) == 1, FOLLOWED)
    promote(home, "2")
    until(lambda: serving(service) == {"2"}, FOLLOWED)  # the killed worker's series is gone too


@pytest.fixture
def mlflow(tmp_path, empty_store, free_port, commands):
    """A real MLflow server with webhooks, and settings that point to it."""
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    server = Server(commands, folder, port)
    server.start()
    home = tmp_path / "home"
    home.mkdir()
    yield server, load({
        "BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "tester", "MLFLOW_TRACKING_URI": server.url,
    })  # fmt: skip
    server.stop()


class Server:
    def __init__(self, commands, folder, port):
        self.commands, self.folder, self.port, self.url = commands, folder, port, f"http://127.0.0.1:{port}"

    def start(self):
        from cryptography.fernet import Fernet

        variables = environment(
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_WEBHOOK_ALLOWED_SCHEMES="http,https",
            MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS="true", MLFLOW_WEBHOOK_CACHE_TTL="1",
            MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY=Fernet.generate_key().decode(),
        )  # fmt: skip
        _, *words = mlflow_server(self.folder, self.folder / "artifacts", self.port)
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [self.commands / "mlflow", *words],
                env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        until(lambda: self.answers(), 60)

    def answers(self):
        try:
            return get(f"{self.url}/health", timeout=2).is_success
        except httpx.TransportError:
            return False

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(20)


def test_a_webhook_is_followed_at_once_and_a_registry_that_is_away_stops_nothing(mlflow, cell, free_port):
    """The registry is only polled each ten minutes here, so what is followed sooner was told by the webhook."""
    server, settings = mlflow
    crown(settings, settings.home / "package-1")
    crown(settings, settings.home / "package-2", seed=1)
    promote(settings, "1")
    variables = {"MLFLOW_TRACKING_URI": server.url, "BLASTWATCH_FOLLOW_SECONDS": "600",
                 "BLASTWATCH_WEBHOOK_SECRET": "a secret of both"}  # fmt: skip
    service = Running(settings, free_port(), **variables).wait_until_ready()
    folder = LiveFolder(settings.home)
    try:
        folder.nudged()
        service.wait_until_following()
        MlflowClient(server.url).create_webhook(
            name="follow", url=f"{service.url}/v1/webhook", events=["model_version_alias.created"],
            secret="a secret of both",
        )  # fmt: skip
        refused = post(f"{service.url}/v1/webhook", json={})
        assert (refused.status_code, refused.json()["type"]) == (401, "/problems/signature-refused")
        promote(settings, "2")
        until(lambda: model(service)["version"] == "2", FOLLOWED)
        with Callers(service, cell, count=1) as callers:
            server.stop()
            folder.nudged()
            until(lambda: refused_as(service, "unreachable"), FOLLOWED)
        assert callers.failed == []
        assert set(callers.versions) == {"2"}
    finally:
        assert service.stop() == []
    again = Running(settings, free_port(), **variables | {"BLASTWATCH_FOLLOW_SECONDS": "0.5"}).wait_until_ready()
    try:
        facts = model(again)
        assert (facts["version"], facts["following"]["refused"]["reason"]) == ("2", "unreachable")
        assert "from its verified local copy" in again.log.read_text()
        server.start()
        promote(settings, "1")
        until(lambda: model(again)["version"] == "1", FOLLOWED + 10)
    finally:
        assert again.stop() == []
