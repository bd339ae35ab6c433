"""Cores: those of the machine that this process may run on, and those that its container has the time of."""

import os

import pytest

from blastwatch.cores import cores


@pytest.fixture
def contained(tmp_path, monkeypatch):
    """The cores of a process on eight cores, by the `cpu.max` of its pod and of its container, None where there is no
    such file."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    membership, root = tmp_path / "membership", tmp_path / "cgroup"
    membership.write_text("1:cpu:/old\n0::/pod/box\n")
    (root / "pod" / "box").mkdir(parents=True)

    def count(pod, box):
        for folder, limit in ((root / "pod", pod), (root / "pod" / "box", box)):
            (folder / "cpu.max").unlink(missing_ok=True)
            if limit is not None:
                (folder / "cpu.max").write_text(f"{limit}\n")
        return cores(root, membership)

    return count


@pytest.mark.parametrize(("pod", "box", "count"), [
    (None, None, 8), ("max 100000", "max 100000", 8), ("max 100000", "200000 100000", 2), (None, "340000 100000", 3),
    (None, "190000 100000", 2), ("150000 50000", "max 100000", 3), ("300000 100000", "500000 100000", 3),
    (None, "50000 100000", 1), (None, "9900000 100000", 8), (None, "", 8),
])  # fmt: skip
def test_a_limit_of_the_container_or_around_it_is_kept(contained, pod, box, count):
    assert contained(pod, box) == count


def test_without_such_groups_all_cores_count(tmp_path):
    assert cores(tmp_path, tmp_path / "none") == len(os.sched_getaffinity(0))


def test_where_no_process_can_be_kept_to_some_cores_all_count(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores(tmp_path, tmp_path / "none") == os.cpu_count()
