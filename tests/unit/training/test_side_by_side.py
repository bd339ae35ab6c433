"""Trainings in processes of their own: what the person who called hears when one of these ends without an answer."""

import signal

import pytest

from blastwatch.errors import DataError
from blastwatch.settings import load
from tests.forkserver import forkserver
from training.fold_answers import Folds
from training.parameters import Parameters
from training.recipes import Recipe
from training.side_by_side import TrainingKilled, answers_side_by_side


class Deadly:
    """Ends the process that unpickles it at once and without a word, as a kernel that has no memory left does."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


@pytest.fixture
def answers(tmp_path):
    """Of turns over a folder of cells that is not there."""
    forkserver()
    missing = tmp_path / "none"
    folds = Folds(
        cells=missing, pack=missing, packed=None, splits=[missing], digests={}, out=missing, kept=missing, run_id="run"
    )
    settings = load({"BLASTWATCH_HOME": str(tmp_path / "home"), "BLASTWATCH_ACTOR": "tester"})
    return lambda *turns: list(answers_side_by_side(turns, folds, settings, processes=2))


def test_a_process_that_was_killed_is_told_with_what_to_do(answers):
    with pytest.raises(TrainingKilled, match=r"one of 2 at a time was killed.*--processes.*goes on"):
        answers((Deadly(), 0))


def test_what_cannot_be_opened_is_told_in_its_own_words(answers, tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/none/.* is missing\. Make it with: blastwatch data import"):
        answers((Recipe("plain", Parameters()), 0))
