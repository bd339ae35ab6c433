"""Evidently's pages of `blastwatch up`: whole for this machine, and shut to a page from elsewhere."""

import httpx
import pytest

from blastwatch.processes import Processes, evidently_pages
from tests.running import environment


@pytest.fixture
def pages(tmp_path, free_port):
    """A client of the pages over a workspace of their own."""
    port, workspace = free_port(), tmp_path / "workspace"
    workspace.mkdir()
    with Processes(environment(DO_NOT_TRACK="true"), tmp_path / "logs") as children:
        children.start("evidently", evidently_pages(workspace, port))
        address = f"http://127.0.0.1:{port}"
        children.wait_for("evidently", address)
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
            yield client


@pytest.mark.slow
def test_evidently_answers_its_own_pages_and_programs_and_no_page_from_elsewhere(pages):
    from evidently.ui.workspace import RemoteWorkspace

    port = pages.base_url.port
    made = RemoteWorkspace(str(pages.base_url)).create_project("of a program")
    own = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}", "Sec-Fetch-Site": "same-origin"}
    assert pages.post("/api/projects", json={"name": "of its page"}, headers=own).status_code == 201
    both = {"of a program", "of its page"}
    assert {found["name"] for found in pages.get("/api/projects", headers=own).json()} == both
    page = pages.get(f"/projects/{made.id}", headers={"Sec-Fetch-Site": "none"})
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    script = page.text.split('src="')[1].split('"')[0]
    assert "javascript" in pages.get(script).headers["content-type"]

    elsewhere = [
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ]
    for headers in elsewhere:
        for method, path in (
            ("POST", "/api/projects"),
            ("DELETE", f"/api/projects/{made.id}"),
            ("GET", "/api/projects"),
            ("GET", f"//api/projects/{made.id}/info"),
            ("GET", "/"),
        ):
            given = {"json": {"name": "planted"}} if method == "POST" else {}
            answer = pages.request(method, path, headers=headers, **given)
            assert answer.status_code == 403 and "of a program" not in answer.text, (headers, method, path)
            assert answer.text.startswith("Expected ") and "in a window of its own" in answer.text
    assert {found["name"] for found in pages.get("/api/projects").json()} == both
