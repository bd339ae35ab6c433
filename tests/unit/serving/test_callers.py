"""Who asks, and whose cell it is."""

import pytest
from starlette.datastructures import FormData
from starlette.requests import Request

from blastwatch.errors import UsageError
from blastwatch.settings import load
from serving.binding import check_salt
from serving.callers import Callers, caller_of, check_headers
from serving.canary import PATIENT_HEADER
from serving.problems import Problem
from tests.in_thread import front
from tests.service_packages import write_cell
from tests.unit.serving.test_aside import Quick


def request(**headers):
    pairs = [(f"blastwatch-{name}".encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs, "client": ("10.0.0.7", 4711)})


def test_a_caller_is_its_header_else_its_address():
    assert caller_of(request(caller="lab 3").scope) == "lab 3"
    assert caller_of(request().scope) == "10.0.0.7"
    assert caller_of({"type": "http", "headers": [], "client": None}) == ""


@pytest.mark.parametrize("name", ["caller", "patient"])
def test_a_header_longer_than_the_document_allows_is_refused(name):
    check_headers(request(**{name: "x" * 1024}).scope)
    with pytest.raises(Problem, match=f"at most 1024 bytes in Blastwatch-{name.title()} but got 1025"):
        check_headers(request(**{name: "x" * 1025}).scope)


def test_a_patient_is_hashed(tmp_path):
    callers = Callers(tmp_path / "patient.salt")
    assert callers.patient(request()) == ""
    found = callers.patient(request(patient="Ada 1815"))
    assert len(found) == 64 and "Ada" not in found
    assert found == Callers(tmp_path / "patient.salt").patient(request(patient="Ada 1815"))


def test_without_a_salt_whoever_names_a_patient_is_told_to_come_later_and_the_log_says_it_once(tmp_path, caplog):
    """A cell that was stored without its patient no `store forget` would find."""
    (tmp_path / "patient.salt").write_bytes(b"short")
    callers = Callers(tmp_path / "patient.salt")
    for _ in range(3):
        with pytest.raises(Problem) as caught:
            callers.patient(request(patient="Ada"))
        assert (caught.value.kind.name, caught.value.kind.status) == ("patients-unavailable", 503)
        assert caught.value.headers == {"Retry-After": "5"} and "salt" not in caught.value.detail
    assert callers.patient(request()) == ""
    assert caplog.text.count("Every request that names a patient is refused: Expected 32 random bytes") == 1
    (tmp_path / "patient.salt").unlink()
    assert len(callers.patient(request(patient="Ada"))) == 64


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict_batch"])
def test_a_cell_whose_patient_cannot_be_stored_is_not_answered(served, tmp_path, monkeypatch, path):
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    closed = []
    monkeypatch.setattr(FormData, "close", lambda self, close=FormData.close: closed.append(self) or close(self))
    with front(served, tmp_path / "home", engine=Quick()) as door:
        door.settings.patient_salt.write_bytes(b"short")
        files = {"image" if path == "/v1/predict" else "images": cell}
        told = door.ask(path, files=files, headers={PATIENT_HEADER: "Ada"})
        assert (told.status_code, told.json()["type"]) == (503, "/problems/patients-unavailable")
        assert door.count("blastwatch_requests_total", route=path, outcome="failed") == 1
        assert len(closed) == 1  # or a batch's files would lie on the disk
        assert door.ask(path, files=files).status_code == 200
        assert door.count("blastwatch_predictions_total") == 1


def test_a_salt_that_was_named_and_is_none_stops_the_start(tmp_path, monkeypatch, capsys):
    salt = tmp_path / "mounted" / "patient.salt"
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_PATIENT_SALT": str(salt)})
    check_salt(settings)
    assert len(salt.read_bytes()) == 32
    assert f"Made a new salt of the patients at {salt}: all services on one" in capsys.readouterr().err
    check_salt(settings)
    assert capsys.readouterr().err == ""
    salt.write_bytes(b"x" * 31)
    with pytest.raises(UsageError, match=r"BLASTWATCH_PATIENT_SALT names it\. Expected 32 random bytes .* found 31"):
        check_salt(settings)
    (tmp_path / "patient.salt").write_bytes(b"short")
    check_salt(load({"BLASTWATCH_HOME": str(tmp_path)}))  # whoever names no patient needs none
