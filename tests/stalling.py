"""A server of which one answer stops on its way, on a real socket: no made-up answer shows what a browser then says."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PASSED_ON = ("Content-Type", "Content-Security-Policy")


@contextmanager
def stalling(url, path):
    """Give an address that answers GET as `url` does. Its answer to `path` stops after the head and a byte of its body,
    and the connection stays open until the block ends."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._stall() if self.path == path else self._pass_on()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._stall()

        def _stall(self):
            self._begin(200, {"Content-Type": "application/json", "Content-Length": "1000"}, b"{")
            ended.wait()

        def _pass_on(self):
            asked = {"Authorization": key} if (key := self.headers["Authorization"]) else {}
            got = httpx.get(url + self.path, headers=asked)
            kept = {name: got.headers[name] for name in PASSED_ON if name in got.headers}
            self._begin(got.status_code, kept | {"Content-Length": str(len(got.content))}, got.content)

        def _begin(self, status, headers, body):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words):
            """Nothing on the standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
