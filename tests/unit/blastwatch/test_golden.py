"""Golden cells: what an engine must answer before it serves, and what is refused."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from blastwatch import golden
from blastwatch.engine_gates import golden_gate
from blastwatch.engines import open_engine
from blastwatch.errors import GoldenMismatch, PackageError
from blastwatch.golden import MOST, REFERENCE_TOLERANCE, SLACK, check_golden, golden_tolerance, write_golden
from blastwatch.inference import Outputs
from blastwatch.package import DIGESTS, GOLDEN, ONNX, OOD, Package, Precision, open_package
from tests.service_packages import make_servable
from training.packaging import spread_cells


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Package:
    return open_package(make_servable(tmp_path_factory.mktemp("golden") / "package"))


@pytest.fixture
def copied(package, tmp_path) -> Package:
    """The same package with a golden file of its own, to be spoilt."""
    (tmp_path / GOLDEN).write_bytes((package.folder / GOLDEN).read_bytes())
    return Package(folder=tmp_path, info=package.info, digest="")


class Shifted:
    """The float32 engine with something added to the logit of a blast."""

    def __init__(self, package: Package, by: float, name: str = "openvino-f32") -> None:
        self.name, self.by = name, by
        self.inner = open_engine(package, "openvino-f32")

    def infer(self, crops):
        outputs = self.inner.infer(crops)
        logits = outputs.logits + np.array([0, self.by], np.float32)
        return Outputs(logits=logits, embeddings=outputs.embeddings)


def test_what_an_engine_computes_beside_others_is_checked_by_itself(package):
    class Beside(Shifted):
        """Wrong only where it computes several batches at a time."""

        def infer_beside(self, crops):
            return Shifted.infer(self, crops)

        def infer(self, crops):
            return self.inner.infer(crops)

    engine = Beside(package, 0.02)
    check_golden(package, engine)
    with pytest.raises(GoldenMismatch):
        check_golden(package, engine, beside=True)
    check_golden(package, open_engine(package, "openvino-f32", threads=2, beside=True), beside=True)


@pytest.mark.parametrize("engine", ["openvino-f32", "torch-f32"])
def test_a_version_answers_its_own_golden_cells(package, engine):
    assert check_golden(package, open_engine(package, engine)) < REFERENCE_TOLERANCE / 10


def test_other_weights_are_a_mismatch(package, tmp_path):
    other = open_package(make_servable(tmp_path / "other", seed=1))
    with pytest.raises(GoldenMismatch, match=r"Expected openvino-f32 to give the probability 0\.\d+ .* but got 0\.\d+"):
        check_golden(package, open_engine(other, "openvino-f32"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_engine_that_gives_no_numbers_is_a_mismatch(package, value):
    with pytest.raises(GoldenMismatch, match="finite logits"):
        check_golden(package, Shifted(package, value))


@pytest.mark.parametrize(("by", "passes"), [(0.0005, True), (0.02, False)])
def test_float32_has_hardly_any_room(package, by, passes):
    engine = Shifted(package, by)
    if passes:
        assert check_golden(package, engine) <= REFERENCE_TOLERANCE
    else:
        with pytest.raises(GoldenMismatch, match=f"at most {REFERENCE_TOLERANCE:g} is"):
            check_golden(package, engine)


def test_a_mismatch_shows_figures_that_differ(package, monkeypatch):
    monkeypatch.setattr(golden, "REFERENCE_TOLERANCE", 2e-6)
    with pytest.raises(GoldenMismatch, match="probability") as raised:
        check_golden(package, Shifted(package, 2e-5))
    said = r"probability (\S+) for golden cell \d+ but got (\S+): they are (\S+) apart, and at most (\S+) is"
    wanted, found, apart, most = map(float, re.search(said, str(raised.value)).groups())
    assert wanted != found and apart > most == 2e-6


@pytest.mark.parametrize("name", ["openvino-bf16", "openvino-int8", "torch-bf16"])
def test_a_faster_engine_has_the_room_that_was_measured(package, name):
    limit = golden_tolerance(package, name)
    assert limit == pytest.approx(1.5 * 0.05 + SLACK)
    check_golden(package, Shifted(package, 2 * limit, name))  # a quarter of it or less in probability
    with pytest.raises(GoldenMismatch, match=f"at most {limit:.4g} is"):
        check_golden(package, Shifted(package, 3.0, name))
    check_golden(package, open_engine(package, name))


def test_no_engine_may_be_one_half_away(package):
    wild = {"openvino-int8": Precision(cells=8, flip_rate=0.4, largest_difference=0.9)}
    loose = Package(folder=package.folder, info=dataclasses.replace(package.info, precision=wild), digest="")
    assert golden_tolerance(loose, "openvino-int8") == MOST


def test_a_limit_that_is_no_number_lets_no_answer_pass(package, monkeypatch):
    monkeypatch.setattr(golden, "REFERENCE_TOLERANCE", float("nan"))
    with pytest.raises(GoldenMismatch, match="at most nan is allowed"):
        check_golden(package, Shifted(package, 0.01))


def test_an_engine_that_was_never_compared_is_refused(package):
    bare = Package(folder=package.folder, info=dataclasses.replace(package.info, precision={}), digest="")
    with pytest.raises(GoldenMismatch, match="does not say how far openvino-bf16 differs"):
        check_golden(bare, Shifted(package, 0.0, "openvino-bf16"))


def crops_of(count=2, size=32):
    return np.zeros((count, size, size, 3), np.uint8)


@pytest.mark.parametrize(
    ("crops", "logits", "said"),
    [
        (crops_of(size=64), np.zeros((2, 2)), r"`crops` in golden.safetensors to be uint8 of shape \(2, 32, 32, 3\)"),
        (crops_of().astype(np.float32), np.zeros((2, 2)), "`crops`.*but got float32"),
        (crops_of(), np.zeros((3, 2)), r"`logits`.*got float32 of shape \(3, 2\)"),
        (crops_of(), np.zeros((2, 3)), r"`logits`.*got float32 of shape \(2, 3\)"),
        (crops_of(0), np.zeros((0, 2)), "one cell at least"),
        (crops_of(), np.full((2, 2), np.nan), "finite `logits`"),
    ],
)
def test_a_file_of_another_shape_is_refused(copied, package, crops, logits, said):
    write_golden(copied.folder, crops, logits)
    with pytest.raises(PackageError, match=said):
        check_golden(copied, Shifted(package, 0.0))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(copied, package, keep):
    path = copied.folder / GOLDEN
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PackageError, match="golden.safetensors of the package cannot be read"):
        check_golden(copied, Shifted(package, 0.0))


def test_the_golden_file_is_part_of_every_package(package, tmp_path):
    import shutil

    shutil.copytree(package.folder, tmp_path / "copy")
    (tmp_path / "copy" / GOLDEN).unlink()
    with pytest.raises(PackageError, match="golden.safetensors is missing"):
        open_package(tmp_path / "copy")
    assert (package.folder / DIGESTS).is_file() and (package.folder / ONNX).is_file()


def drawn(count=40):
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "path": [f"{number}.bmp" for number in range(count)],
            "label": ["all" if number % 4 else "hem" for number in range(count)],
            "probability": random.random(count).round(2),
        }
    )


def test_cells_are_spread_over_labels_and_probabilities():
    cells = drawn()
    chosen = spread_cells(cells, 8)
    assert chosen["label"].value_counts().to_dict() == {"all": 4, "hem": 4}
    for name, part in chosen.groupby("label"):
        of_label = cells.loc[cells["label"] == name, "probability"]
        assert (part["probability"].min(), part["probability"].max()) == (of_label.min(), of_label.max())
    shuffled = cells.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(spread_cells(shuffled, 8), chosen)


@pytest.mark.parametrize(("most", "found"), [(2, 2), (7, 7), (60, 40)])
def test_no_more_cells_than_there_are(most, found):
    chosen = spread_cells(drawn(), most)
    assert len(chosen) == found and chosen["path"].is_unique


def test_what_refers_unlike_images_is_read_before_a_version_is_promoted(tmp_path):
    package = open_package(make_servable(tmp_path / "package"))
    engine = open_engine(package, "openvino-f32")
    assert golden_gate(package, engine).passed
    found = load_file(package.folder / OOD)
    save_file(found | {"limit": np.array([np.nan])}, package.folder / OOD)
    refused = golden_gate(package, engine)
    assert not refused.passed and "finite numbers in ood.safetensors" in str(refused.value)
