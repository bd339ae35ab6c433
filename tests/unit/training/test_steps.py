"""Steps that are taken once: kept while their inputs and outputs are the same, and else taken again for a reason."""

import json

import pytest

from blastwatch.errors import DataError, UsageError
from training.steps import STATE, alone, held, take_once


class Step:
    """Writes one file, and counts how often."""

    def __init__(self, folder):
        self.folder, self.times = folder, 0

    def __call__(self, **inputs):
        return take_once(self.folder, inputs, self.make, what="The step")

    def make(self):
        self.times += 1
        self.folder.mkdir(exist_ok=True)
        (self.folder / "made.txt").write_text("made")


@pytest.fixture
def step(tmp_path):
    return Step(tmp_path / "step")


def test_a_step_is_taken_once_for_its_inputs(step):
    assert step(rate=0.1, split="a" * 64, links=("x", "y"))
    assert not step(rate=0.1, split="a" * 64, links=("x", "y"))
    assert step.times == 1


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"rate": 0.2, "split": "a" * 64}, "rate is 0.2 and was 0.1."),
        ({"rate": 0.1, "split": "b" * 64}, "split is bbbbbbbbbbbb and was aaaaaaaaaaaa."),
        ({"rate": 0.1, "split": "a" * 64, "more": 0}, "more is 0 and was not there."),
        ({"rate": 0.1}, "split is not there and was aaaaaaaaaaaa."),
    ],
)
def test_another_input_takes_it_again_and_is_named(step, capsys, inputs, said):
    step(rate=0.1, split="a" * 64)
    (step.folder / "leftover.txt").write_text("of before")
    assert step(**inputs)
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in step.folder.iterdir()) == ["made.txt", STATE]


def test_a_file_that_was_changed_or_is_gone_takes_it_again(step, capsys):
    step(rate=0.1)
    (step.folder / "made.txt").write_text("tampered")
    assert step(rate=0.1)
    (step.folder / "made.txt").unlink()
    assert step(rate=0.1)
    assert capsys.readouterr().err.count("made.txt is missing or was changed") == 2


def test_a_step_that_was_stopped_is_taken_again_without_a_reason(step, capsys):
    def fail():
        step.make()
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        take_once(step.folder, {"rate": 0.1}, fail, what="The step")
    assert step(rate=0.1)
    assert not step(rate=0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"inputs": {}})])
def test_a_damaged_state_is_named(step, text):
    step(rate=0.1)
    (step.folder / STATE).write_text(text)
    with pytest.raises(DataError, match=STATE):
        step(rate=0.1)


def test_nobody_else_works_in_a_folder(tmp_path):
    with alone(tmp_path), pytest.raises(UsageError, match="Another process is at work"), alone(tmp_path):
        pass
    with pytest.raises(RuntimeError), alone(tmp_path):
        raise RuntimeError("of the body passes through")
    with alone(tmp_path):
        pass


def test_who_finds_a_lock_held_is_told_what_its_holder_wants_told(tmp_path):
    with held(tmp_path / "lock", "said"), pytest.raises(UsageError, match="^said$"), held(tmp_path / "lock", "said"):
        pass
    with held(tmp_path / "lock", "said"), held(tmp_path / "other", "said"):
        pass
