"""A plain BentoML service with adaptive batching, as its documentation has it: `bentoml serve ...:Plain`."""

from pathlib import Path

import bentoml

from tests.benchmarks.peer_model import Reader


@bentoml.service(traffic={"timeout": 120, "max_concurrency": 64}, metrics={"enabled": False})
class Plain:
    def __init__(self) -> None:
        self.read = Reader()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60000)
    def predict(self, images: list[Path]) -> list[dict[str, object]]:
        return self.read([path.read_bytes() for path in images])
