"""API keys: what is kept of them, who is let in, and what the command line does with them."""

import hmac
import json
import multiprocessing
import shutil
import stat
from hashlib import sha256

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from blastwatch.addresses import is_loopback
from blastwatch.errors import ServiceError, SettingsError, UsageError
from blastwatch.settings import load
from serving.binding import KEYLESS_VARIABLE, check_binding
from serving.client import Client
from serving.commands import serve
from serving.guard import Guard, Keyring, open_guard
from serving.key_commands import keys
from serving.keys import ApiKey, KeyFolder, KeysUnreadable, digest_of, match
from serving.problems import MEDIA_TYPE, Problem
from serving.rate import RateLimiter
from tests.in_thread import front
from tests.running import until
from tests.service_packages import write_cell


@pytest.fixture
def folder(tmp_path):
    return KeyFolder(tmp_path / "keys")


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    """A service as on an address that others reach, its keys, and the bytes of a cell."""
    home = tmp_path_factory.mktemp("door")
    made = KeyFolder(home / "api-keys")
    words = {"lab": made.add("lab"), "truth": made.add("truth", ["label"])}
    with front(served, home) as service:
        service.keys, service.words = made, words
        service.cell = write_cell(home / "cell.bmp").read_bytes()
        yield service


def test_only_a_keyed_hash_is_kept_and_only_the_owner_reads_it(folder):
    key = folder.add("lab")
    secret = folder.secret()
    [row] = folder.read()
    assert row.digest == hmac.new(secret, key.encode(), sha256).hexdigest()
    for path in folder.folder.iterdir():
        assert key not in path.read_text(errors="replace") and key[3:] not in path.read_text(errors="replace")
    for path in (folder.list_file, folder.folder / "hash.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({key, folder.add("b"), folder.add("c")}) == 3


def test_one_secret_of_the_hash_does_not_know_the_keys_of_another(folder, tmp_path):
    """Whoever writes to the list alone, with a hash made elsewhere, has made no key."""
    other = KeyFolder(tmp_path / "other")
    key = other.add("stranger")
    folder.add("lab")
    assert match(key, [*folder.read(), *other.read()], folder.secret()) is None
    assert match(key, other.read(), other.secret()).name == "stranger"


@hypothesis_settings(max_examples=50)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6, unique=True), st.text(max_size=20), st.data())
def test_a_key_is_found_if_and_only_if_it_is_good(words, other, data):
    revoked = data.draw(st.sets(st.sampled_from(words)))
    rows = [
        ApiKey(name=str(number), may=(), created="", digest=digest_of(word, b"s"), revoked="x" * (word in revoked))
        for number, word in enumerate(words)
    ]
    for word in {*words, other}:
        found = match(word, rows, b"s")
        assert (found is not None) == (word in words and word not in revoked)
        assert found is None or words[int(found.name)] == word


def test_names_and_permissions_that_are_none(folder):
    folder.add("lab")
    folder.revoke("lab")
    for name in ("", "a b", "a\n", "../x", "x" * 65, "lab"):
        with pytest.raises(UsageError, match=r"Expected a name|is there or was"):
            folder.add(name)
    with pytest.raises(UsageError, match="Expected permissions out of predict, label, read but got admin"):
        folder.add("b", ["admin"])
    with pytest.raises(UsageError, match=r"a key that is good \(none\)"):
        folder.revoke("lab")


@pytest.mark.parametrize("text", ["{", "[]", '{"keys": [{}]}', '{"keys": [{"name":"a","may":["all"],"created":"","digest":""}]}'])  # fmt: skip  # noqa: E501
def test_a_list_that_was_changed_is_refused(folder, text):
    folder.add("lab")
    folder.list_file.write_text(text)
    with pytest.raises(KeysUnreadable, match="Expected a list of API keys"):
        folder.read()


def test_the_command_prints_a_key_once(monkeypatch, tmp_path):
    monkeypatch.setenv("BLASTWATCH_API_KEYS", str(tmp_path / "keys"))

    def run(*words):
        return CliRunner().invoke(keys, words, standalone_mode=False, catch_exceptions=False)

    key = run("add", "lab", "--may", "predict").stdout.strip()
    [row] = json.loads(run("list", "--json").stdout)
    assert (row["name"], row["may"], row["revoked"]) == ("lab", ["predict"], "") and "digest" not in row
    assert match(key, KeyFolder(tmp_path / "keys").read(), KeyFolder(tmp_path / "keys").secret()).name == "lab"
    run("revoke", "lab")
    said = run("list").stdout
    assert "revoked" in said and key not in said


