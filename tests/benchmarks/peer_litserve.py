"""A plain LitServe server with batching: `python -m tests.benchmarks.peer_litserve PORT`."""

import sys

import litserve

from tests.benchmarks.peer_model import Reader


class Images(litserve.LitAPI):
    def setup(self, device):
        self.read = Reader()

    def decode_request(self, request):
        return request["image"].file.read()

    def batch(self, inputs):
        return inputs

    def predict(self, files):
        return self.read(files)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    api = Images(max_batch_size=32, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu", timeout=120).run(port=int(sys.argv[1]), host="127.0.0.1")
