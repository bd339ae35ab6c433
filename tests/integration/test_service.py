"""A real `blastwatch serve` on a loopback port: every route, every refusal, the page in a browser, the end."""

import concurrent.futures
import contextlib
import io
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from blastwatch.addresses import check_free
from blastwatch.errors import ServiceError
from blastwatch.settings import load
from monitoring.store import open_store
from serving.accepting import IN_A_TURN
from serving.client import Client
from serving.keys import KeyFolder
from serving.supervising import LAST_SECONDS, LOOK_SECONDS
from tests.benchmarks.serving import multipart, request
from tests.cves import ATTACKS
from tests.running import Running, get, reached, runs, until
from tests.schemathesis_run import run_schemathesis
from tests.service_packages import crown, write_cell


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store):
    """Settings over a home whose registry has a champion."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(empty_store, folder / "mlflow.db")
    settings = load({"BLASTWATCH_HOME": str(folder), "BLASTWATCH_ACTOR": "tester"})
    crown(settings, folder / "package")
    return settings


@pytest.fixture(scope="module")
def running(home, tmp_path_factory, free_port):
    service = Running(home, free_port(), write_cell(tmp_path_factory.mktemp("cells") / "cell.bmp"))
    try:
        yield service.wait_until_ready()
    finally:
        if service.process.poll() is None:
            assert service.stop() == []


@pytest.fixture
def client(running):
    with Client(running.url) as client:
        yield client


def post(running, path="/v1/predict", **content):
    return httpx.post(running.url + path, timeout=30, verify=False, **content)


def test_predict_answers_and_is_captured(running, client):
    answer = client.predict(running.cell)
    assert answer["model"]["version"] == "1"
    assert answer["model"]["alias"] == "champion"
    assert answer["model"]["synthetic"] is True
    with open_store(running.settings.predictions_url) as store:
        until(lambda: answer["id"] in set(store.read()["id"]))
        row = store.read().set_index("id").loc[answer["id"]]
    assert row["probability"] == answer["probability"]
    assert row["cell_area"] == answer["quality"]["statistics"]["cell_area"]


@pytest.mark.slow
def test_the_service_does_what_its_document_says(running):
    """Each constraint of /docs.json kept and broken once, a few random requests, and labels for what was answered."""
    found, said = run_schemathesis(running.url, examples=3)
    assert found == 0, said


def test_a_batch_answers_in_order_and_a_bad_image_spoils_only_itself(running, client):
    single = client.predict(running.cell)
    first, second, third = client.predict_batch([running.cell, b"no image", running.cell])
    assert first["probability"] == pytest.approx(single["probability"], abs=1e-6)
    assert third["probability"] == pytest.approx(single["probability"], abs=1e-6)
    assert (second["status"], second["type"]) == (415, "/problems/image-not-an-image")


def test_concurrent_callers_each_get_their_own_answer(running, client, tmp_path):
    cells = [write_cell(tmp_path / f"{seed}.bmp", seed) for seed in range(8)]
    alone = [client.predict(cell)["probability"] for cell in cells]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda cell: client.predict(cell)["probability"], cells * 4))
    assert together == pytest.approx(alone * 4, abs=1e-6)
    seen = running.metrics()
    assert seen["blastwatch_batch_size_cells_sum",] > seen["blastwatch_batch_size_cells_count",]


def test_explain_draws_the_cell(running, client):
    image = Image.open(io.BytesIO(client.explain(running.cell)))
    assert (image.format, image.size) == ("PNG", (320, 320))


def test_a_label_that_came_later(running, client):
    answer = client.predict(running.cell)
    client.add_label(answer["id"], "all")  # at once: the prediction may still be on its way
    with open_store(running.settings.predictions_url) as store:
        assert store.labelled().set_index("id").loc[answer["id"], "truth"] == "all"
    with pytest.raises(ServiceError, match="There is no such prediction"):
        client.add_label("0" * 32, "all")
    with pytest.raises(ServiceError, match="Expected the label hem or all"):
        client.add_label(answer["id"], "maybe")


def test_the_model_tells_its_history(client):
    facts = client.model()
    assert facts["promoted_by"] == "tester"
    assert facts["promoted_at"].endswith("+00:00")
    assert facts["metrics"] == {"weighted_f1": 0.9}


def test_the_history_is_told_at_any_time(running):
    told = get(f"{running.url}/v1/history").json()
    assert told["told"]["version"] == "1" and told["told"]["by"] == "tester"
    assert [entry["action"] for entry in told["entries"]] == ["promote", "register"]
    assert told["check"] == {"intact": True, "entries": 2, "faults": []}
    before = get(f"{running.url}/v1/history", params={"at": "2020-01-01T00:00"}).json()
    assert before["told"]["version"] == "" and before["entries"] == []
    refused = get(f"{running.url}/v1/history", params={"at": "last Tuesday"})
    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/time-unreadable")


@pytest.mark.browser
def test_the_page_of_the_history(running, browser, tmp_path):
    asked = []
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{running.url}/history")
    page.get_by_text("Version 1 served at").wait_for()
    assert "All 2 entries are what was signed." in page.inner_text("body")
    page.fill("#at", "2020-01-01T00:00:00")
    page.get_by_role("button", name="Tell").click()
    page.get_by_text("Nothing served at").wait_for()
    page.screenshot(path=tmp_path / "history.png", full_page=True)
    page.route("**/v1/history*", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="Tell").click()
    page.get_by_text("The service does not answer").wait_for()
    assert not [url for url in asked if not url.startswith((running.url, "data:"))]


def test_metrics_count_what_happened_and_invent_no_labels(running, client):
    before = running.metrics()
    client.predict(running.cell)
    post(running, files={"image": b""})
    get(f"{running.url}/some/unknown/address")
    after = running.metrics()

    def grown(*key):
        return after.get(key, 0) - before.get(key, 0)

    assert grown("blastwatch_requests_total", "/v1/predict", "ok") == 1
    assert grown("blastwatch_requests_total", "/v1/predict", "refused") == 1
    assert grown("blastwatch_requests_total", "other", "refused") == 1
    assert grown("blastwatch_rejected_images_total", "empty") == 1
    assert grown("blastwatch_request_duration_seconds_count", "/v1/predict") == 2
    assert not [key for key in after if "/some/unknown/address" in key]
    info = [key for key in after if key[0] == "blastwatch_model_info"]
    assert len(info) == 1
    assert {"1", "openvino-f32", "true"} < set(info[0])


def test_callers_who_leave_are_no_failures_of_the_service(running):
    def told(outcome):
        return running.metrics().get(("blastwatch_requests_total", "/v1/predict", outcome), 0)

    before = {outcome: told(outcome) for outcome in ("ok", "aborted", "failed")}
    message = request(running.port, "/v1/predict", multipart("image", [running.cell.read_bytes()]))
    for share in (0.5, 1.0, 1.0, 1.0):  # in the middle of the body, and before the answer
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(message[: int(share * len(message))])
    until(lambda: told("ok") + told("aborted") == before["ok"] + before["aborted"] + 4)
    assert told("aborted") > before["aborted"]
    assert told("failed") == before["failed"]


def test_the_description_names_every_route_and_problem(running):
    document = get(f"{running.url}/docs.json").json()
    assert document["openapi"].startswith("3.1")
    for path in ("/v1/predict", "/v1/predict_batch", "/v1/explain", "/v1/labels", "/v1/model", "/metrics", "/readyz"):
        assert path in document["paths"]
        for method in document["paths"][path]:
            assert httpx.request(method, running.url + path).status_code in (200, 400, 415)
    assert "curl -F" in get(f"{running.url}/problems/missing-file").text


REFUSALS = {
    "wrong field": ({"files": {"file": b"x"}}, 400, "unexpected-field", "Expected the field `image` but got `file`"),
    "two files": ({"files": [("image", b"x"), ("image", b"y")]}, 413, "too-many-files", "one file under `image`"),
    "text": ({"files": {"image": (None, "hello")}}, 400, "not-a-file", "Expected a file in `image` but got text"),
    "address": ({"files": {"image": (None, "http://127.0.0.1/")}}, 400, "address-refused", "but got an address"),
    "no file": ({"content": b"--b--\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400,
                "missing-file", "Expected a file in the field `image`"),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form-unreadable", ""),
    "half a form": ({"content": b'--b\r\nContent-Disposition: form-data; name="image"; filename="c"\r\n\r\nx',
                         "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "", ""),
    "pickle": ({"content": b"\x80\x04.", "headers": {"content-type": "application/vnd.bentoml+pickle"}}, 415,
               "media-type", "but got application/vnd.bentoml+pickle"),
    "nothing": ({}, 415, "media-type", "but got none"),
    "text file": ({"files": {"image": b"patient 7"}}, 415, "image-not-an-image", "Expected an image (BMP"),
    "empty file": ({"files": {"image": b""}}, 422, "image-empty", "but got no bytes"),
    "too large": ({"files": {"image": b"x" * 9_000_000}}, 413, "body-too-large", "at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSALS))
def test_a_wrong_request_is_told_what_was_wrong(running, case):
    content, status, name, words = REFUSALS[case]
    response = post(running, **content)
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"].endswith(name)
    assert words in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert str(running.settings.home) not in response.text


@pytest.mark.parametrize("number", sorted(ATTACKS))
def test_what_was_a_hole_once_is_none_here(running, number, tmp_path):
    ATTACKS[number](running.url, tmp_path)


def test_slow_and_half_open_connections_do_not_keep_others_waiting(running, client):
    """200 that say nothing, send half a head, or a head and a body that never ends."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
    body = head + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
    began = [b"", b"P", head, head + b"X-Slow: ", body]
    with contextlib.ExitStack() as held:
        lines = [held.enter_context(socket.create_connection(("127.0.0.1", running.port), 5)) for _ in range(200)]
        for number, line in enumerate(lines):
            line.sendall(began[number % len(began)])
        for turn in range(5):
            for number, line in enumerate(lines):
                if number % len(began) > 2:
                    line.sendall(b"x")
            start = time.monotonic()
            assert client.predict(running.cell)["model"]
            assert get(f"{running.url}/readyz", timeout=5).status_code == 200
            assert time.monotonic() - start < 5, turn
    assert client.predict(running.cell)["model"]  # all of them went away at once


