"""A thousand leaks planted among real cells."""

import random
import tarfile

import pytest

from blastwatch.manifest import read_cells
from tests.planted import EXACT, KINDS, plant, stopped
from tests.unit.training.test_data_commands import ARCHIVE
from training.importing import import_cells


@pytest.mark.realdata
@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"the real cells are missing: {ARCHIVE}")
def test_a_thousand_planted_leaks_are_stopped(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive if member.name.endswith(".webp")]
        archive.extractall(tmp_path / "source", members=random.Random(4).sample(members, 1500), filter="data")
    paths = [path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source").rglob("*.webp")]
    planted = plant(tmp_path / "source", paths, 1000, seed=5)
    import_cells(tmp_path / "source", tmp_path / "cells", kind="cnmc")
    shares, leak, _ = stopped(read_cells(tmp_path / "cells"), planted)
    assert leak and set(shares.index) == set(KINDS)
    assert (shares[list(EXACT)] == 1).all(), shares
    near = shares.drop(list(EXACT))
    assert near.mean() >= 0.99 and near.min() >= 0.97, shares
