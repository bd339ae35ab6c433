"""A network as an evaluation asks it: by OpenVINO where that made what its last layer was fitted to, else by torch."""

import numpy as np
import pytest
import torch

from blastwatch.images import Preprocessing
from training import loop
from training.loop import logits_of_crops
from training.network_graph import inferring, network_graph
from training.weights import first_network

SEEN = Preprocessing(crop=64, size=32)
CROPS = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture
def network():
    made = first_network("efficientnet_lite0_early", "imagenet", "", seed=1).eval()
    made.standardise.mean += torch.rand(len(made.standardise.mean), generator=torch.Generator().manual_seed(2))
    made.standardise.spread *= 2
    return made


def test_a_last_layer_that_was_fitted_at_once_is_asked_by_openvino(network, monkeypatch):
    expected = logits_of_crops(network, CROPS, SEEN)
    infer = inferring(network, {"fit": "logistic"}, SEEN)
    monkeypatch.setattr(loop, "logits_of_crops", lambda *_: pytest.fail("torch was asked"))
    found = infer(CROPS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - expected).max() > 0  # it was not torch: sums in another order


@pytest.mark.parametrize("trained", [{"fit": "gradient"}, {}])
def test_the_others_are_asked_by_torch(network, trained):
    np.testing.assert_array_equal(inferring(network, trained, SEEN)(CROPS), logits_of_crops(network, CROPS, SEEN))


def test_without_standardising_what_comes_before_it_is_told(network):
    plain, standardised = (network_graph(network, SEEN, standardised=known).infer(CROPS) for known in (False, True))
    mean, spread = network.standardise.mean.numpy(), network.standardise.spread.numpy()
    np.testing.assert_allclose((plain.embeddings - mean) / spread, standardised.embeddings, atol=1e-4)
