import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blastwatch.errors import DataError, LeakFound, PackageError, UsageError
from blastwatch.images import normalise, to_input
from blastwatch.manifest import read_cells, read_split
from blastwatch.network import build, save_weights
from tests.trainings import parts_of, small_network
from training import fitting, loop
from training.checkpoint import load_checkpoint, save_checkpoint
from training.fitting import Fit
from training.loop import Trainer, TrainingDiverged, predict_logits
from training.optimizing import Average, schedule
from training.pack import open_pack
from training.parameters import TrainParameters
from training.precision import Precision
from training.splitting import check_leak
from training.weights import first_network, read_state

TINY = TrainParameters(epochs=3, batch_size=16, average=0.5, precision="fp32", patience=9)


@pytest.fixture
def parts(cohort):
    return parts_of(cohort)


def trainer(parts, parameters=TINY):
    packed, train, _ = parts
    return Trainer(small_network(), parameters, packed, train)


class Stopped(Exception):
    pass


def fit(trainer, validation, checkpoint, *, on_epoch=lambda row: None, seconds=fitting.SECONDS):
    return Fit(trainer, validation, checkpoint, seconds=seconds).run(on_epoch)


def test_a_stopped_training_goes_on_to_the_same_bits(parts, tmp_path):
    whole = fit(trainer(parts), parts[2], tmp_path / "whole.pt")

    def stop(row):
        if row["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit(trainer(parts), parts[2], tmp_path / "cut.pt", on_epoch=stop)
    resumed = trainer(parts)
    again = fit(resumed, parts[2], tmp_path / "cut.pt", on_epoch=lambda row: None)
    assert again.curves == whole.curves and again.best_epoch == whole.best_epoch
    assert all(torch.equal(again.best_state[name], tensor) for name, tensor in whole.best_state.items())


@pytest.mark.parametrize(("name", "begins"), [("", ""), ("strong", "strong: ")])
def test_a_long_epoch_says_how_far_it_came(parts, tmp_path, monkeypatch, capsys, name, begins):
    """Of which nothing would be heard for minutes; a short one says nothing within."""
    fit(trainer(parts), parts[2], tmp_path / "short.pt")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fitting, "TELL_SECONDS", 0)
    one = trainer(parts)
    Fit(one, parts[2], tmp_path / "long.pt", name=name).run(lambda row: None)
    wanted = [f"{begins}epoch {epoch} of 3: {step} of {one.steps} steps" for epoch in (1, 2, 3)
              for step in range(1, one.steps)]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == wanted and wanted


def test_an_average_of_few_steps_has_left_the_first_weights(parts):
    """At a constant decay of 0.99 more than half of them would be in it."""
    network = nn.Linear(1, 1)
    average = Average(network, 0.99)
    for number in range(60):
        with torch.no_grad():
            network.weight.fill_(float(number > 0))
        average.update_parameters(network)
    assert average.module.weight.item() > 0.999
    assert isinstance(trainer(parts).average, Average)


def test_an_average_moves_as_far_as_it_is_told_once_it_is_warm():
    network = nn.BatchNorm2d(1)
    average = Average(network, 0.75)
    for mean in (0.0, 1.0, 1.0):
        network.running_mean.fill_(mean)
        network.num_batches_tracked.add_(1)
        average.update_parameters(network)
    # Decays of 2 / 11 and 3 / 12.
    assert average.module.running_mean.item() == pytest.approx(1 - 2 / 11 / 4)
    assert average.module.num_batches_tracked.item() == 3
    average.n_averaged.fill_(1000)
    network.running_mean.fill_(5.0)
    before = average.module.running_mean.item()
    average.update_parameters(network)
    assert average.module.running_mean.item() == pytest.approx(0.75 * before + 0.25 * 5)


