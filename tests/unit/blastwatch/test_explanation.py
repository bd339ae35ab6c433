"""Grad-CAM against a network whose answer is known, and the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from blastwatch.errors import PackageError
from blastwatch.explanation import OPACITY, Explainer, feature_stages, grad_cam, overlay
from blastwatch.package import DIGESTS, WEIGHTS, open_package, seal
from tests.service_packages import make_servable, write_cell


def known_network():
    """Four stages that pass the image on; the logit of class 1 is the mean of the red channel's left half."""
    import torch
    from torch import nn

    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Identity() for _ in range(4))

        def forward(self, cells):
            maps = self.layer4(self.layer3(self.layer2(self.layer1(cells))))
            score = maps[:, 0].mean(dim=(1, 2))
            return torch.stack([-score, score], dim=1)

    return Known().eval()


def test_the_map_is_bright_where_the_class_comes_from():
    cells = np.zeros((1, 3, 8, 8), np.float32)
    cells[0, 0, :, :4] = 1.0
    cells[0, 1] = 5.0  # a channel that the answer does not read
    heat, target = grad_cam(known_network(), cells)
    assert target == 1
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat[:, :4], 1)
    np.testing.assert_allclose(heat[:, 4:], 0)


@pytest.mark.parametrize(
    ("name", "side", "places"),
    [
        ("resnet18", 224, 7), ("vgg16_bn", 224, 7), ("densenet121", 224, 7), ("mobilenet_v3_large", 224, 7),
        ("efficientnet_b0", 224, 7), ("convnext_tiny", 224, 7), ("mobilenet_v3_large", 64, 4), ("vgg11", 64, 4),
    ],
)  # fmt: skip
def test_the_last_map_of_any_network_is_drawn_from(name, side, places):
    import torch
    from torchvision import models

    torch.manual_seed(1)
    network = models.get_model(name, weights=None, num_classes=2).eval().requires_grad_(False)
    cells = np.random.default_rng(1).normal(size=(1, 3, side, side)).astype(np.float32)
    heat, target = grad_cam(network, cells)
    assert heat.shape == (places, places)
    assert target == int(network(torch.from_numpy(cells)).argmax())
    assert np.isfinite(heat).all() and heat.max() in (0, 1)


def test_a_network_without_maps_is_named():
    from torch import nn

    with pytest.raises(ValueError, match=r"layer4 or features but got parts 0"):
        feature_stages(nn.Sequential(nn.Flatten()))


def test_where_nothing_speaks_for_the_class_the_map_is_dark():
    heat, _ = grad_cam(known_network(), np.zeros((1, 3, 8, 8), np.float32))
    assert heat.max() == 0


def test_no_heat_leaves_the_cell_as_it_was():
    cell = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    np.testing.assert_array_equal(overlay(cell, np.zeros((4, 4), np.float32)), cell)
    hot = overlay(np.zeros((40, 40, 3), np.uint8), np.ones((4, 4), np.float32))
    np.testing.assert_array_equal(hot[20, 20], np.round(np.array([252, 255, 164]) * OPACITY))


@pytest.mark.filterwarnings("error")
def test_a_picture_of_the_cell_at_its_scale(tmp_path):
    package = open_package(make_servable(tmp_path / "package"))
    picture, label = Explainer(package).explain(write_cell(tmp_path / "cell.bmp").read_bytes())
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.size) == ("PNG", (320, 320))
    assert label in ("all", "hem")


def test_weights_that_were_changed_after_the_package_was_verified_explain_nothing(tmp_path):
    """They are read with the first image, which may come days later."""
    folder = make_servable(tmp_path / "package")
    other = make_servable(tmp_path / "other", seed=1)
    package, image = open_package(folder), write_cell(tmp_path / "cell.bmp").read_bytes()
    drawn = Explainer(package).explain(image)
    kept = {name: (folder / name).read_bytes() for name in (WEIGHTS, DIGESTS)}
    (folder / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
    explainer = Explainer(package)
    with pytest.raises(PackageError, match=r"weights\.safetensors of the package in .* it was changed since"):
        explainer.explain(image)
    seal(folder)  # whoever can write the weights can seal them anew
    with pytest.raises(PackageError, match="it was changed since"):
        explainer.explain(image)
    (folder / DIGESTS).unlink()
    with pytest.raises(PackageError, match=r"cannot be read: FileNotFoundError"):
        explainer.explain(image)
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    assert explainer.explain(image) == drawn
    (folder / WEIGHTS).unlink()
    assert explainer.explain(image) == drawn  # read once
