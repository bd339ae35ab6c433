"""The network whose last layer reads every stage: what it pools, in which order, and where its heat map comes from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blastwatch.explanation import heat_map
from blastwatch.network import READ_BY_STAGES, build, forward_with_embedding
from blastwatch.stage_pooling import pooled

CHANNELS = (32, 16, 24, 40, 80, 112, 192, 320)  # of the published network's stem and stages


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return build("efficientnet_lite0_stages").eval().requires_grad_(False)


@settings(deadline=None)
@given(arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-8, 8, width=32)))
def test_mean_and_spread_are_those_of_numpy(maps):
    mean, spread = (values.numpy() for values in pooled(torch.from_numpy(maps)))
    np.testing.assert_allclose(mean, maps.mean(axis=(2, 3), dtype=np.float64), atol=1e-5)
    expected = np.sqrt(maps.astype(np.float64).var(axis=(2, 3)) + 1e-6)
    np.testing.assert_allclose(spread, expected, rtol=1e-3)


@pytest.mark.parametrize(("ending", "read"), [("stages", range(2, 8)), ("early", range(6))])
def test_the_last_layer_reads_the_stages_of_efficientnet_lite0(ending, read):
    torch.manual_seed(1)
    network = build(f"efficientnet_lite0_{ending}").eval().requires_grad_(False)
    torch.manual_seed(2)
    whole = build("efficientnet_lite0").eval().requires_grad_(False)
    whole.load_state_dict(network.state_dict(), strict=False)  # by their names
    images = torch.randn(2, 3, 64, 64)
    maps, expected = images, []
    for number, stage in enumerate(list(whole.features)[:-1]):
        maps = stage(maps)
        if number in read:
            expected += [maps.mean((2, 3)), maps.std((2, 3), correction=0)]
    logits, embedding = forward_with_embedding(network, images)
    assert embedding.shape == (2, 2 * sum(CHANNELS[number] for number in read))
    assert len(network.features) == read.stop  # what nobody reads is not computed
    torch.testing.assert_close(embedding, torch.cat(expected, dim=1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, network.classifier(embedding))


def test_it_standardises_what_it_reads(network):
    standardise = build("efficientnet_lite0_stages").standardise
    rows = torch.randn(64, len(standardise.mean)) * 3 + 7
    standardise.mean.copy_(rows.mean(dim=0))
    standardise.spread.copy_(rows.std(dim=0))
    found = standardise(rows)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(found.shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std(dim=0), torch.ones(found.shape[1]))
    assert {"standardise.mean", "standardise.spread"} <= set(network.state_dict())  # they travel with the weights


@pytest.mark.parametrize("side", [96, 100])  # 25, 13, 7 and 4 places wide: no multiples of each other
@pytest.mark.parametrize("architecture", READ_BY_STAGES)
def test_what_the_places_add_is_the_answer(architecture, side):
    torch.manual_seed(1)
    network = build(architecture).eval().requires_grad_(False)
    images = torch.randn(2, 3, side, side)
    found = network.activation(images)
    finest = 2 if architecture.endswith("_early") else 4
    assert found.shape == (2, 2, side // finest, side // finest)  # of the first stage that is read
    torch.testing.assert_close(found.mean(dim=(2, 3)) + network.classifier.bias, network(images), rtol=1e-4, atol=1e-4)


def test_the_heat_map_lies_where_the_answer_comes_from():
    """A last layer that reads one channel of the first maps alone: hot where that channel is above what is known."""
    torch.manual_seed(3)
    network = build("efficientnet_lite0_stages").eval().requires_grad_(False)
    network.classifier.weight.zero_()
    network.classifier.weight[1, 5] = 1.0
    network.classifier.bias.copy_(torch.tensor([0.0, 100.0]))
    images = torch.randn(1, 3, 64, 64)
    (maps, *_) = network.stages(images)
    network.standardise.mean[5] = maps[0, 5].mean()
    heat, target = heat_map(network, images.numpy())
    expected = (maps[0, 5] - maps[0, 5].mean()).relu()
    assert target == 1
    np.testing.assert_allclose(heat, (expected / expected.max()).numpy(), atol=1e-4)
