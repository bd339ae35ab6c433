"""What the knobs of a training do: the linear probe, layer-wise rates, pieces, mixing, growing inputs, precision."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blastwatch.errors import UsageError
from blastwatch.images import normalise
from blastwatch.network import ARCHITECTURES, build, forward_with_embedding, head_of
from tests.trainings import QUICK, parts_of, small_network, still
from training.distributed import World
from training.loop import Trainer
from training.optimizing import first_blocks, hold, parameter_groups, probing, schedule
from training.parameters import TrainParameters
from training.precision import choose_precision


@pytest.fixture(scope="module")
def parts(cohort):
    return parts_of(cohort)


def trainer(parts, network=None, **changed):
    return Trainer(network or small_network(), replace(QUICK, **changed), parts[0], parts[1])


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_in_the_probe_the_last_layer_alone_learns(parts):
    probing_first = trainer(parts, probe_epochs=1, average=0.0)
    before = weights(probing_first.network)
    probing_first.train_one_epoch(0)
    probed = weights(probing_first.network)
    head = head_of(probing_first.network)
    changed = {name for name in before if not torch.equal(before[name], probed[name])}
    assert changed == {f"{head}.weight", f"{head}.bias"}
    probing_first.train_one_epoch(1)
    after = weights(probing_first.network)
    assert all(not torch.equal(probed[name], after[name]) for name in ("0.weight", "1.running_mean", "9.weight"))


def test_frozen_blocks_stay_as_they_are_and_the_rest_learns(parts):
    network = small_network()
    frozen = trainer(parts, network, weights="imagenet", frozen=2, probe_epochs=1, average=0.0)
    before = weights(network)
    for epoch in range(2):
        frozen.train_one_epoch(epoch)
    after = weights(network)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("0.", "1."))}
    with pytest.raises(UsageError, match=r"fewer than the 4 blocks of the network but got 4"):
        trainer(parts, small_network(), weights="imagenet", frozen=4)
    with pytest.raises(UsageError, match=r"train\.frozen=1 keeps blocks as they were drawn"):
        TrainParameters(frozen=1)


def test_each_block_learns_slower_than_the_next_and_what_is_flat_does_not_decay():
    network = build("resnet18")
    groups = parameter_groups(network, learning_rate=1.0, weight_decay=0.05, layer_decay=0.5)
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {name_of[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    assert [rates[f"{name}.weight"] for name in ("fc", "layer4.0.conv1", "layer1.1.bn2", "bn1", "conv1")] == [
        1, 0.5, 0.5**4, 0.5**5, 0.5**5
    ]  # fmt: skip
    for group in groups:
        flat = {parameter.ndim <= 1 for parameter in group["params"]}
        assert len(flat) == 1 and group["weight_decay"] == (0.0 if flat.pop() else 0.05)


def test_networks_beside_each_other_are_frozen_and_learn_block_by_block_alike():
    with torch.device("meta"):
        network = build("efficientnet_lite0_lite2_early")
    assert first_blocks(network, 2) == ["features.0", "features.1"]
    hold(network, first_blocks(network, 2))
    held = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert {name[:10] for name in held} == {"features.0", "features.1", "beside.0.0", "beside.0.1"}
    assert not network.beside[0][1].training and network.beside[0][2].training
    groups = parameter_groups(network, learning_rate=1.0, weight_decay=0.05, layer_decay=0.5)
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for number in range(6):
        for stage in (network.features[number], network.beside[0][number]):
            assert {rate_of[id(parameter)] for parameter in stage.parameters()} == {0.5 ** (6 - number)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_has_a_last_layer_an_embedding_and_blocks(architecture):
    with torch.device("meta"):
        network = build(architecture).eval()
        logits, embedding = forward_with_embedding(network, torch.empty(2, 3, 64, 64))
    last = network.get_submodule(head_of(network))
    assert logits.shape == (2, 2) and embedding.shape == (2, last.in_features)
    groups = parameter_groups(network, learning_rate=1.0, weight_decay=0.1, layer_decay=0.7)
    assert sum(group["head"] for group in groups) == 2
    assert len({group["lr"] for group in groups}) >= 5
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_a_batch_in_pieces_takes_the_same_step(parts):
    """Without batch normalisation, which looks at a piece at a time."""
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    first = weights(plain)
    found = []
    for pieces in (1, 3):
        plain.load_state_dict(first)
        one = trainer(parts, plain, accumulate=pieces, mixup=0.3, robust=0.1, balance_by="loss", average=0.0)
        losses = [one.train_one_epoch(epoch) for epoch in range(2)]
        found.append((losses, weights(plain), one.robust.values))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert all(torch.allclose(found[0][1][name], found[1][1][name], atol=1e-5) for name in first)
    assert torch.allclose(found[0][2], found[1][2], atol=1e-7)


def test_a_batch_that_cannot_be_dealt_is_refused(parts):
    for changed in ({"accumulate": 5}, {"accumulate": 12}, {"accumulate": 4, "mixup": 0.2}):
        with pytest.raises(UsageError, match=r"train\.batch_size"):
            trainer(parts, **changed)


def test_mixing_takes_each_cell_its_neighbours_part(parts, monkeypatch):
    mixing = trainer(parts, mixup=0.5, augment=0.0)
    seen = []
    inner = mixing._forward
    mixing._forward = lambda inputs: seen.append(inputs.clone()) or inner(inputs)
    monkeypatch.setattr(mixing, "_draw", lambda number: (trainer(parts, augment=0.0)._draw(number)[0], 0.25))
    rows = np.arange(12)
    crops = np.array(parts[0].crops[parts[1].rows[rows]])
    mixing.train_step(0, crops, rows, size=32)
    draws = mixing._draw(0)[0]
    plain = mixing.feeder.inputs(crops, draws, 32)
    assert torch.allclose(seen[0][0], 0.75 * plain[0] + 0.25 * plain[1], atol=1e-6)
    assert torch.allclose(seen[0][1], 0.75 * plain[1] + 0.25 * plain[0], atol=1e-6)


def test_inputs_without_a_draw_are_those_of_evaluation(parts):
    crops = np.array(parts[0].crops[:5])
    ours = trainer(parts).feeder.inputs(crops, still(5), 32)
    assert np.allclose(ours.numpy(), normalise(crops, parts[0].preprocessing), atol=2e-5)


def test_inputs_grow_to_the_full_size_by_half_the_epochs(parts):
    grown = trainer(parts, epochs=8, first_size=64)
    larger = replace(parts[0].preprocessing, size=224)
    object.__setattr__(grown, "packed", replace(parts[0], preprocessing=larger))
    assert [grown.size_at(epoch) for epoch in range(8)] == [64, 96, 128, 192, 224, 224, 224, 224]
    for first in (1, 12, 40):  # whole steps of 32, never none
        tiny = trainer(parts, epochs=8, first_size=first)
        object.__setattr__(tiny, "packed", grown.packed)
        assert tiny.size_at(0) == 32 and tiny.size_at(7) == 224
    crops = np.array(parts[0].crops[:12])
    seen = []
    small = trainer(parts)
    inner = small._forward
    small._forward = lambda inputs: seen.append(tuple(inputs.shape)) or inner(inputs)
    small.train_step(0, crops, np.arange(12), size=24)
    assert seen == [(12, 3, 24, 24)]


def test_the_rate_of_a_probe_is_full_for_the_head_and_nothing_for_the_rest():
    head, rest = probing(schedule(100, 0.1), probe_steps=20)
    assert [head(step) for step in (0, 19)] == [1, 1] and [rest(step) for step in (0, 19)] == [0, 0]
    assert all(head(step) == rest(step) == schedule(100, 0.1)(step - 20) for step in range(20, 120))
    with pytest.raises(UsageError, match="probe_epochs"):
        TrainParameters(epochs=3, probe_epochs=3)


def test_float16_scales_its_loss_and_trains(parts):
    half = trainer(parts, precision="fp16", epochs=6, learning_rate=3e-3)
    losses = [half.train_one_epoch(epoch) for epoch in range(6)]
    assert half.scaler.get_scale() > 1 and losses[-1] < losses[0] and math.isfinite(losses[-1])


def test_precision_is_what_was_asked_for():
    device = torch.device("cpu")
    for wanted in ("fp32", "bf16", "fp16"):
        assert choose_precision(wanted, device).kind == wanted
    assert choose_precision("auto", device).kind in ("fp32", "bf16")


def test_a_share_of_a_batch_is_a_part_of_each_piece(parts):
    shares = []
    for rank in range(2):
        one = trainer(parts, accumulate=3)
        one.world, one.piece = World(rank, 2, torch.device("cpu")), 2
        shares.append(one._share().tolist())
    assert shares == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
