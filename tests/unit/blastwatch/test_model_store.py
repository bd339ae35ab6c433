"""Whether an MLflow server answers, or something in front of one that is down."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blastwatch.errors import RegistryUnreachable
from blastwatch.model_store import check_reachable
from blastwatch.settings import load


@pytest.fixture
def door(tmp_path):
    """A server that answers every request with `status`, and settings over it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked
    server.settings = load({
        "BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}/",
    })  # fmt: skip
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_proxy_before_a_server_that_is_down_is_no_registry(door, status):
    door.status = status
    with pytest.raises(RegistryUnreachable, match=rf"No MLflow server answers at http.* \(HTTP {status}\)\. Start it"):
        check_reachable(door.settings)
    assert door.asked == ["/health"]


@pytest.mark.parametrize("status", [200, 401, 404])
def test_whoever_answers_for_itself_is_one(door, status):
    door.status = status
    check_reachable(door.settings)
    assert door.asked == ["/health"]


def test_nobody_at_all(tmp_path, free_port):
    address = f"http://127.0.0.1:{free_port()}"
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": address})
    with pytest.raises(RegistryUnreachable, match=rf"No MLflow server answers at {address} \(.+\)\. Start it"):
        check_reachable(settings)