def test_every_v1_address_needs_a_key_and_nothing_else_does(door):
    for path in ("/v1/model", "/v1/history", "/v1/predict", "/v1/anything"):
        response = door.ask(path)
        assert (response.status_code, response.json()["type"]) == (401, "/problems/key-missing"), path
        assert response.headers["content-type"] == MEDIA_TYPE
        assert response.headers["www-authenticate"] == 'Bearer realm="blastwatch"'
    for path in ("/", "/key.js", "/history", "/docs", "/docs.json", "/metrics", "/problems/key-missing"):
        assert door.ask(path).status_code == 200, path


def test_a_key_lets_in_and_another_does_not(door):
    key = door.words["lab"]
    assert door.predict(key, door.cell).json()["label"] in ("all", "hem")
    assert door.ask("/v1/model", headers={"authorization": f"bearer {key}"}).status_code == 200
    for wrong in (key[:-1], key + "A", key.swapcase(), key.removeprefix("bw_"), "x" * 5000):
        response = door.ask("/v1/model", wrong)
        assert (response.status_code, response.json()["type"]) == (401, "/problems/key-refused")
        assert wrong not in response.text
    for scheme in (f"Basic {key}", key, "Bearer", ""):
        response = door.ask("/v1/model", headers={"authorization": scheme})
        assert response.json()["type"] == "/problems/key-missing"
    assert door.ask(f"/v1/model?key={key}").status_code == 401


def test_a_key_without_the_permission_is_forbidden(door):
    before = door.count("blastwatch_kept_out_requests_total", problem="not-permitted")
    response = door.predict(door.words["truth"], door.cell)
    assert (response.status_code, response.json()["type"]) == (403, "/problems/not-permitted")
    assert 'error="insufficient_scope", scope="predict"' in response.headers["www-authenticate"]
    truth = door.ask("/v1/labels", door.words["truth"], json={"id": "0" * 32, "label": "all"})
    assert truth.status_code == 404  # let in: there is no such prediction
    assert door.count("blastwatch_kept_out_requests_total", problem="not-permitted") == before + 1


def test_a_running_service_takes_a_new_key_and_a_revocation_at_once(door):
    key = door.keys.add("guest")
    assert door.ask("/v1/model", key).status_code == 200
    door.keys.revoke("guest")
    assert door.ask("/v1/model", key).status_code == 401
    assert door.ask("/v1/model", door.words["lab"]).status_code == 200


def test_keys_that_cannot_be_read_let_nobody_in(door):
    text = door.keys.list_file.read_bytes()
    for broken in (b"{", None):
        door.keys.list_file.unlink() if broken is None else door.keys.list_file.write_bytes(broken)
        response = door.ask("/v1/model", door.words["lab"])
        assert (response.status_code, response.json()["type"]) == (503, "/problems/keys-unavailable")
        assert response.headers["retry-after"] == "5" and str(door.settings.home) not in response.text
    door.keys.list_file.write_bytes(text)
    assert door.ask("/v1/model", door.words["lab"]).status_code == 200


def test_a_refused_upload_is_not_read(door):
    """The answer comes although most of the body was never sent."""
    import socket

    for length in (b"content-length: 5000000", b"transfer-encoding: chunked"):
        with socket.create_connection(("127.0.0.1", int(door.url.rsplit(":", 1)[1])), 5) as line:
            line.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n\r\n")
            head = line.recv(4096)
        assert head.startswith(b"HTTP/1.1 401")
        assert (b"connection: close" in head.lower()) == (b"chunked" in length)


def test_the_client_sends_its_key(door):
    with Client(door.url, api_key=door.words["lab"]) as client:
        assert client.predict(door.cell)["label"] in ("all", "hem")
    with Client(door.url) as client, pytest.raises(ServiceError, match="An API key is needed") as caught:
        client.model()
    assert caught.value.status == 401
    with pytest.raises(ValueError, match="Expected `api_key`"):
        Client(door.url, api_key="two\nlines")


def test_on_the_loopback_the_first_key_shuts_the_door(tmp_path):
    ring, made = Keyring(tmp_path, keyless=True), KeyFolder(tmp_path)
    assert ring.find("") is None
    key = made.add("lab")
    with pytest.raises(Problem):
        ring.find("")
    assert ring.find(key).name == "lab"
    made.list_file.unlink()
    with pytest.raises(Problem) as caught:  # what was shut does not open by itself
        ring.find("")
    assert caught.value.kind.name == "keys-unavailable"


def admitted(guard, path="/v1/predict", **headers):
    """The problem that keeps a request out, "" where it is let in."""
    head = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    try:
        guard.admit({"path": path, "headers": head, "state": {}, "client": ("127.0.0.1", 9)})
    except Problem as problem:
        assert problem.kind.status in (401, 403)
        return problem.kind.name
    return ""