def test_a_head_that_does_not_end_is_cut_off(running):
    """The bounds of `serving.heads` are those of the server that BentoML starts."""
    for begin, more in ((b"", b"a: b\r\n" * 1000), (b"Host: localhost\r\n\r\n", b"GET /livez HTTP/1.1\r\n\r\n" * 1000)):
        with socket.create_connection(("127.0.0.1", running.port), 5) as line, pytest.raises(ConnectionError):
            line.sendall(b"GET /livez HTTP/1.1\r\n" + begin)
            for _ in range(4000):  # 24 MB and more
                line.sendall(more)


def test_the_worker_watches_its_socket_several_times(running):
    """BentoML opens the service before uvicorn listens, in the loop that uvicorn listens with."""
    (worker,) = running.workers()
    (listening,) = (line.fd for line in worker.net_connections("tcp") if line.status == psutil.CONN_LISTEN)
    folder, files = Path(f"/proc/{worker.pid}/fd"), []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that ended meanwhile
            files.append(path.readlink())
    assert files.count((folder / str(listening)).readlink()) == IN_A_TURN


def test_nothing_but_the_port_is_bound(running):
    """BentoML's supervisor would take commands from every user of the machine on another port."""
    assert reached(psutil.Process(running.process.pid)) == {running.port}


