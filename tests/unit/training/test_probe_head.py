"""The last layer that was fitted at once, written into a network: it says what was fitted, on a GPU as well."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from blastwatch.network import build, forward_with_embedding
from training.linear_probe import Fitted, write_head

STAGES = "efficientnet_lite0_stages"


@pytest.mark.parametrize(("architecture", "fitted_before"), [("resnet18", False), (STAGES, False), (STAGES, True)])
def test_the_network_then_says_what_was_fitted(architecture, fitted_before):
    """In one with a place for mean and spread they go there, in another into the weights of the last layer."""
    torch.manual_seed(4)
    network = build(architecture).eval().requires_grad_(False)
    cells = torch.randn(5, 3, 32, 32)
    if fitted_before:
        network.standardise.mean.fill_(0.2)
        network.standardise.spread.fill_(0.5)
    before = forward_with_embedding(network, cells)[1].numpy()
    random = np.random.default_rng(5)
    width = before.shape[1]
    fitted = Fitted(before.mean(axis=0), before.std(axis=0) + 0.1, random.normal(size=width), 0.3)
    write_head(network, fitted)
    logits, embedding = (values.numpy() for values in forward_with_embedding(network, cells))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], fitted.log_odds(before), rtol=1e-3, atol=1e-3)
    if architecture == STAGES:
        np.testing.assert_allclose(embedding, (before - fitted.mean) / fitted.spread, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["resnet18", STAGES])
def test_the_last_layer_is_written_on_a_gpu(architecture):
    """Without one: fake tensors hold no numbers, and refuse what a device refuses."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            network = build(architecture).eval().requires_grad_(False)
            width = forward_with_embedding(network, torch.empty(1, 3, 32, 32))[1].shape[1]
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(width, device="cuda").mul_(torch.ones(width))
        write_head(network, Fitted(np.zeros(width), np.ones(width), np.ones(width), 0.5))
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cuda"}