@pytest.mark.parametrize("host", [
    "127.0.0.1:3000", "localhost:3000", "LOCALHOST", "127.8.8.8:80", "[::1]:3000", "[::1]",
])  # fmt: skip
def test_without_keys_the_own_page_and_programs_are_let_in(tmp_path, host):
    guard = Guard(Keyring(tmp_path, keyless=True))
    assert admitted(guard, host=host) == ""
    assert admitted(guard, host=host, origin=f"http://{host.lower()}", sec_fetch_site="same-origin") == ""
    assert admitted(guard, "/v1/model", host=host, sec_fetch_site="none") == ""  # typed into the browser


@pytest.mark.parametrize("headers", [
    {"host": "evil.example:3000"},
    {"host": "evil.example", "origin": "http://evil.example", "sec_fetch_site": "same-origin"},
    {"host": "localhost.evil.example:3000"}, {"host": "127.0.0.1.evil.example"}, {"host": "10.0.0.7:3000"},
    {"host": ""}, {},
    {"host": "localhost:3000", "origin": "https://evil.example"}, {"host": "localhost:3000", "origin": "null"},
    {"host": "localhost:3000", "origin": "http://localhost:8000"}, {"host": "localhost:3000", "origin": "http://localhost"},
    {"host": "localhost:3000", "origin": "http://127.0.0.1:3000"}, {"host": "localhost:3000", "origin": ""},
    {"host": "localhost:3000", "sec_fetch_site": "cross-site"},
])  # fmt: skip
def test_without_keys_no_page_from_elsewhere_and_no_other_name_is_let_in(tmp_path, headers):
    refused, made = [], KeyFolder(tmp_path)
    guard = Guard(Keyring(tmp_path, keyless=True), refused=refused.append)
    for path in ("/v1/predict", "/v1/model", "/v1/anything"):
        assert admitted(guard, path, **headers) == "origin-refused"
    assert refused == ["origin-refused"] * 3
    for path in ("/", "/metrics", "/livez", "/v1/webhook"):
        assert admitted(guard, path, **headers) == ""
    limited = Guard(Keyring(tmp_path, keyless=True), limiter := RateLimiter(tmp_path / "rate", rate=1, burst=1))
    assert [admitted(limited, **headers) for _ in range(3)] == ["origin-refused"] * 3  # at nobody's cost
    limiter.close()
    key = made.add("lab")  # now it is the key that decides
    assert admitted(guard, **headers) == "key-missing"
    assert admitted(guard, authorization=f"Bearer {key}", **headers) == ""


def test_where_others_reach_the_service_any_name_may_lead_to_it(tmp_path):
    """As in a container: there are keys."""
    key = KeyFolder(tmp_path).add("lab")
    guard = Guard(Keyring(tmp_path, keyless=False))
    head = {"host": "blastwatch.example", "origin": "https://blastwatch.example", "authorization": f"Bearer {key}"}
    assert admitted(guard, **head) == ""


def test_a_page_from_elsewhere_is_told_so_and_clients_are_answered(served, tmp_path, monkeypatch):
    monkeypatch.setenv(KEYLESS_VARIABLE, "1")
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    with front(served, tmp_path / "home") as door:
        refused = door.predict(cell=cell, headers={"origin": "https://evil.example", "sec-fetch-site": "cross-site"})
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/origin-refused")
        assert refused.headers["content-type"] == MEDIA_TYPE
        assert door.ask("/problems/origin-refused").status_code == 200
        assert door.ask("/v1/model", headers={"host": "evil.example"}).status_code == 403
        assert door.count("blastwatch_kept_out_requests_total", problem="origin-refused") == 2
        assert door.service.capture.counts().stored == 0
        for url in (door.url, door.url.replace("127.0.0.1", "localhost")):
            with Client(url) as client:
                assert client.predict(cell)["label"] in ("all", "hem")


@pytest.mark.browser
def test_in_a_browser_the_own_page_is_answered_and_another_is_not(served, tmp_path, monkeypatch, browser):
    monkeypatch.setenv(KEYLESS_VARIABLE, "1")
    with front(served, tmp_path / "home") as door:
        page = browser.new_page()
        page.goto(door.url)
        page.get_by_text("version 7 (champion)").wait_for()
        other = browser.new_page()  # of no site at all
        send = "url => fetch(url, {method: 'POST', mode: 'no-cors', body: new FormData()}).catch(() => {})"
        other.evaluate(send, f"{door.url}/v1/predict")  # the browser does not ask before it sends this
        until(lambda: door.count("blastwatch_kept_out_requests_total", problem="origin-refused") == 1)
        assert door.count("blastwatch_requests_total", route="/v1/predict", outcome="refused") == 1


