import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from tests.service_packages import draw_cell
from tests.trainings import still
from training.augmentation import BACKGROUND, BLUR_RADIUS, augment, draw

SIDE = 48


@pytest.fixture(scope="module")
def cell() -> Tensor:
    cut = draw_cell()[129:321, 129:321][::4, ::4]
    return torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1)[None].float() / 255


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


def test_draws_that_change_nothing_give_the_cell_back(cell):
    assert torch.allclose(augment(cell, still()), cell, atol=2e-6)


def test_one_seed_gives_the_same_cells_and_another_does_not(cell):
    cells = cell.repeat(8, 1, 1, 1)
    first, again, other = (augment(cells, draw(8, seeded(seed), strength=1.0, erase=0.5)) for seed in (4, 4, 5))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert all(not torch.allclose(first[0], first[n]) for n in range(1, 8))


def test_a_share_of_the_draws_is_what_the_whole_batch_would_get(cell):
    cells, draws = cell.repeat(6, 1, 1, 1), draw(6, seeded(), strength=1.0, erase=0.5)
    whole = augment(cells, draws)
    rows = torch.tensor([1, 4])
    assert torch.allclose(augment(cells[rows], draws.part(rows)), whole[rows], atol=1e-6)
    assert torch.allclose(augment(cells[3:], draws.part(slice(3, 6))), whole[3:], atol=1e-6)


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 3))
def test_values_stay_in_range_black_stays_black_and_the_size_is_kept(cell, seed, strength):
    out = augment(cell, draw(1, seeded(seed), strength=strength))
    assert out.shape == cell.shape and torch.isfinite(out).all()
    assert out.min() >= 0 and out.max() <= 1
    corners = out[0, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() <= BACKGROUND
    area = float((cell.amax(1) > BACKGROUND).sum())
    # A relative change of the scale by s changes the area by (1 + s)^2; the rest is blur at the outline.
    limits = (1 - 0.06 * strength) ** 2 * 0.88, (1 + 0.06 * strength) ** 2 * 1.3
    assert limits[0] <= float((out.amax(1) > BACKGROUND).sum()) / area <= limits[1]


def test_a_quarter_turn_and_a_mirror_are_those_of_torch(cell):
    turn = torch.tensor([[[math.cos(math.pi / 2), -1.0, 0], [1.0, math.cos(math.pi / 2), 0]]])
    assert torch.allclose(augment(cell, still(affine=turn)), cell.rot90(1, dims=(2, 3)), atol=1e-4)
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1.0, 0]]])
    assert torch.allclose(augment(cell, still(affine=mirror)), cell.flip(3), atol=1e-5)


def test_a_blur_is_the_gaussian_of_scipy(cell):
    ours = augment(cell, still(sigma=torch.tensor([1.2])))[0]
    theirs = ndimage.gaussian_filter(
        cell[0].numpy().astype(float), (0, 1.2, 1.2), radius=(0, BLUR_RADIUS, BLUR_RADIUS), mode="constant"
    )
    inside = theirs.max(axis=0) > BACKGROUND
    assert np.allclose(ours.numpy()[:, inside], theirs[:, inside], atol=1e-5)


def test_a_channel_without_light_stays_without(cell):
    """The network is evaluated on such values, so training may not lift them to the darkest that has a logarithm."""
    dark = cell.clone()
    dark[:, 0] = 0
    dark[:, 1] = torch.where(cell[:, 1] > 0, 0.5 / 255, 0)
    assert torch.allclose(augment(dark, still()), dark, atol=2e-6)
    turned = augment(dark, draw(1, seeded(), strength=0.0))
    assert (turned[:, 0] == 0).all()


def test_a_stain_adds_in_optical_density(cell):
    density = torch.tensor([[[1.2, 0.05, 0], [0, 0.9, 0.1], [0, 0, 1.1]]])
    added = torch.tensor([[0.05, 0.02, -0.03]])
    ours = augment(cell, still(density=density, added=added))[0].numpy()
    absorbed = -np.log(np.maximum(cell[0].numpy(), 1 / 255))
    expected = np.exp(-np.maximum(np.tensordot(density[0].numpy(), absorbed, 1) + added[0].numpy()[:, None, None], 0))
    expected *= np.minimum(cell[0].numpy() * 255, 1)
    inside = cell[0].numpy().max(axis=0) > BACKGROUND
    assert np.allclose(ours[:, inside], expected[:, inside], atol=1e-5)


def test_light_falls_off_along_its_slope():
    grey = torch.full((1, 3, SIDE, SIDE), 0.5)
    out = augment(grey, still(light=torch.tensor([[0.1, 0.0]])))[0, 0]
    assert torch.allclose(out[0], out[-1]) and (out[0].diff() > 0).all()
    assert float(out[0, -1] / out[0, 0]) == pytest.approx(math.exp(0.2), rel=1e-4)


def test_a_square_of_the_drawn_side_is_erased():
    grey = torch.full((2, 3, SIDE, SIDE), 0.5)
    out = augment(grey, still(2, erased=torch.tensor([[0.0, 0.0, 0.25], [0.3, 0.3, 0.0]])))
    assert int((out[0, 0] == 0).sum()) == (SIDE // 4) ** 2
    assert torch.allclose(out[1], grey[1])


def test_the_share_of_erased_cells_is_the_one_asked_for():
    drawn = draw(4000, seeded(), strength=1.0, erase=0.25)
    share = float((drawn.erased[:, 2] > 0).float().mean())
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
