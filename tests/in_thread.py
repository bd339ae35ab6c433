"""The whole application behind a real HTTP server in a thread of this process: no start of a process to wait for."""

import threading
import time
from contextlib import contextmanager

import httpx
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from blastwatch.settings import load
from monitoring.capture import Capture
from serving.app import build_app
from serving.live import LiveModel, open_live
from serving.metrics import ServiceMetrics
from serving.readers import Readers
from serving.worker import Service


class Front:
    """One service and its address. `ask` sends a request, with a key where one is given."""

    def __init__(self, service, url):
        self.service, self.url, self.settings = service, url, service.settings
        self.http = httpx.Client(base_url=url, timeout=30, verify=False)

    def ask(self, path, key=None, *, method=None, headers=(), **content):
        given = dict(headers) | ({"Authorization": f"Bearer {key}"} if key else {})
        method = method or ("POST" if content else "GET")
        return self.http.request(method, path, headers=given, **content)

    def predict(self, key=None, cell=b"", **more):
        return self.ask("/v1/predict", key, files={"image": cell}, **more)

    def count(self, name, **labels):
        """One sample of the metrics, 0 where there is none."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


@contextmanager
def front(served, home, *, engine=None, **variables):
    """Serve one version until the block ends; `variables` are settings, `engine` answers in place of the version's."""
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_THREADS": "1", **variables})
    settings.home.mkdir(exist_ok=True)
    capture = Capture(settings.predictions_url, queue_size=settings.capture_queue)
    metrics = ServiceMetrics(CollectorRegistry())
    live = LiveModel(served=served, engine=engine) if engine else open_live(served, settings)
    service = Service(live, settings, metrics, capture, Readers(2, at_a_time=1))
    config = uvicorn.Config(build_app(service), host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        made = Front(service, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        yield made
        made.http.close()
    finally:
        server.should_exit = True
        thread.join(20)
        service.close()
