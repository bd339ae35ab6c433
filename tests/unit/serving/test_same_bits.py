"""Training, scoring, the service and monitoring see the same bits of the same file, and refuse the same files."""

import numpy as np

from blastwatch.settings import load
from tests.odd_images import REFUSED
from tests.same_bits import logits_of, walk, write_odd_images


def test_odd_images_reach_every_network_as_the_same_bits(served, tmp_path):
    names = write_odd_images(tmp_path / "source", range(200))
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    ways = walk(tmp_path / "source", tmp_path, served, settings)
    assert ways.faults() == []
    refused = ways.refused["service"]
    assert set(refused) == {path for path, what in names.items() if any(f" {mode} " in what for mode in REFUSED)}
    assert len(ways.said["service"]) > 120
    assert set(refused.values()) == {"mode", "frames"}


def test_one_changed_level_changes_the_answer():
    """Otherwise the test above would pass whatever the network was given."""
    cell = np.zeros((1, 3, 32, 32), np.float32)
    other = cell.copy()
    other[0, 1, 5, 5] = np.nextafter(np.float32(0), np.float32(1))
    assert logits_of(cell)[0, 1] != logits_of(other)[0, 1]
