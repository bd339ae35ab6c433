"""`python -m tests.benchmarks.embedding [--architecture NAME] [--size 448]`: cells a second through all of a network
but its last layer, as `train.fit=logistic` asks for them, by OpenVINO and by torch in turns, both in float32 with the
same threads (torch 32 cells at once, OpenVINO eight); and how far their numbers lie apart, in units of each number's
spread over the cells.
"""

import argparse
import os
import platform
import statistics

import numpy as np
import torch

from blastwatch.images import Preprocessing, crop_cell, normalise
from blastwatch.network import forward_with_embedding
from tests.benchmarks.turns import in_turns
from tests.service_packages import draw_cell
from training.embedding import AT_ONCE, BATCH
from training.network_graph import network_graph
from training.weights import first_network

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="efficientnet_lite0_lite2_early")
    parser.add_argument("--size", type=int, default=448)
    given = parser.parse_args()
    preprocessing = Preprocessing(size=given.size)
    network = first_network(given.architecture, "imagenet", "", seed=0).eval().to(memory_format=torch.channels_last)
    graph = network_graph(network, preprocessing, standardised=False)
    crops = _cells(BATCH, given.size)
    found = {}

    def by_openvino() -> None:
        pieces = [graph.infer(crops[start : start + AT_ONCE]).embeddings for start in range(0, BATCH, AT_ONCE)]
        found["openvino"] = np.concatenate(pieces)

    def by_torch() -> None:
        found["torch"] = embed(network, crops, preprocessing)

    rounds = in_turns([by_torch, by_openvino], ROUNDS)
    rates = [BATCH / statistics.median(seconds) for seconds in zip(*rounds, strict=True)]
    ratio = statistics.median(slow / fast for slow, fast in rounds)
    apart = np.abs(found["openvino"] - found["torch"]) / np.maximum(found["torch"].std(axis=0), 1e-3)
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads")
    print(f"{given.architecture} at {given.size} px, median of {ROUNDS} rounds of {BATCH} cells")
    print(f"torch {rates[0]:.2f} cells/s, OpenVINO {rates[1]:.2f}, {ratio:.2f} times as many")
    print(f"the largest difference of a number is {apart.max():.1e} of its spread, the median {np.median(apart):.1e}")


def _cells(count: int, size: int) -> np.ndarray:
    drawn = [draw_cell(seed=number) for number in range(count)]
    return np.stack([crop_cell(cell, Preprocessing(size=size)) for cell in drawn])


@torch.inference_mode()
def embed(network: torch.nn.Module, crops: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    inputs = torch.from_numpy(normalise(crops, preprocessing)).contiguous(memory_format=torch.channels_last)
    return forward_with_embedding(network, inputs)[1].numpy()


if __name__ == "__main__":
    main()
