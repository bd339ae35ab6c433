"""What BentoML puts around the service in each worker: nothing that keeps requests after they were answered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.limits import REQUEST_SECONDS

# BentoML's configuration is one for the process, so another process asks.
ASK = """
import asyncio, json, sys
from types import SimpleNamespace
from starlette.exceptions import HTTPException
from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_sdk.service import set_current_service
from serving.service import Blastwatch
import monitoring.capture, serving.app, serving.contest, serving.following, serving.metrics
heavy = ["dvc", "evidently", "mlflow", "nncf", "pandas", "scipy", "sklearn", "torch", "torchvision"]
Blastwatch.inject_config()
factory = ServiceAppFactory(Blastwatch)
layers = factory.middlewares
health = SimpleNamespace()
factory._service_instance = object.__new__(Blastwatch.inner)
factory._service_instance.service = SimpleNamespace(lane=SimpleNamespace(batcher=SimpleNamespace(health=health)))

def status(probe):
    try:
        return asyncio.run(probe(None)).status_code
    except HTTPException as error:
        return error.status_code

probes = []
for health.ready, health.alive in ((True, True), (False, True), (False, False)):
    probes.append([status(factory.readyz), status(factory.livez)])
reached = []

class Application:
    async def app(self, scope, _receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 204})  # else BentoML's timer waits for one

async def send(_message):
    pass

set_current_service(Application())
for path in ("/v1/x", "/v1/x\\ny", "/v1/x\\n", "/\\n/v1/x"):
    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "headers": []}
    asyncio.run(factory()(scope, None, send))
import os, serving.service
from blastwatch.errors import UsageError
serving.service.check_binding = lambda _host, _settings: {}
os.environ["BLASTWATCH_SETTLED"] = "1"
os.environ["BLASTWATCH_PATIENT_SALT"] = os.devnull
try:
    Blastwatch.inner.pin()
    refused = ""
except UsageError as error:
    refused = str(error)
steps, contained = [], []
serving.service.settle = lambda *_: steps.append("settled") or (None, {})
serving.service.check_salt = lambda _: steps.append("salt")
for workers in "12":
    os.environ |= {"BLASTWATCH_SETTLED": "", "BLASTWATCH_WORKERS": workers, "BENTOML_CONTAINERIZED": "true"}
    Blastwatch.inner.pin()
    contained.append("BENTOML_CONTAINERIZED" in os.environ)
known = {name: value for layer in layers for name, value in layer.kwargs.items()}
untraced = known["excluded_urls"].url_disabled("http://localhost:3000/v1/predict")
environment = {one.name: one.value for one in Blastwatch.envs}
print(json.dumps({"untraced": untraced, "timeout": known["timeout"], "environment": environment,
                  "probes": probes, "reached": reached, "refused": refused,
                  "steps": steps, "contained": contained,
                  "loaded": [name for name in heavy if name in sys.modules]}))
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK], cwd=Path(__file__).parents[3], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_span_is_made_and_the_timer_of_a_request_ends_soon_after_its_deadline(found):
    assert found["untraced"]
    assert REQUEST_SECONDS < found["timeout"] <= REQUEST_SECONDS + 30
    assert found["environment"] == {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}


def test_a_worker_loads_nothing_that_takes_seconds(found):
    assert found["loaded"] == []


def test_every_address_reaches_the_application_and_so_its_door_and_its_audit_log(found):
    assert found["reached"] == ["/v1/x", "/v1/x\ny", "/v1/x\n", "/\n/v1/x"]


def test_probes_are_answered_by_what_the_engine_does(found):
    assert found["probes"] == [[200, 200], [503, 200], [503, 503]]


def test_it_does_not_start_with_a_salt_of_patients_that_is_none(found):
    assert "where BLASTWATCH_PATIENT_SALT names it. Expected 32 random bytes" in found["refused"]


def test_a_salt_is_made_only_once_a_version_is_known(found):
    assert found["steps"] == ["settled", "salt"] * 2


def test_in_an_image_the_only_worker_ends_its_container_and_one_of_several_is_replaced(found):
    assert found["contained"] == [True, False]
