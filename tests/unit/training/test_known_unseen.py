"""A fold chooses among last layers by training patients whom the weights below them have not seen."""

import json

import pandas as pd
import pytest

from blastwatch.digests import file_digest
from blastwatch.errors import LeakFound
from training.choosing import check_known_unseen
from training.parameters import TrainParameters

ROWS = pd.DataFrame({"subject": ["1", "2", "H1"], "side": ["train", "test", "train"]})


@pytest.fixture
def weights(tmp_path):
    """Makes a file of weights, with the subjects that `blastwatch pretrain` showed to them, or without a word."""

    def make(subjects=None):
        path = tmp_path / "own.safetensors"
        path.write_bytes(b"weights")
        if subjects is not None:
            facts = {"subjects": subjects, "weights_digest": file_digest(path), "data_digest": "0" * 64}
            path.with_suffix(".json").write_text(json.dumps(facts))
        return str(path)

    return make


def last_layer(weights_file):
    return TrainParameters(fit="logistic", weights="file", weights_file=weights_file)


@pytest.mark.parametrize(
    ("subjects", "told"), [(None, "may have"), (["H1"], "have"), (["2"], "may have"), (["far"], "may have")]
)
def test_weights_that_have_seen_training_patients_or_may_have_are_refused(weights, subjects, told):
    """Of pretrained ones names are known, and another import may spell a name otherwise."""
    with pytest.raises(LeakFound, match=rf"for --choose, but those of own\.safetensors {told}: .*Leave --choose"):
        check_known_unseen(last_layer(weights(subjects)), ROWS)


def test_others_are_chosen_by_what_they_have_not_seen(weights):
    check_known_unseen(TrainParameters(weights="file", weights_file=weights(["H1"])), ROWS)  # by validation patients
    check_known_unseen(TrainParameters(architecture="efficientnet_lite0", fit="logistic", weights="imagenet"), ROWS)
