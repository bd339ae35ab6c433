"""A plain Ray Serve deployment with batching: `python -m tests.benchmarks.peer_ray PORT`."""

import signal
import sys

from ray import serve
from starlette.requests import Request

from tests.benchmarks.peer_model import Reader


@serve.deployment(max_ongoing_requests=64)
class Images:
    def __init__(self):
        self.read = Reader()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def answer(self, files):
        return self.read(files)

    async def __call__(self, request: Request):
        form = await request.form()
        return await self.answer(await form["image"].read())


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Images.bind(), route_prefix="/predict")
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
