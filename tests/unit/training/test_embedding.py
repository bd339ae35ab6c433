"""What a last layer reads: the same numbers whoever asks, computed once where they are kept."""

import errno
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blastwatch.errors import DataError
from blastwatch.images import normalise
from blastwatch.manifest import read_cells, read_split
from blastwatch.network import forward_with_embedding
from blastwatch.settings import load
from training import embedding, kept_embeddings
from training.embedding import BATCH, Embedder
from training.fold_answers import network_table
from training.kept_embeddings import KeptRows
from training.nuisances import CAMERAS, LOOKED_AT
from training.pack import open_pack
from training.parameters import EvaluateParameters, ImageParameters, Parameters, TrainParameters
from training.precision import Precision
from training.sampling import side_of
from training.training_run import Within, run_training
from training.weights import first_network

STAGES = "efficientnet_lite0_stages"
PROBE = TrainParameters(architecture=STAGES, weights="imagenet", fit="logistic", precision="fp32", nuisances=8)
PLAIN = Precision("fp32", torch.device("cpu"))
ROWS = np.arange(BATCH)


@pytest.fixture(scope="module")
def packed(cohort):
    return open_pack(cohort / "pack", read_cells(cohort / "cells"))


def embedder(packed, kept=None, *, seed=1, precision=PLAIN, **given):
    return Embedder(first_network(STAGES, "imagenet", "", seed=seed), packed, precision, kept=kept, **given)


def blind(monkeypatch):
    """Nobody can look at a cell from here on."""

    def look(_self, _crops):
        raise AssertionError("a cell was looked at again")

    monkeypatch.setattr(Embedder, "_embed", look)


def standardised(network):
    """As a fit leaves it."""
    random = np.random.default_rng(4)
    for name in ("mean", "spread"):
        values = torch.from_numpy(random.uniform(0.5, 2, network.standardise.mean.shape[0]).astype(np.float32))
        getattr(network.standardise, name).copy_(values)
    return network


def test_the_numbers_are_those_that_the_last_layer_is_given(packed):
    network = standardised(first_network(STAGES, "imagenet", "", seed=1))
    asked = Embedder(network, packed, PLAIN)
    inputs = torch.from_numpy(normalise(packed.crops[ROWS], packed.preprocessing))
    with torch.inference_mode():
        logits, read = forward_with_embedding(network, inputs.contiguous(memory_format=torch.channels_last))
    # Not to the bit: OpenVINO sums in another order, and what is standardised is as large as 10.
    np.testing.assert_allclose(asked.cells(ROWS), read.numpy(), atol=5e-4)
    np.testing.assert_allclose(asked.logits(ROWS), logits.numpy(), atol=5e-4)


