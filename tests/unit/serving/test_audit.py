"""The audit log, by real requests: what stands in a line, what never does, and a line that cannot be written."""

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from serving.audit import LOOK_SECONDS, AuditLog
from serving.keys import KeyFolder
from tests.in_thread import front
from tests.service_packages import write_cell

FIELDS = {"time", "request_id", "key", "address", "method", "route", "status", "cells", "model_version", "ms"}
SCOPE = {"type": "http", "method": "POST", "path": "/v1/predict", "client": ("10.0.0.7", 1), "state": {}}


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    home = tmp_path_factory.mktemp("audited")
    key = KeyFolder(home / "api-keys").add("lab")
    with front(served, home) as service:
        service.key, service.cell = key, write_cell(home / "cell.bmp").read_bytes()
        service.log = Path(service.settings.audit_log)
        yield service


def lines(door):
    door.ask("/metrics")  # on the same connection, so the line of the answer before is written by now
    return [json.loads(line) for line in door.log.read_text().splitlines()]


def test_each_request_leaves_a_line(door):
    answer = door.predict(door.key, door.cell, headers={"X-Request-Id": "lab-42"})
    door.ask("/v1/predict_batch", door.key, files=[("images", door.cell), ("images", b"no image")])
    door.ask("/v1/nowhere/patient-7", door.key)
    door.ask("/v1/model", "bw_guess")
    door.ask("/metrics")
    one, batch, lost, guess = lines(door)[-4:]
    assert set(one) == FIELDS and answer.status_code == 200
    assert (one["request_id"], one["key"], one["address"]) == ("lab-42", "lab", "127.0.0.1")
    assert (one["route"], one["status"], one["cells"], one["model_version"]) == ("/v1/predict", 200, 1, "7")
    assert 0 < one["ms"] < 30_000 and one["time"].endswith("+00:00")
    assert (batch["route"], batch["status"], batch["cells"]) == ("/v1/predict_batch", 200, 2)
    assert (lost["route"], lost["status"], lost["model_version"]) == ("other", 404, None)
    assert (guess["key"], guess["status"], guess["cells"]) == (None, 401, 0)


def test_no_key_no_pixel_and_no_name_gets_in(door):
    where = {"X-Request-Id": door.key, "Blastwatch-Patient": "patient-7", "Blastwatch-Caller": "caller-8"}
    door.ask("/v1/predict", door.key, files={"image": ("patient-7.bmp", door.cell)}, headers=where)
    door.ask(f"/v1/model?key={door.key}", door.key)
    door.ask(f"/v1/{door.key}", method=door.key.replace("_", "-"))
    assert len(lines(door)) >= 3
    text = door.log.read_text()
    for word in (
        door.key,
        door.key[3:],
        door.key.replace("_", "-"),
        "patient-7",
        "caller-8",
        ".bmp",
        str(door.cell[:8]),
    ):
        assert word not in text
    assert stat.S_IMODE(door.log.stat().st_mode) == 0o600


def test_a_log_that_was_moved_away_is_begun_anew(door):
    door.ask("/v1/model", door.key)
    before = len(lines(door))
    door.log.rename(moved := door.log.with_suffix(".1"))
    time.sleep(LOOK_SECONDS)
    door.ask("/v1/model", door.key)
    assert len(lines(door)) == 1
    assert len(moved.read_text().splitlines()) == before


def test_a_line_that_cannot_be_written_is_counted_and_the_answer_given(door):
    door.service.audit.close()
    kept = door.log.rename(door.log.with_suffix(".kept"))
    door.log.mkdir()
    try:
        assert door.ask("/v1/model", door.key).status_code == 200
        assert door.count("blastwatch_audit_failures_total") == 1
    finally:
        door.log.rmdir()
        kept.rename(door.log)
    assert door.ask("/v1/model", door.key).status_code == 200
    assert door.count("blastwatch_audit_failures_total") == 1


def fill(path):
    log = AuditLog(str(path))
    for _ in range(300):
        log.write(SCOPE | {"state": {"request_id": "x" * 64}}, route="/v1/predict", status=200, seconds=0.1)


def test_lines_of_several_workers_do_not_mix(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(tmp_path / "log",)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(rows) == 900 and all(set(row) == FIELDS for row in rows)


def test_a_line_is_one_write(tmp_path, monkeypatch):
    """The kernel then keeps those of several workers apart."""
    real, written = os.write, []
    monkeypatch.setattr("serving.audit.os.write", lambda file, data: written.append(data) or real(file, data))
    log = AuditLog(str(tmp_path / "log"))
    for _ in range(3):
        log.write(SCOPE | {"state": {}}, route="/v1/predict", status=200, seconds=0.1)
    log.close()
    assert b"".join(written).count(b"\n") == len(written) == 3


def write(log, name):
    log.write(SCOPE | {"state": {"request_id": name}}, route="/v1/predict", status=200, seconds=0.1)


@pytest.mark.parametrize(("room", "kept"), [([30], "ac"), ([30, 0], "ad"), ([30, 1, 5], "ae")])
def test_after_half_a_line_the_next_one_stands_by_itself(tmp_path, monkeypatch, room, kept):
    """A disk that is full takes as much of a line as there is room for, or nothing."""
    real, failed, left = os.write, [], []

    def write_what_fits(file, data):
        fits = left.pop(0) if left else len(data)
        if not fits:
            raise OSError(28, "No space left on device")
        return real(file, data[:fits])

    monkeypatch.setattr("serving.audit.os.write", write_what_fits)
    log = AuditLog(str(tmp_path / "log"), failed=failed.append)
    write(log, "a")
    left += room
    for name in "bcdef"[: len(room) + 1]:
        write(log, name)
    log.close()
    assert len(failed) == len(room)
    rows = (tmp_path / "log").read_text().splitlines()
    whole = [json.loads(row)["request_id"] for row in rows if row.endswith("}")]
    assert "".join(whole) == kept and len(rows) == len(whole) + sum(size > 1 for size in room)


def test_a_log_that_is_begun_anew_does_not_begin_with_an_empty_line(tmp_path, monkeypatch):
    real, failed = os.write, []
    log = AuditLog(str(tmp_path / "log"), failed=failed.append)
    with monkeypatch.context() as full:
        full.setattr("serving.audit.os.write", lambda file, data: real(file, data[:30]))
        write(log, "a")
    log.close()
    (tmp_path / "log").rename(tmp_path / "log.1")
    write(log, "b")
    log.close()
    assert len(failed) == 1 and (tmp_path / "log").read_text().startswith('{"time"')


def test_a_full_disk_is_told():
    failed = []
    log = AuditLog("/dev/full", failed=failed.append)
    log.write(SCOPE, route="/v1/predict", status=200, seconds=0.1)
    log.close()
    assert [error.errno for error in failed] == [28]


def test_off_writes_nothing_and_a_dash_writes_to_standard_output(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for target in ("off", "-"):
        AuditLog(target).write(SCOPE, route="/v1/predict", status=200, seconds=0.1)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(capfd.readouterr().out)["status"] == 200