def test_a_list_that_is_lost_opens_no_worker_that_starts_later(tmp_path, caplog):
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    made = KeyFolder(settings.api_keys)
    key = made.add("lab")
    assert check_binding("127.0.0.1", settings) == {KEYLESS_VARIABLE: ""}  # even if all of the folder is lost later
    early = Keyring(made.folder, keyless=True)  # it was asked nothing yet
    made.list_file.rename(tmp_path / "away")
    late = Keyring(made.folder, keyless=True)
    for ring in (early, late, late):
        with pytest.raises(Problem) as caught:
            ring.find("")
        assert caught.value.kind.name == "keys-unavailable"
    assert caplog.text.count("Every request is refused") == 2  # once each
    with pytest.raises(KeysUnreadable, match=r"keys\.json are gone.*Restore the list"):
        check_binding("127.0.0.1", settings)
    (tmp_path / "away").rename(made.list_file)
    assert early.find(key).name == late.find(key).name == "lab"
    shutil.rmtree(made.folder)  # as docs/access.md says
    assert check_binding("127.0.0.1", settings) == {KEYLESS_VARIABLE: "1"}
    assert Keyring(made.folder, keyless=True).find("") is None


def test_a_folder_of_keys_that_was_named_and_is_not_there_opens_nothing(tmp_path):
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_API_KEYS": str(tmp_path / "mounted")})
    with pytest.raises(UsageError, match="BLASTWATCH_API_KEYS names.*blastwatch keys add NAME"):
        check_binding("127.0.0.1", settings)
    with pytest.raises(Problem, match="cannot be checked"):
        open_guard(settings, keyless=True, refused=str).admit(request := {"path": "/v1/predict", "headers": []})
    settings.api_keys.mkdir()
    assert check_binding("127.0.0.1", settings) == {KEYLESS_VARIABLE: "1"}
    request |= {"headers": [(b"host", b"127.0.0.1")], "state": {}}
    open_guard(settings, keyless=True, refused=str).admit(request)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_the_loopback_needs_no_key(host, tmp_path):
    assert is_loopback(host)
    assert check_binding(host, load({"BLASTWATCH_HOME": str(tmp_path)})) == {KEYLESS_VARIABLE: "1"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "localhost.example.org", "", "::ffff:10.0.0.7"])
def test_any_other_address_needs_one(host, tmp_path):
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    with pytest.raises(UsageError, match=r"blastwatch keys add NAME.*--host 127\.0\.0\.1"):
        check_binding(host, settings)
    KeyFolder(settings.api_keys).add("gone")
    KeyFolder(settings.api_keys).revoke("gone")
    with pytest.raises(UsageError, match="blastwatch keys add NAME"):
        check_binding(host, settings)
    KeyFolder(settings.api_keys).add("lab")
    assert check_binding(host, settings) == {KEYLESS_VARIABLE: ""}


def test_serve_refuses_to_open_the_door_before_it_loads_anything(monkeypatch, tmp_path):
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path))
    result = CliRunner().invoke(serve, ["--host", "0.0.0.0"], standalone_mode=False)
    assert isinstance(result.exception, UsageError) and result.exception.exit_code == 2
    assert "before others can reach the service at 0.0.0.0" in str(result.exception)


def test_a_key_in_the_environment_that_is_none_is_not_shown():
    with pytest.raises(SettingsError, match="BLASTWATCH_API_KEY") as caught:
        load({"BLASTWATCH_API_KEY": "bw_secret secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.browser
def test_the_pages_ask_for_the_key(door, browser):
    page = browser.new_page()
    page.goto(door.url)
    field = page.get_by_label("This service needs an API key")
    field.fill("bw_Schlüssel")
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("This is no key").wait_for()
    field.fill("bw_wrong")
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("This key is not good. Give another one.").wait_for()
    page.get_by_label("This service needs an API key").fill(door.words["lab"])
    page.keyboard.press("Enter")
    page.get_by_text("version 7 (champion)").wait_for()
    assert page.locator("#key-form").count() == 0


def add_ten(folder, name, at):
    at.wait()
    for number in range(10):
        KeyFolder(folder).add(f"{name}{number}")


def test_who_adds_at_once_loses_no_key(tmp_path):
    context = multiprocessing.get_context("fork")
    at = context.Barrier(2)
    adding = [context.Process(target=add_ten, args=(tmp_path, name, at)) for name in "ab"]
    for one in adding:
        one.start()
    for one in adding:
        one.join()
    assert len(KeyFolder(tmp_path).read()) == 20


def test_so_many_keys_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.keys.MOST", 2)
    folder = KeyFolder(tmp_path)
    for name in "ab":
        folder.add(name)
    with pytest.raises(UsageError, match="at most 2 keys but there are 2"):
        folder.add("c")
