"""An import that was stopped goes on, one of unchanged files reads none, and what changed is read anew."""

import itertools
import os
import random
import signal
import sqlite3
import threading
from pathlib import Path
from unittest import mock

import pytest

from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import IMPORT, MANIFEST, REFUSED, read_cells
from tests.forkserver import forkserver
from tests.unit.training.test_import import draw
from training import importing
from training.import_memory import ImportMemory
from training.importing import import_cells
from training.steps import held

IMAGES = 1500
NEW = 200  # one opening in fourteen failed
FILES = (MANIFEST, REFUSED, IMPORT)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images of five subjects, and two files that are none."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(IMAGES):
        draw(folder / f"{('all', 'hem')[number % 2]}/s{number % 10}/{number}.png", number, side=48)
    (folder / "all/s0/text.png").write_text("no image")
    (folder / "hem/s1/empty.bmp").write_bytes(b"")
    return folder


def test_a_memory_that_is_damaged_is_told(tmp_path):
    """At its opening, or, where a page in its middle is, when it is read."""
    memory = tmp_path / "imports.db"
    draw(tmp_path / "source/all/A/1.png")
    imported(tmp_path / "source", tmp_path / "cells", memory)
    whole = memory.read_bytes()
    for damaged in (b"no database" * 100, whole[:4096] + b"\xff" * (len(whole) - 4096)):
        memory.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be looked up or kept in .*imports\.db: .*--fresh"):
            imported(tmp_path / "source", tmp_path / "cells", memory)
    assert imported(tmp_path / "source", tmp_path / "cells").known == 0


def test_two_imports_into_one_folder_do_not_mix(tmp_path):
    draw(tmp_path / "source/all/A/1.png")
    out = tmp_path / "cells"
    imported(tmp_path / "source", out)
    assert {path.name for path in out.iterdir()} == set(FILES)
    with held(out / ".import.lock", "held by the test"), pytest.raises(UsageError, match="Another import is writing"):
        imported(tmp_path / "source", out)
    imported(tmp_path / "source", out)
    assert {path.name for path in out.iterdir()} == set(FILES)


def bytes_of(out):
    return {name: (out / name).read_bytes() for name in FILES}


def imported(source, out, memory=None):
    return import_cells(source, out, kind="folder", memory=memory)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert imported(source, out).known == 0
    return bytes_of(out)


def test_killed_twenty_times_it_goes_on_to_the_same_bytes(source, undisturbed, tmp_path):
    start = forkserver()
    seeded, known, killed = random.Random(7), [], 0
    memory, out = tmp_path / "home/imports.db", tmp_path / "cells"
    for _ in range(20):
        reads = seeded.randrange(1, IMAGES // 8) if not known or known[-1] < IMAGES else 0
        killing = (reads, seeded.uniform(0, 0.05), source, out, memory)
        process = start.Process(target=import_and_die, args=killing)
        process.start()
        process.join()
        killed += process.exitcode == -9
        known.append(_remembered(memory))
        if (out / IMPORT).exists():
            assert len(read_cells(out).rows) == IMAGES  # never half a set
    assert killed >= 5, known
    assert known == sorted(known)
    assert len(set(known)) > 3  # it was stopped at several places on the way
    assert imported(source, out, memory).known == known[-1] > 0
    assert bytes_of(out) == undisturbed


def import_and_die(reads, seconds, source, out, memory):
    """Import, and die a little after so many images were read: by what it has done and not by the clock, so that a
    machine with other work gets as far as one without. With 0 reads, a little after the start."""
    count, real = itertools.count(1), importing.read_image
    death = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    death.daemon = True

    def counted(path):
        if next(count) == reads:
            death.start()
        return real(path)

    if reads == 0:
        death.start()
    with mock.patch.object(importing, "read_image", counted):
        imported(source, out, memory)


def _remembered(memory: Path) -> int:
    if not memory.is_file():
        return 0
    with ImportMemory(memory):
        pass  # makes the table where the process was killed before it did
    database = sqlite3.connect(memory)
    try:
        return int(database.execute("select count(*) from seen").fetchone()[0])
    finally:
        database.close()


def test_a_second_import_reads_nothing(source, undisturbed, tmp_path, monkeypatch):
    first = imported(source, tmp_path / "one", tmp_path / "imports.db")
    assert first.known == 0
    monkeypatch.setattr("training.importing.read_image", None)  # to call it would be an error
    second = imported(source, tmp_path / "two", tmp_path / "imports.db")
    assert second.known == IMAGES + 2
    assert bytes_of(tmp_path / "two") == undisturbed


def test_what_changed_is_read_anew(tmp_path):
    source, memory = tmp_path / "source", tmp_path / "imports.db"
    paths = [draw(source / f"{label}/s{n}/1.png", n) for n, label in enumerate(("all", "hem", "all"))]
    before = imported(source, tmp_path / "cells", memory).rows.set_index("subject")["pixel_sha256"]
    other = draw(tmp_path / "other.png", 99)
    paths[1].write_bytes(other.read_bytes())
    after = imported(source, tmp_path / "cells", memory)
    assert after.known == 2
    changed = after.rows.set_index("subject")["pixel_sha256"] != before
    assert changed[changed].index.tolist() == ["s1"]


def test_another_decoder_reads_all_anew(source, tmp_path, monkeypatch):
    imported(source, tmp_path / "cells", tmp_path / "imports.db")
    monkeypatch.setattr("training.import_memory.DECODER", "another")
    assert imported(source, tmp_path / "cells", tmp_path / "imports.db").known == 0


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path):
    source, memory = tmp_path / "source", tmp_path / "imports.db"
    draw(source / "all/s1/1.png")
    (source / "all/s1/2.png").symlink_to(source / "away.png")
    assert [refusal.reason for refusal in imported(source, tmp_path / "cells", memory).refused] == ["unreadable"]
    draw(source / "away.png")
    done = imported(source, tmp_path / "cells", memory)
    assert (len(done.rows), done.known) == (2, 1)


def test_labels_and_subjects_come_from_the_source_and_not_from_memory(tmp_path):
    draw(tmp_path / "source/all/s1/1.png")
    imported(tmp_path / "source", tmp_path / "cells", tmp_path / "imports.db")
    done = import_cells(
        tmp_path / "source",
        tmp_path / "cells",
        kind="folder",
        subject_pattern="(?P<subject>1)[.]png",
        memory=tmp_path / "imports.db",
    )
    assert (done.known, done.rows["subject"].tolist()) == (1, ["1"])


def open_each(folder, together, failures):
    """Open one new memory after the other, each at the same moment as the other processes."""
    for number in range(NEW):
        together.wait()
        try:
            with ImportMemory(folder / f"{number}.db"):
                pass
        except sqlite3.OperationalError as error:
            failures.put(str(error))


def test_several_open_a_new_memory_at_once(tmp_path):
    start = forkserver()
    together, failures = start.Barrier(3), start.Queue()
    processes = [start.Process(target=open_each, args=(tmp_path, together, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert failures.empty()