def test_requests_go_past_the_layers_of_bentoml(running):
    """A later BentoML may have one that `serving.straight` does not know."""
    said = running.log.read_text()
    assert "Requests to /v1/ go past the layers of BentoML." in said and "all layers of BentoML" not in said


def test_a_truncated_image(running):
    response = post(running, files={"image": running.cell.read_bytes()[:5000]})
    assert (response.status_code, response.json()["type"]) == (422, "/problems/image-truncated")


def test_a_field_instead_of_a_cell_is_referred_with_the_reason(running, client, tmp_path):
    Image.new("RGB", (1200, 900), (230, 210, 225)).save(tmp_path / "field.png")
    answer = client.predict(tmp_path / "field.png")
    assert answer["decision"] == "refer"
    assert any("not a single segmented cell" in concern for concern in answer["quality"]["concerns"])


def test_unknown_addresses_methods_and_json(running):
    assert get(f"{running.url}/v2/predict").json()["type"] == "/problems/not-found"
    refused = get(f"{running.url}/v1/predict")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.json()["type"] == "/problems/method-not-allowed"
    for body in (b"{", b"[]", b'{"id": 1, "label": "all"}', b'{"id": "x"}'):
        response = post(running, "/v1/labels", content=body, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["type"]) == (400, "/problems/json-unreadable")