def test_training_stops_when_validation_patients_gain_nothing(parts, tmp_path, monkeypatch):
    losses = iter([0.5, 0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(fitting, "validate", lambda *_: {"validation_loss": next(losses)})
    patient = TrainParameters(epochs=5, batch_size=64, precision="fp32", patience=2)
    done = fit(trainer(parts, patient), parts[2], tmp_path / "c.pt", on_epoch=lambda row: None)
    assert (done.best_epoch, done.epoch) == (1, 3)


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(parts, tmp_path):
    path = tmp_path / "c.pt"
    started = trainer(parts)
    save_checkpoint(path, {"good": 1})
    with torch.no_grad():
        started.network[-1].weight.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match=r"train\.learning_rate"):
        started.train_one_epoch(0)
    assert load_checkpoint(path) == {"good": 1}


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"c\.pt cannot be read"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(("begun", "now"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp32"), ("fp32", "bf16")])
def test_a_training_does_not_go_on_in_another_precision(parts, tmp_path, monkeypatch, begun, now):
    """A checkpoint that another machine goes on from, where auto is another kind."""
    whatever = replace(TINY, precision="auto", epochs=1)
    path = tmp_path / "c.pt"
    monkeypatch.setattr(loop, "choose_precision", lambda _, device: Precision(begun, device))
    fit(trainer(parts, whatever), parts[2], path)
    before = path.read_bytes()
    monkeypatch.setattr(loop, "choose_precision", lambda _, device: Precision(now, device))
    with pytest.raises(DataError, match=rf"trained in {begun}, and train\.precision=auto is {now}"):
        fit(trainer(parts, whatever), parts[2], path)
    assert path.read_bytes() == before


def test_a_checkpoint_without_its_precision_goes_on_in_the_one_that_was_asked_for(parts):
    named, auto = trainer(parts), trainer(parts, replace(TINY, precision="auto"))
    state = named.state()
    del state["precision"]
    named.restore(state)
    with pytest.raises(DataError, match=r"does not say .* train\.precision=auto"):
        auto.restore(state)


def test_a_patient_on_two_sides_stops_training(cohort):
    rows = read_split(cohort / "cells", cohort / "split")
    rows.loc[rows.index[0], "side"] = "test" if rows["side"].iloc[0] == "train" else "train"
    with pytest.raises(LeakFound):
        check_leak(rows)


def test_the_schedule_rises_then_falls_to_zero():
    factor = schedule(100, 0.2)
    values = [factor(step) for step in range(101)]
    assert values[19] == 1 and values[0] == 0.05 and values[100] == pytest.approx(0)
    assert np.argmax(values) in (19, 20)


def test_evaluation_sees_the_bits_that_images_makes(cohort, parts):
    cells = read_cells(cohort / "cells")
    packed = parts[0]
    path = cells.rows["path"].iloc[5]
    row = packed.rows_of([path])
    expected = to_input((cells.root / path).read_bytes(), packed.preprocessing)
    assert np.array_equal(normalise(packed.crops[row], packed.preprocessing)[0], expected)


def test_logits_do_not_depend_on_the_batch(parts):
    network = build("resnet18").eval()
    rows = np.arange(10)
    together = predict_logits(network, parts[0], rows)
    alone = np.concatenate([predict_logits(network, parts[0], rows[n : n + 1]) for n in range(10)])
    assert np.allclose(together, alone, atol=1e-4)


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_weights(build("resnet18"), tmp_path / "w.safetensors")
    with pytest.raises(PackageError, match="another network"):
        first_network("resnet50", "file", str(tmp_path / "w.safetensors"), seed=1)


def test_weights_from_a_file_are_used_but_for_the_head(tmp_path):
    source = build("resnet18", classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = first_network("resnet18", "file", str(tmp_path / "w.pth"), seed=1)
    assert torch.equal(network.conv1.weight, source.conv1.weight)
    assert network.fc.out_features == 2


def test_a_pickle_is_not_unpickled(tmp_path):
    torch.save({"model": Stopped("code")}, tmp_path / "w.pth")
    with pytest.raises(PackageError, match="tensors alone"):
        read_state(tmp_path / "w.pth")
    with pytest.raises(UsageError, match="there is none"):
        read_state(tmp_path / "missing.pth")


def test_an_unreachable_hub_is_never_replaced_by_scratch(monkeypatch):
    from urllib.error import URLError

    from torchvision.models import WeightsEnum

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(UsageError, match=r"train\.weights=file"):
        first_network("resnet18", "imagenet", "", seed=1)


def test_a_changed_pack_is_refused(cohort, tmp_path):
    import shutil

    shutil.copytree(cohort / "pack", tmp_path / "pack")
    with (tmp_path / "pack" / "crops.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(DataError, match="was changed"):
        open_pack(tmp_path / "pack", read_cells(cohort / "cells"))


def test_a_short_training_fills_the_running_statistics_of_every_network():
    """MobileNetV3 as torchvision makes it still holds the variances that it began with after so few steps."""
    network = first_network("mobilenet_v3_large", "scratch", "", seed=1).train()
    layers = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    seen = {}
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda module, inputs: seen.update({module: inputs[0].var(dim=(0, 2, 3)).mean().item()})
        )
    cells = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(150):
            network(cells)
    ratios = [layer.running_var.mean().item() / seen[layer] for layer in layers]
    assert max(abs(math.log(ratio)) for ratio in ratios) < 0.5
