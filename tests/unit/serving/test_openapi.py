"""The description of the interface beside what a service answers: statuses and headers that callers meet."""

from types import SimpleNamespace

import pytest

from serving.keys import KeyFolder
from serving.limits import SMALL_BODY
from tests.in_thread import front
from tests.service_packages import write_cell


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    home = tmp_path_factory.mktemp("openapi")
    key = KeyFolder(home / "api-keys").add("lab")
    with front(served, home) as service:
        service.key = key
        service.cell = write_cell(home / "cell.bmp").read_bytes()
        described = service.ask("/docs.json").json()
        service.paths, service.schemas = described["paths"], described["components"]["schemas"]
        yield service


def test_the_heat_map_comes_with_the_headers_that_are_described(door):
    drawn = door.ask("/v1/explain", door.key, files={"image": door.cell})
    described = door.paths["/v1/explain"]["post"]["responses"]["200"]["headers"]
    assert {name.lower() for name in described} == {name for name in drawn.headers if name.startswith("blastwatch-")}
    assert drawn.headers["blastwatch-label"] in described["Blastwatch-Label"]["schema"]["enum"]


@pytest.mark.parametrize(("path", "content", "status"), [
    ("/v1/labels", {"content": b" " * (SMALL_BODY + 1), "headers": {"content-type": "application/json"}}, 413),
    ("/v1/labels", {"json": {"id": "x", "label": "all"}}, 404),
    ("/v1/labels", {"json": {"id": "x", "label": "none"}}, 422),
    ("/v1/labels", {"json": []}, 400),
    ("/v1/labels", {"content": b"x"}, 415),
    ("/v1/history", {}, 404),
])  # fmt: skip
def test_each_refusal_is_among_those_that_are_described(door, path, content, status):
    refused = door.ask(path, door.key, **content)
    assert refused.status_code == status
    (operation,) = door.paths[path].values()
    assert refused.headers["content-type"] in operation["responses"][str(status)]["content"]
    assert list(refused.json()) == list(door.schemas["Problem"]["properties"])


@pytest.mark.parametrize(("path", "kind", "way"), [
    ("/v1/predict", {"content-type": "image/bmp"}, "curl -F image=@cell.bmp URL/v1/predict"),
    ("/v1/labels", {"content-type": "text/plain"}, "a label as application/json"),
])  # fmt: skip
def test_whoever_sends_another_media_type_is_told_how_to_send(door, path, kind, way):
    refused = door.ask(path, door.key, content=b"x", headers=kind).json()
    assert refused["type"] == "/problems/media-type" and way in refused["advice"]


def test_no_history_to_ask_is_no_failure_of_the_service(door):
    """Whoever opens the page of the history on a bento wakes nobody."""
    before = {kind: door.count("blastwatch_requests_total", outcome=kind) for kind in ("failed", "refused")}
    refused = door.ask("/v1/history", door.key).json()
    assert (refused["type"], refused["title"]) == ("/problems/no-history", "There is no history here")
    assert door.count("blastwatch_requests_total", outcome="failed") == before["failed"]
    assert door.count("blastwatch_requests_total", outcome="refused") == before["refused"] + 1
    assert door.ask("/v1/model", door.key).json()["history"] is False


def test_a_probe_of_a_service_whose_engine_fails_is_answered_as_described(door, monkeypatch):
    """As BentoML answers by the same health: test_worker.py."""
    for ready, alive in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(door.service.lane.batcher, "health", SimpleNamespace(ready=ready, alive=alive))
        for path, good in (("/readyz", ready), ("/livez", alive)):
            status = door.ask(path).status_code
            assert status == (200 if good else 503) and str(status) in door.paths[path]["get"]["responses"]