@pytest.mark.browser
def test_the_page_reads_a_cell_without_the_internet(running, browser, tmp_path):
    asked = []
    page = browser.new_page(viewport={"width": 1100, "height": 1300})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(running.url)
    assert "Research software, not a medical device." in page.inner_text("body")
    page.get_by_text("trained on synthetic cells").wait_for()
    (tmp_path / "notes.bmp").write_text("no image")
    page.set_input_files("#choose", [running.cell, tmp_path / "notes.bmp"])
    page.get_by_text("1 of 2 read, 1 refused").wait_for()
    assert "The file is not an image" in page.inner_text(".answer.refused")
    show = page.get_by_role("button", name="Show where the network looked")
    page.route("**/v1/explain", lambda route: route.abort(), times=1)
    show.click()
    page.locator(".heat-words", has_text="The service does not answer").wait_for()
    show.click()  # is there still, to try again
    page.locator(".heat:not([hidden])").wait_for()
    caption = page.locator(".answer:not(.refused) .heat-words").inner_text()
    assert caption in [f'what spoke for "{label}"; bright is more' for label in ("leukemic blast", "normal cell")]
    drawn = page.locator(".heat:not([hidden])")
    until(lambda: drawn.evaluate("image => image.naturalWidth") > 0, 5)  # drawn, then its bytes let go
    assert "Probability of a blast" in page.inner_text("#results")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    page.goto(f"{running.url}/docs")
    page.get_by_text("/v1/predict_batch").wait_for()
    assert not [url for url in asked if not url.startswith((running.url, "blob:", "data:"))]


def test_a_service_that_does_not_follow_serves_the_new_champion_after_a_restart(home, running, free_port, tmp_path):
    """Until then the version that was champion at the start answers, whatever the registry says since."""
    stays = Running(home, free_port(), BLASTWATCH_FOLLOW_SECONDS="0").wait_until_ready()
    try:
        with Client(stays.url) as client:
            first = client.model()
            assert (first["version"], first["following"]) == ("1", None)
            entry = crown(home, tmp_path / "second", seed=1)
            with Client(running.url) as other:
                until(lambda: other.model()["version"] == entry.version, 20)
            assert client.predict(running.cell)["model"]["version"] == "1"
            assert stays.followers() == []
    finally:
        assert stays.stop() == []
    # On every address this one, so with a key.
    key = KeyFolder(tmp_path / "keys").add("lab")
    access = {"BLASTWATCH_API_KEYS": str(tmp_path / "keys"), "BLASTWATCH_HOST": "0.0.0.0"}
    second = Running(home, free_port(), BLASTWATCH_FOLLOW_SECONDS="0", **access).wait_until_ready()
    try:
        with Client(second.url, api_key=key) as client:
            assert client.predict(running.cell)["model"]["version"] == entry.version
        assert get(f"{second.url}/v1/model").json()["type"] == "/problems/key-missing"
        assert get(f"{second.url}/metrics").status_code == 200
    finally:
        assert second.stop() == []


def test_workers_and_what_they_started_end_with_a_supervisor_that_is_killed(home, free_port):
    """As for memory: the port and the follower's lock are free for the next service."""
    service = Running(home, free_port(), workers=2).wait_until_ready().wait_until_following()
    family = service.children()
    try:
        assert len(service.workers()) == 2
        service.process.kill()
        until(lambda: not any(map(runs, family)), LOOK_SECONDS + LAST_SECONDS + 5)
        check_free("127.0.0.1", service.port, "BLASTWATCH_PORT")
    finally:
        for process in filter(runs, family):
            process.kill()
        service.process.wait()


def test_without_a_champion_nothing_starts(settings, free_port, tmp_path):
    service = Running(settings, free_port(), None)
    try:
        assert service.process.wait(30) == 1
    except subprocess.TimeoutExpired:
        service.stop()
        raise
    assert "There is no champion" in service.log.read_text()
