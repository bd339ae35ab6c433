"""The space of a search: ranges as text, tried on the parameters before anything is trained."""

import optuna
import pytest

from blastwatch.errors import UsageError
from training.search_space import Knob, describe, read_space


def test_each_kind_of_range_and_the_call_over_the_file(tmp_path):
    file = tmp_path / "ranges.yaml"
    file.write_text("train.learning_rate: 1e-4..3e-3:log\ntrain.augment: 0..1\n")
    space = read_space(file, ["train.augment=0.5..2", "train.batch_size=8..64:log", "train.channels_last=true|false"])
    assert space == (
        Knob(key="train.augment", low=0.5, high=2.0),
        Knob(key="train.batch_size", low=8, high=64, whole=True, log=True),
        Knob(key="train.channels_last", choices=(True, False)),
        Knob(key="train.learning_rate", low=1e-4, high=3e-3, log=True),
    )
    assert describe(space)["train.batch_size"] == {"low": 8, "high": 64, "log": True}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    for knob in space:
        value = knob.suggest(trial)
        assert value in knob.choices if knob.choices else knob.low <= value <= knob.high
        assert isinstance(value, int) == (knob.key in ("train.batch_size", "train.channels_last"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.learning_rate", "KEY=LOW..HIGH"),
        ("train.learning_rate=1e-3", "choices are at least two"),
        ("train.learning_rate=3e-3..1e-4", "the lower end first"),
        ("train.learning_rate=0..1:log", "above 0 with log"),
        ("train.learning_rate=1e-4..1e-3:exp", "the lower end first"),
        ("train.learning_rate=low..high", "no numbers"),
        ("train.batch_size=1.5..3", "no numbers"),
        ("train.label_smoothing=0..0.9", r"label_smoothing to lie from 0 to 0\.5"),
        ("train.balance=class|patient", "balance to be one of"),
        ("train.balance=class|class", "and different"),
        ("train.balance=[class]|[subject]", r"train\.balance to be text but got \['class'\]"),
        ("train.balance=[class]|[class]", "and different"),
        ("train.balance=class|[subject", r"a value of train\.balance as YAML has it but got '\[subject'"),
        ("train.epoch=1..3", "to search but got 'train.epoch'"),
        ("image.size=64..128", "to search but got 'image.size'"),
        ("split.seed=1..9", "to search but got 'split.seed'"),
    ],
)
def test_what_is_no_range_is_said(text, said):
    with pytest.raises(UsageError, match=said):
        read_space(None, [text])


def test_an_empty_space_and_a_file_that_is_none_are_said(tmp_path):
    with pytest.raises(UsageError, match="at least one parameter"):
        read_space(None, [])
    with pytest.raises(UsageError, match="cannot be read"):
        read_space(tmp_path / "missing.yaml", [])
    (tmp_path / "list.yaml").write_text("- train.augment")
    with pytest.raises(UsageError, match="keys and ranges as text"):
        read_space(tmp_path / "list.yaml", [])
    (tmp_path / "number.yaml").write_text("1: 2..3")
    with pytest.raises(UsageError, match="keys and ranges as text"):
        read_space(tmp_path / "number.yaml", [])
    (tmp_path / "latin.yaml").write_bytes("train.augment: 0..1 # gr\xf6\xdfer".encode("latin-1"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_space(tmp_path / "latin.yaml", [])
