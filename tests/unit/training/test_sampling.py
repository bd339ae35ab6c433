import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from blastwatch.errors import DataError
from blastwatch.manifest import read_split
from tests.trainings import parts_of
from training.distributed import World
from training.robust import GroupWeights
from training.sampling import Side, balanced_weights, epoch_order, side_of

ALONE = World(0, 1, torch.device("cpu"))


def side(counts, seed=0):
    """Subjects with so many cells each, every other one of them healthy."""
    subjects = np.repeat([f"S{n}" for n in range(len(counts))], counts)
    labels = np.repeat(np.arange(len(counts)) % 2, counts)
    order = np.random.default_rng(seed).permutation(len(subjects))
    sizes = np.repeat(counts, counts)
    weights = 1 / sizes
    weights = weights / np.where(labels == 1, weights[labels == 1].sum(), weights[labels == 0].sum())
    weights = (weights / weights.mean()).astype(np.float32)
    return Side(np.arange(len(subjects)), labels[order], subjects[order], weights[order], subjects[order])


def test_each_subject_weighs_the_same_within_equal_classes(cohort):
    rows = read_split(cohort / "cells", cohort / "split")
    rows = rows.drop(rows[rows["subject"] == "H3"].index[1:]).assign(weight=lambda r: balanced_weights(r, "subject"))
    by_label = rows.groupby("label")["weight"].sum()
    assert by_label["all"] == pytest.approx(by_label["hem"], rel=1e-5)
    for _, part in rows.groupby("label"):
        shares = part.groupby("subject")["weight"].sum()
        assert shares.max() == pytest.approx(shares.min(), rel=1e-5)
    assert rows["weight"].mean() == pytest.approx(1, rel=1e-5)


def test_a_side_without_a_class_is_refused(cohort):
    rows = read_split(cohort / "cells", cohort / "split")
    with pytest.raises(DataError, match="no hem"):
        side_of(rows[rows["label"] == "all"], parts_of(cohort)[0], "train", "none")


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=12),
    batch_size=st.integers(2, 40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_shows_each_cell_once_or_as_often_as_it_weighs(counts, batch_size, epoch):
    cells = side(counts)
    count = len(cells.rows)
    once = epoch_order(cells, by_weight=False, batch_size=batch_size, seed=(1, epoch))
    assert once.shape == (-(-count // batch_size), batch_size)
    assert sorted(once.reshape(-1)[:count]) == list(range(count))
    drawn = epoch_order(cells, by_weight=True, batch_size=batch_size, seed=(1, epoch)).reshape(-1)[:count]
    times = np.bincount(drawn, minlength=count)
    assert np.all(np.abs(times - cells.weights) < 1 + 1e-4)
    # A subject's cells lie together when they are drawn, so its number of cells is right within one as well.
    for group in range(len(counts)):
        own = cells.groups == group
        assert abs(times[own].sum() - cells.weights[own].sum()) < 1 + 1e-3


def test_orders_of_two_epochs_differ_and_one_epoch_is_repeatable():
    cells = side([20, 30, 10, 40])
    first, again, other = (epoch_order(cells, by_weight=True, batch_size=8, seed=(1, n)) for n in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_groups_are_subjects_within_labels():
    subjects = np.array(["a", "a", "b", "a"])
    cells = Side(np.arange(4), np.array([0, 1, 0, 1]), subjects, np.ones(4, np.float32), subjects)
    assert cells.groups.tolist() == [0, 2, 1, 2]


def test_group_dro_weighs_by_the_exponential_of_the_mean_loss():
    weights = GroupWeights(np.array([0, 1, 2]), step=0.5)
    groups, losses = torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 0.5])
    weights.learn(groups, losses, ALONE)
    expected = np.array([np.exp(0.5 * 2.0), np.exp(0.5 * 0.5), 1.0])
    assert weights.values.numpy() == pytest.approx(expected / expected.sum())
    assert weights.of(torch.tensor([0, 1, 2])).mean() == pytest.approx(1)


def test_group_dro_is_off_at_step_zero():
    weights = GroupWeights(np.array([0, 1]), step=0.0)
    weights.learn(torch.tensor([0]), torch.tensor([9.0]), ALONE)
    assert weights.of(torch.tensor([0, 1])).tolist() == [1.0, 1.0]
