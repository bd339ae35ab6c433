import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from blastwatch.digests import file_digest
from blastwatch.errors import DataError, LeakFound, UsageError
from blastwatch.manifest import read_split, write_json
from blastwatch.settings import load
from tests.trainings import parts_of, small_network
from training import pretraining
from training.commands import pretrain
from training.initial_weights import initial_weights
from training.parameters import ImageParameters, Parameters, PretrainParameters, TrainParameters
from training.precision import Precision
from training.pretraining import LAMBDA, Pretrainer, check_unseen, redundancy_loss, run_pretraining
from training.training_run import run_training
from training.weights import first_network

QUICK = PretrainParameters(epochs=2, batch_size=24, projector=32, precision="fp32")
PACKED = ImageParameters(size=32)


def test_the_loss_is_the_papers():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 40, 6)) + random.normal(size=(1, 40, 6))
    expected = 0.0
    for i in range(6):
        for j in range(6):
            correlation = np.corrcoef(first[:, i], second[:, j])[0, 1]
            expected += (1 - correlation) ** 2 if i == j else LAMBDA * correlation**2
    found = redundancy_loss(torch.from_numpy(first).float(), torch.from_numpy(second).float())
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(redundancy_loss(*[torch.eye(4).repeat(3, 1)] * 2)) < 1


def test_views_of_a_cell_come_nearer_and_a_stopped_run_goes_on(cohort):
    packed, train, _ = parts_of(cohort)

    def started():
        return Pretrainer(small_network(), replace(QUICK, epochs=12), packed, train.rows)

    whole = started()
    losses = [whole.train_one_epoch(epoch) for epoch in range(12)]
    assert losses[-1] < losses[0]
    cut = started()
    cut.train_one_epoch(0)
    again = started()
    again.restore(cut.state())
    assert [again.train_one_epoch(epoch) for epoch in (1, 2)] == losses[1:3]


def test_a_pretraining_does_not_go_on_in_another_precision(cohort, monkeypatch):
    packed, train, _ = parts_of(cohort)
    whatever = replace(QUICK, precision="auto")

    def in_(kind):
        monkeypatch.setattr(pretraining, "choose_precision", lambda _, device: Precision(kind, device))
        return Pretrainer(small_network(), whatever, packed, train.rows)

    state = in_("bf16").state()
    in_("bf16").restore(state)
    with pytest.raises(DataError, match=r"trained in bf16, and pretrain\.precision=auto is fp32"):
        in_("fp32").restore(state)


def test_two_pretrainings_from_the_same_inputs_do_not_meet(cohort, tmp_path, monkeypatch):
    parameters = Parameters(train=TrainParameters(architecture="resnet18"), pretrain=QUICK, image=PACKED)
    settings, save = load({"BLASTWATCH_HOME": str(tmp_path / "home")}), pretraining.save_checkpoint
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    refused = []

    def saved(path, state):
        save(path, state)
        with pytest.raises(UsageError, match="Another process is at this training"):
            run_pretraining(parameters, settings, **places, out=tmp_path / "second")
        refused.append(path)

    monkeypatch.setattr(pretraining, "build", lambda _: small_network())
    monkeypatch.setattr(pretraining, "save_checkpoint", saved)
    facts = run_pretraining(parameters, settings, **places, out=tmp_path / "first")
    assert len(refused) == len(facts["losses"]) == 2
    assert not (tmp_path / "second").exists() and not refused[0].exists()
    monkeypatch.setattr(pretraining, "save_checkpoint", save)
    assert run_pretraining(parameters, settings, **places, out=tmp_path / "second") == facts


def test_a_pack_of_another_size_than_the_parameters_say_is_refused(cohort, tmp_path):
    parameters = Parameters(train=TrainParameters(architecture="resnet18"), pretrain=QUICK)
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    with pytest.raises(DataError, match=r"image\.size=224 .* but they have 320 and 32"):
        run_pretraining(parameters, load({"BLASTWATCH_HOME": str(tmp_path)}), **places, out=tmp_path / "out")


def test_too_few_cells_are_refused(cohort):
    packed, train, _ = parts_of(cohort)
    with pytest.raises(DataError, match=r"pretrain\.batch_size"):
        Pretrainer(first_network("resnet18", "scratch", "", seed=1), PretrainParameters(), packed, train.rows[:3])


def test_the_command_shows_training_patients_alone_and_its_weights_start_a_network(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    (tmp_path / "params.yaml").write_text(
        "image: {size: 32}\ntrain: {architecture: resnet18}\npretrain: {epochs: 1, batch_size: 24, projector: 32}\n"
    )
    call = ["--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "out"), "--json"]
    places = [part for name in ("cells", "split", "pack") for part in (f"--{name}", str(cohort / name))]
    done = CliRunner().invoke(pretrain, call + places, catch_exceptions=False)
    facts = json.loads(done.stdout)
    rows = read_split(cohort / "cells", cohort / "split")
    assert set(facts["subjects"]) == set(rows.loc[rows["side"] == "train", "subject"])
    written = tmp_path / "out" / "weights.safetensors"
    network = first_network("resnet18", "file", str(written), seed=2)
    assert torch.equal(network.conv1.weight, load_file(written)["conv1.weight"])
    check_unseen(written, rows)
    known = initial_weights(TrainParameters(architecture="resnet18", weights="file", weights_file=str(written)))
    assert (known["source"], known["subjects"]) == ("pretrained", facts["subjects"])
    assert not list((tmp_path / "home" / "checkpoints").iterdir())


def test_weights_that_have_seen_a_held_out_patient_are_refused(cohort, tmp_path):
    rows = read_split(cohort / "cells", cohort / "split")
    tested = rows.loc[rows["side"] == "test", "subject"].iloc[0]
    write_json(tmp_path / "weights.json", {"subjects": [tested]})
    with pytest.raises(LeakFound, match=f"1 patients .* {tested}"):
        check_unseen(tmp_path / "weights.safetensors", rows)
    shutil.rmtree(tmp_path)
    check_unseen(tmp_path / "weights.safetensors", rows)


def test_weights_that_may_have_seen_a_held_out_patient_under_another_name_are_refused(cohort, tmp_path):
    """A promotion would refuse them after all hours of training."""
    rows = read_split(cohort / "cells", cohort / "split")
    tested, known = (rows.loc[rows["side"] == side, "subject"].iloc[0] for side in ("test", "train"))
    start = tmp_path / "weights.safetensors"
    torch.save({}, start)
    facts = {"subjects": [f"ward-{tested}", known], "weights_digest": file_digest(start), "data_digest": "a" * 64}
    write_json(tmp_path / "weights.json", facts)
    with pytest.raises(LeakFound, match=rf"but 1 of the 2 subjects of .* among them ward-{tested}: .*remove .*s\.json"):
        check_unseen(start, rows)
    train = TrainParameters(architecture="resnet18", weights="file", weights_file=str(start))
    with pytest.raises(LeakFound, match=f"ward-{tested}"):
        run_training(
            Parameters(train=train, image=PACKED), load({"BLASTWATCH_HOME": str(tmp_path / "home")}),
            **{name: cohort / name for name in ("cells", "split", "pack")}, out=tmp_path / "out",
        )  # fmt: skip
    write_json(tmp_path / "weights.json", facts | {"subjects": [known]})
    check_unseen(start, rows)
    write_json(tmp_path / "weights.json", facts | {"weights_digest": "0" * 64})  # left beside other weights
    check_unseen(start, rows)
    assert initial_weights(train)["source"] == "unknown"