def test_the_network_that_is_asked_keeps_its_standardising(packed):
    network = standardised(first_network(STAGES, "imagenet", "", seed=1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Embedder(network, packed, PLAIN).cells(ROWS[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(("precision", "by_torch"), [("fp32", False), ("bf16", True)])
def test_torch_is_asked_where_openvino_has_no_such_precision(packed, monkeypatch, precision, by_torch):
    asked = embedder(packed, precision=Precision(precision, torch.device("cpu")))
    monkeypatch.setattr(embedding, "normalise", lambda *_given: pytest.fail("torch was asked"))
    if by_torch:
        with pytest.raises(pytest.fail.Exception, match="torch was asked"):
            asked.cells(ROWS[:1])
    else:
        assert np.isfinite(asked.cells(ROWS[:1])).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cell_has_the_same_bits_whatever_else_is_asked_for(packed, precision):
    asked = embedder(packed, precision=Precision(precision, torch.device("cpu")))
    whole = asked.cells(np.arange(len(packed.paths)))
    few = np.array([40, 3, 77])
    np.testing.assert_array_equal(asked.cells(few), whole[few])
    np.testing.assert_array_equal(asked.cells(few[1:2]), whole[3:4])


def test_what_is_kept_is_not_computed_again(packed, tmp_path, monkeypatch):
    first = embedder(packed, tmp_path).cells(ROWS[:20])
    np.testing.assert_array_equal(first, embedder(packed).cells(ROWS[:20]))
    more = embedder(packed, tmp_path).cells(ROWS)  # twelve of them new
    blind(monkeypatch)
    again = embedder(packed, tmp_path)
    order = ROWS[::-1]
    np.testing.assert_array_equal(again.cells(order), more[order])
    np.testing.assert_array_equal(again.cells(ROWS[:20]), first)
    # Another last layer, and what is standardised before it, come after what is kept.
    network = standardised(first_network(STAGES, "imagenet", "", seed=2))
    network.classifier.weight.data.mul_(3)
    found = Embedder(network, packed, PLAIN, kept=tmp_path).cells(ROWS)
    mean, spread = network.standardise.mean.numpy(), network.standardise.spread.numpy()
    np.testing.assert_array_equal(found, (more - mean) / spread)
    with pytest.raises(AssertionError, match="looked at again"):
        again.cells(np.array([50]))


@pytest.mark.parametrize("change", ["weights", "pack", "precision", "program", "layout"])
def test_other_weights_pixels_numbers_or_code_are_others(packed, tmp_path, monkeypatch, change):
    embedder(packed, tmp_path).cells(ROWS[:2])
    blind(monkeypatch)
    network, given = first_network(STAGES, "imagenet", "", seed=1), {"channels_last": change != "layout"}
    precision = Precision("bf16" if change == "precision" else "fp32", torch.device("cpu"))
    if change == "weights":
        network.features[3][0].block[0][0].weight.data[0] += 1e-6
    if change == "program":
        monkeypatch.setattr(embedding, "PROGRAM", (kept_embeddings,))
    other = replace(packed, digest="0" * 64) if change == "pack" else packed
    with pytest.raises(AssertionError, match="looked at again"):
        Embedder(network, other, precision, kept=tmp_path, **given).cells(ROWS[:2])


def test_cells_under_cameras_are_kept_and_do_not_depend_on_who_else_is_there(packed, cohort, tmp_path, monkeypatch):
    rows = read_split(cohort / "cells", cohort / "split")
    side = side_of(rows, packed, "train", "subject")
    plain = embedder(packed).moves(side, seed=3)
    kept = embedder(packed, tmp_path).moves(side, seed=3)
    np.testing.assert_array_equal(plain.differences, kept.differences)
    assert plain.differences.shape[0] == len(plain.patients) == len(CAMERAS) * min(LOOKED_AT, len(side.rows))
    assert np.abs(plain.differences - embedder(packed).moves(side, seed=4).differences).max() > 0
    blind(monkeypatch)
    fewer = rows[~rows["group"].isin(sorted(set(side.patients))[:2])]
    part = embedder(packed, tmp_path).moves(side_of(fewer, packed, "train", "subject"), seed=3)
    for patient in set(part.patients):
        np.testing.assert_array_equal(
            part.differences[part.patients == patient], plain.differences[plain.patients == patient]
        )


def test_a_training_and_its_evaluation_are_the_same_with_what_is_kept(cohort, packed, tmp_path):
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    parameters = Parameters(image=ImageParameters(size=32), train=PROBE)
    settings = load({"BLASTWATCH_HOME": str(tmp_path / "home")})
    kept = tmp_path / "kept"
    run_training(parameters, settings, **places, out=tmp_path / "plain")
    for name in ("first", "second"):
        within = Within(labels={"blastwatch.recipe": name}, kept=kept)
        run_training(parameters, settings, within, **places, out=tmp_path / name)
    weights = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "first", "second")}
    assert weights["plain"] == weights["first"] == weights["second"]
    answers = [(tmp_path / name / "out_of_fold.parquet").read_bytes() for name in weights]
    assert answers[0] == answers[1] == answers[2]
    rows = read_split(cohort / "cells", cohort / "split")
    asked = EvaluateParameters(calibrate_on="out-of-fold")
    plain, fitted = network_table(tmp_path / "plain", rows, packed, asked)
    table, known = network_table(tmp_path / "plain", rows, packed, asked, kept)
    np.testing.assert_allclose(table["logit_all"], plain["logit_all"], rtol=1e-4, atol=1e-4)
    assert known.temperature == pytest.approx(fitted.temperature, rel=1e-4)
    np.testing.assert_array_equal(table["path"], plain["path"])


def numbers(rows):
    return np.stack([np.full((2, 3), row, dtype=np.float32) for row in rows.tolist()])


def test_rows_are_read_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_embeddings, "PART", 4)
    asked = []

    def make(rows):
        asked.append(rows.tolist())
        return numbers(rows)

    wanted = np.array([9, 2, 5, 7, 1, 2])
    np.testing.assert_array_equal(KeptRows(tmp_path).of(wanted, make), numbers(wanted))
    assert asked == [[1, 2, 5, 7], [9]]  # a part at a time: who is stopped loses one
    np.testing.assert_array_equal(KeptRows(tmp_path).of(wanted[::-1], make), numbers(wanted[::-1]))
    assert len(asked) == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_told_and_made_again(tmp_path, capsys):
    KeptRows(tmp_path).of(ROWS[:3], numbers)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(KeptRows(tmp_path).of(ROWS[:3], numbers), numbers(ROWS[:3]))
    assert "was changed since it was written" in capsys.readouterr().err
    [again] = tmp_path.iterdir()
    assert hashlib.sha256(again.read_bytes()).hexdigest() == again.stem


def test_no_room_is_an_error_that_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"3 cells cannot be kept in .* No space left on device.* Make room"):
        KeptRows(tmp_path).of(ROWS[:3], numbers)
    assert not list(tmp_path.iterdir())
