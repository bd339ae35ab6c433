"""The way of one image through the service, without a server."""

import io
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from blastwatch.decision import Thresholds
from blastwatch.engines import open_engine
from blastwatch.errors import ImageRejected
from blastwatch.images import decode, normalise, pixel_digest, to_input
from blastwatch.package import FORMAT
from blastwatch.seen import write_seen
from blastwatch.settings import load
from monitoring.statistics import STATISTICS
from serving.openapi import document
from serving.predictor import Judge, Predictor, prepare

WIDE = np.ones(512, np.float32)
"""An embedding of the test package's network."""


def test_the_service_feeds_the_network_the_bits_of_images_to_input(package, cell):
    data = cell.read_bytes()
    got = prepare(data, package)
    read = normalise(got.crop[None], package.info.preprocessing)[0]
    assert read.tobytes() == to_input(data, package.info.preprocessing).tobytes()
    assert got.pixel_sha256 == pixel_digest(decode(data))


def test_an_answer_has_what_the_design_names(served, cell):
    engine = open_engine(served.package, "openvino-f32", threads=1)
    prepared = prepare(cell.read_bytes(), served.package)
    outputs = engine.infer(prepared.crop[None])
    predictor = Predictor(served, model_name="blastwatch", engine=engine.name)
    answer, record = predictor.answer(prepared, outputs.logits[0], outputs.embeddings[0], seconds=0.25)
    assert answer["model"] == {
        "name": "blastwatch", "version": "7", "digest": served.package.digest, "alias": "champion", "synthetic": True,
    }  # fmt: skip
    assert answer["probabilities"]["all"] == answer["probability"] == record.probability
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert set(answer["quality"]["statistics"]) == set(STATISTICS)
    assert answer["reasons"] == (["too uncertain: between 0.300 and 0.700"] if answer["decision"] == "refer" else [])
    assert set(answer) == set(document(load({}), keyed=False)["components"]["schemas"]["Prediction"]["required"])
    assert answer["disclaimer"] == "Research software, not a medical device."
    assert (record.id, record.latency_ms, record.model_digest) == (answer["id"], 250, served.package.digest)
    assert record.embedding.shape == (32,)
    assert record.embedding.dtype == np.float32
    assert record.time.tzinfo is not None


def test_an_image_that_the_version_learned_from_is_told(served, cell, tmp_path):
    """By its pixels, whatever the file's format; a package of a format before does not say."""
    png = io.BytesIO()
    Image.open(cell).save(png, "PNG")
    prepared = prepare(png.getvalue(), served.package)
    logits = np.array([9, -9], np.float32)
    folder, said = shutil.copytree(served.package.folder, tmp_path / "package"), []
    for images, format_ in (([], FORMAT), ([prepared.pixel_sha256], FORMAT), ([], FORMAT - 1)):
        write_seen(folder, pd.DataFrame({"side": "calibration", "pixel_sha256": images}))
        package = replace(served.package, folder=folder, info=replace(served.package.info, format=format_))
        predictor = Predictor(replace(served, package=package), model_name="blastwatch", engine="test")
        answer, record = predictor.answer(prepared, logits, WIDE, seconds=0.25)
        said.append((answer["seen_in_training"], record.seen))
    assert said == [(False, False), (True, True), (None, None)]


def test_an_image_of_another_kind_is_referred_whatever_the_network_says(package, cell):
    Image.new("RGB", (450, 450), (200, 180, 210)).save(cell)
    prepared = prepare(cell.read_bytes(), package)
    assert prepared.concerns
    said = Judge(package)(prepared, np.array([-9, 9], np.float32), WIDE)
    assert said.decision == "refer"
    assert said.concerns == prepared.concerns


def test_sure_logits_are_decided(package, cell):
    prepared = prepare(cell.read_bytes(), package)
    assert prepared.concerns == []
    judge = Judge(package)
    assert judge(prepared, np.array([-9, 9], np.float32), WIDE).decision == "all"
    assert judge(prepared, np.array([9, -9], np.float32), WIDE).decision == "hem"


def test_limits_near_the_ends_are_not_told_as_the_ends(package, cell):
    limits = Thresholds(hem=0.0003, all=0.99996)
    near = replace(package, info=replace(package.info, thresholds=limits))
    said = Judge(near)(prepare(cell.read_bytes(), package), np.zeros(2, np.float32), WIDE)
    assert said.reasons[-1] == "too uncertain: between 0.0003 and 0.99996"


def test_a_decision_to_refer_says_between_which_limits_the_cell_lies(package, cell):
    """An uncertain cell has no concern, and its caller would see `refer` without a word."""
    prepared = prepare(cell.read_bytes(), package)
    limits = package.info.thresholds
    words = f"too uncertain: between {limits.hem:.3f} and {limits.all:.3f}"
    judge, middle = Judge(package), np.zeros(2, np.float32)
    said = judge(prepared, middle, WIDE)
    assert (said.decision, said.concerns, said.reasons) == ("refer", [], [words])
    for logits in ([-9, 9], [9, -9]):
        assert judge(prepared, np.array(logits, np.float32), WIDE).reasons == []
    odd = replace(prepared, concerns=["the cell is blurred"])
    assert judge(odd, middle, WIDE).reasons == ["the cell is blurred", words]
    assert judge(odd, np.array([-9, 9], np.float32), WIDE).reasons == ["the cell is blurred"]


def test_a_cell_whose_embedding_is_unlike_any_known_one_is_referred_with_the_reason(package, cell):
    prepared = prepare(cell.read_bytes(), package)
    judge = Judge(package)
    assert judge.ood is not None
    judge.ood = replace(judge.ood, limit=1.0)
    said = judge(prepared, np.array([-9, 9], np.float32), 1000 * WIDE)
    assert said.decision == "refer"
    assert said.ood_score > 1
    (reason,) = said.concerns
    assert "out-of-distribution score" in reason
    assert "expected at most 1)" in reason
    # It may be a cell that the network learnt from, which it has seen indeed.
    assert reason.startswith("it lies farther out than nearly all cells of the patients who set the limit")
    assert said.reasons == said.concerns
    assert prepared.concerns == []


def test_a_file_over_the_limit_is_refused_before_it_is_decoded(package, cell):
    with pytest.raises(ImageRejected, match="at most 1000 bytes but got") as caught:
        prepare(cell.read_bytes(), package, max_bytes=1000)
    assert caught.value.reason == "too-large"
