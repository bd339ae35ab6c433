"""Grad-CAM against a network whose answer is known, and the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from serving.explanation import OPACITY, Explainer, grad_cam, overlay


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


def test_where_nothing_speaks_for_the_class_the_map_is_dark():
    heat, _ = grad_cam(known_network(), np.zeros((1, 3, 8, 8), np.float32))
    assert heat.max() == 0


def test_no_heat_leaves_the_cell_as_it_was():
    cell = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    np.testing.assert_array_equal(overlay(cell, np.zeros((4, 4), np.float32)), cell)
    hot = overlay(np.zeros((40, 40, 3), np.uint8), np.ones((4, 4), np.float32))
    np.testing.assert_array_equal(hot[20, 20], np.round(np.array([252, 255, 164]) * OPACITY))


@pytest.mark.filterwarnings("error")
def test_a_picture_of_the_cell_at_its_scale(package, cell):
    picture, label = Explainer(package).explain(cell.read_bytes())
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.size) == ("PNG", (320, 320))
    assert label in ("all", "hem")
