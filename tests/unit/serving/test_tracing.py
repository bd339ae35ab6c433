"""Spans of real requests: which there are, whose they are, and what stands in none of them."""

import gzip
import itertools
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from blastwatch.errors import SettingsError
from blastwatch.settings import load
from serving import tracing
from serving.bento import ROOTS
from serving.keys import KeyFolder
from serving.tracing import exporter_to
from tests.in_thread import front
from tests.service_packages import write_cell

ROOT = Path(__file__).parents[3]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    home = tmp_path_factory.mktemp("traced")
    kept = InMemorySpanExporter()
    key = KeyFolder(home / "api-keys").add("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "exporter_to", lambda target: kept)
        with front(served, home, BLASTWATCH_TRACES="console") as service:
            service.key, service.kept, service.cell = key, kept, write_cell(home / "cell.bmp").read_bytes()
            yield service


@pytest.fixture
def collector():
    """A collector's address, and what came to it: path, media type, body."""
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            taken.append((self.path, self.headers["Content-Type"], gzip.decompress(body) if packed else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Not on standard error."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()
        thread.join()


def spans(door, count):
    """Finished spans by name, once so many are there; an answer is read before its span ends."""
    pause = threading.Event()
    for _ in range(200):
        door.service.traces._provider.force_flush()
        found = door.kept.get_finished_spans()
        if len(found) >= count:
            break
        pause.wait(0.02)
    door.kept.clear()
    assert len(found) == count, [span.name for span in found]
    named = {}
    for span in found:
        named.setdefault(span.name, []).append(span)
    return named


def test_one_cell_has_a_span_a_step_under_the_span_of_its_request(door):
    headers = {"X-Request-Id": "lab-42", "traceparent": f"00-{TRACE}-{PARENT}-01", "Blastwatch-Patient": "Ada 1815"}
    door.predict(door.key, door.cell, headers=headers).raise_for_status()
    found = spans(door, 5)
    (request,) = found["POST /v1/predict"]
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes["http.route"] == "/v1/predict"
    assert (request.attributes["http.response.status_code"], request.attributes["blastwatch.model_version"]) == (
        200,
        "7",
    )
    steps = [found[name][0] for name in ("decode", "wait", "infer", "capture")]
    assert {step.parent.span_id for step in steps} == {request.context.span_id}
    times = [moment for step in steps for moment in (step.start_time, step.end_time)]
    assert request.start_time <= times[0] and times[-1] <= request.end_time
    assert all(after >= before - 2_000_000 for before, after in itertools.pairwise(times))  # two clocks
    everything = [request, *steps]
    assert {span.attributes["blastwatch.request_id"] for span in everything} == {"lab-42"}
    told = str([(span.name, dict(span.attributes), span.resource.attributes) for span in everything])
    assert "Ada" not in told and door.key not in told and "lab'" not in told


def test_a_batch_shares_one_wait_and_one_inference_and_decodes_each(door):
    reply = door.ask("/v1/predict_batch", door.key, files=[("images", door.cell), ("images", b"no image")])
    assert reply.status_code == 200
    found = spans(door, 6)
    assert [len(found[name]) for name in ("decode", "wait", "infer", "capture")] == [2, 1, 1, 1]
    assert sum(not span.status.is_ok for span in found["decode"]) == 1
    assert found["infer"][0].attributes["blastwatch.cells"] == 1
    assert found["POST /v1/predict_batch"][0].attributes["blastwatch.cells"] == 2


def test_who_is_kept_out_has_a_span_and_no_more(door):
    assert door.predict("bw_guess", door.cell).status_code == 401
    assert door.ask("/v1/nowhere/patient-7", door.key).status_code == 404
    found = spans(door, 2)
    assert found["POST /v1/predict"][0].attributes["http.response.status_code"] == 401
    assert "patient-7" not in str(dict(found["GET other"][0].attributes))


def test_without_the_setting_opentelemetry_is_not_asked(served, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "serving.tracing", None)  # an import of it would fail
    key = KeyFolder(tmp_path / "api-keys").add("lab")
    with front(served, tmp_path) as service:
        cell = write_cell(tmp_path / "cell.bmp").read_bytes()
        assert service.predict(key, cell).status_code == 200
        assert service.service.traces is None


def test_a_collector_is_sent_the_spans(collector):
    """By the exporter that is really installed."""
    url, taken = collector
    exporter = exporter_to(f"{url}/v1/traces")
    traces = tracing.Traces(exporter)
    with traces.step("decode"):
        pass
    traces.close()
    ((path, kind, body),) = taken
    assert (path, kind) == ("/v1/traces", "application/x-protobuf")
    assert b"decode" in body and b"blastwatch" in body


def test_the_exporter_is_installed_wherever_the_service_is():
    """In a cluster the file systems are read-only: what is not in the image cannot be had."""
    name = "opentelemetry-exporter-otlp-proto-http"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert name in ROOTS and any(line.startswith(f"{name}>") for line in needed)
    for pins in ("run.txt", "dev.txt"):
        assert f"\n{name}==" in (ROOT / "requirements" / pins).read_text()


def test_an_exporter_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match="Install what requirements/run.txt pins"):
        exporter_to("http://127.0.0.1:4318/v1/traces")
    with pytest.raises(SettingsError, match="BLASTWATCH_TRACES='file' cannot be used: console, or an address"):
        load({"BLASTWATCH_TRACES": "file"})
