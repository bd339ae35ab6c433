"""What is no value of a parameter is said with the parameter's name."""

import re
from pathlib import Path

import pytest
import yaml

from blastwatch.errors import UsageError
from training.packaged_weights import PACKAGED
from training.parameters import load_parameters


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=[1", r"a value of train\.epochs as YAML has it but got '\[1'"),
        ("train.epochs=2026-13-45", r"a value of train\.epochs as YAML has it but got '2026-13-45'"),
        ("train.epochs=!!int ''", r"a value of train\.epochs as YAML has it but got \"!!int ''\""),
        ("pretrain.batch_size=1", r"pretrain\.batch_size to lie from 2 to inf but got 1"),
        ("contract.two_cells=[[a.png, b.png, c.png]]", r"two_cells to be pairs of paths, .* but got \['a\.png', 'b"),
        ("contract.two_cells=[[a.png, 2]]", r"two_cells to be pairs of paths"),
        ("audit.links=[[a]]", r"audit\.links to be lists of at least two subjects .* but got \['a'\]"),
        ("import.subject_pattern=O'(?P<subject>.)", r"import\.subject_pattern without a single quote"),
    ],
)
def test_what_is_no_value_is_said_with_its_key(override, said):
    with pytest.raises(UsageError, match=said):
        load_parameters(None, [override])


@pytest.mark.parametrize("content", [b"train: {epochs: 2026-13-45}", "train: {} # größer".encode("latin-1")])
def test_a_file_that_is_no_yaml_is_named(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"params\.yaml but it cannot be read"):
        load_parameters(path)


def test_the_pipeline_hands_the_pattern_of_the_patient_to_the_import():
    """Between single quotes, since the shell would read the bars and brackets of one."""
    root = Path(__file__).parents[3]
    stage = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["import"]
    assert "--subject-pattern '${import.subject_pattern}'" in stage["cmd"] and stage["params"] == ["import"]
    known = yaml.safe_load((root / "params.yaml").read_text())
    assert set(known["import"]) == set(load_parameters(None).to_dict()["import"])
    assert load_parameters(root / "params.yaml").importing.subject_pattern == ""


def test_what_is_recommended_is_a_file_of_parameters(tmp_path):
    """The block of docs/training.md, as somebody puts it into params.yaml."""
    root = Path(__file__).parents[3]
    [block] = re.findall(r"```yaml\n(.*?)```", (root / "docs/training.md").read_text(), flags=re.S)
    (tmp_path / "params.yaml").write_text(block)
    found = load_parameters(tmp_path / "params.yaml")
    assert (found.image.size, found.train.fit, found.evaluate.calibrate_on) == (448, "logistic", "out-of-fold")
    assert found.train.architecture in PACKAGED


def test_the_smallest_batch_that_a_pretraining_learns_from():
    assert load_parameters(None, ["pretrain.batch_size=2"]).pretrain.batch_size == 2


def test_an_input_that_grows_does_not_begin_larger_than_it_ends():
    assert load_parameters(None, ["train.first_size=224"]).train.first_size == 224
    with pytest.raises(UsageError, match=r"train\.first_size to be at most image\.size \(64\)") as refused:
        load_parameters(None, ["train.first_size=128", "image.size=64"])
    assert "but got 128" in str(refused.value)


@pytest.mark.parametrize(("rate", "windows", "needed"), [(0.001, 100, 1000), (0.003, 333, 334), (0.0001, 1000, 10000)])
def test_a_rate_of_false_alarms_is_one_that_so_many_windows_can_give(rate, windows, needed):
    knobs = [f"package.false_alarm_rate={rate}"]
    said = (
        rf"package\.drift_resamples to be {needed} or more for package\.false_alarm_rate {rate}, .* but got {windows}"
    )
    with pytest.raises(UsageError, match=said):
        load_parameters(None, [*knobs, f"package.drift_resamples={windows}"])
    assert load_parameters(None, [*knobs, f"package.drift_resamples={needed}"]).package.drift_resamples == needed
