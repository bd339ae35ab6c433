"""Attacks by the number of the CVE that described them first, as requests to a running service.

    CVE-2024-9056    BentoML: a multipart boundary with a long tail keeps the server busy
    CVE-2025-27520   BentoML: the body of any call is unpickled where its content type says so
    CVE-2025-32375   BentoML: a runner unpickles arrays that its headers announce
    CVE-2025-54381   BentoML: an address in a form or in JSON is fetched by the server

Each function attacks the service at an address and asserts that nothing came of it. Those that need no request are in
`tests/unit/blastwatch/test_cves.py`: CVE-2025-11201 (MLflow, the source of a version) and CVE-2026-27905 (BentoML,
links in an archive).
"""

import json
import pickle
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

# Its own routes, those of BentoML around it, those of a runner of old, and one that there is not.
PATHS = ("/", "/v1/predict", "/v1/predict_batch", "/v1/explain", "/v1/labels", "/predict", "/v1/none", "/livez",
         "/schema.json", "/metrics", "/v1/webhook")  # fmt: skip
PATIENCE = 5.0  # seconds within which a service that is not kept busy answers


class Touch:
    """Unpickled it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def post(url, path, **content):
    return httpx.post(url + path, timeout=30, verify=False, **content)


def _no_pickle_is_opened(url, folder, all_headers):
    mark = folder / "unpickled"
    payload = pickle.dumps(Touch(mark))
    pickle.loads(payload)
    assert mark.exists()  # the attack is one
    mark.unlink()
    for path in PATHS:
        for headers in all_headers:
            answer = post(url, path, content=payload, headers=headers)
            assert 400 <= answer.status_code < 500, (path, headers, answer.text)
        for file in ("cell.pkl", "cell.bmp"):
            form = {"image": (file, payload, "application/vnd.bentoml+pickle")}
            assert 400 <= post(url, path, files=form).status_code < 500
    assert not mark.exists()


def cve_2025_27520(url, folder):
    kinds = ("application/vnd.bentoml+pickle", "application/x-pickle", "application/octet-stream", "application/json")
    _no_pickle_is_opened(url, folder, [{"content-type": kind} for kind in kinds])


def cve_2025_32375(url, folder):
    meta = {"format": "default", "pickle_bytes_str": "", "indices": [0, 1]}
    runner = {"args-number": "1", "payload-meta": json.dumps(meta), "batch-size": "1"}
    kinds = ("NdarrayContainer", "PandasDataFrameContainer", "DefaultContainer")
    _no_pickle_is_opened(
        url,
        folder,
        [runner | {"payload-container": kind, "content-type": "application/vnd.bentoml.x"} for kind in kinds],
    )


@contextmanager
def bait():
    """A port that counts who comes."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.1)
        done = threading.Event()

        def listen():
            while not done.is_set():
                try:
                    came.append(door.accept()[0].close())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}/cell.bmp", came
        finally:
            done.set()
            thread.join()


def cve_2025_54381(url, _folder):
    with bait() as (address, came):
        for path, field in (("/v1/predict", "image"), ("/v1/explain", "image"), ("/v1/predict_batch", "images")):
            answer = post(url, path, files={field: (None, address)})
            assert (answer.status_code, answer.json()["type"]) == (400, "/problems/address-refused")
            assert post(url, path, data={field: address}).status_code == 415
            assert post(url, path, json={field: address}).status_code == 415
            named = post(url, path, files={field: (address, address.encode())})  # a file that holds it, and is named so
            assert named.status_code in (200, 415)  # a batch names the problem inside its answer
            assert "image-not-an-image" in named.text
        assert not came
        _knock(address)
        time.sleep(0.2)
        assert len(came) == 1  # the bait does count


def _knock(address):
    host, port = address.removeprefix("http://").split("/")[0].split(":")
    socket.create_connection((host, int(port)), 1).close()


def cve_2024_9056(url, _folder):
    part = b'\r\nContent-Disposition: form-data; name="image"; filename="c"\r\n\r\nx\r\n'
    short, dashes, letters = b"b", b"b" + b"-" * 50_000, b"b" + b"x" * 50_000
    # The declared boundary, and what stands in the body: itself, or itself with a tail.
    for declared, written in ((dashes, dashes), (letters, letters), (short, dashes), (short, short + b"-" * 2_000_000)):
        start = time.monotonic()
        body = b"--" + written + part + b"--" + written + b"-" * 1_000_000
        headers = {"content-type": f"multipart/form-data; boundary={declared.decode()}"}
        assert 400 <= post(url, "/v1/predict", content=body, headers=headers).status_code < 500
        assert httpx.get(f"{url}/readyz", timeout=PATIENCE, verify=False).status_code == 200
        assert time.monotonic() - start < PATIENCE


ATTACKS = {
    "CVE-2024-9056": cve_2024_9056,
    "CVE-2025-27520": cve_2025_27520,
    "CVE-2025-32375": cve_2025_32375,
    "CVE-2025-54381": cve_2025_54381,
}
