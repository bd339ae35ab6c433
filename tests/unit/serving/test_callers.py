"""Who asks, and whose cell it is."""

import logging

import pytest
from starlette.requests import Request

from serving.callers import Callers, caller_of, check_headers
from serving.problems import Problem


def request(**headers):
    pairs = [(f"blastwatch-{name}".encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs, "client": ("10.0.0.7", 4711)})


def test_a_caller_is_its_header_else_its_address():
    assert caller_of(request(caller="lab 3")) == "lab 3"
    assert caller_of(request()) == "10.0.0.7"
    assert caller_of(Request({"type": "http", "headers": [], "client": None})) == ""


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


def test_without_a_salt_the_patient_is_left_out_and_that_is_said_once(tmp_path, caplog):
    (tmp_path / "patient.salt").write_bytes(b"short")
    callers = Callers(tmp_path / "patient.salt")
    with caplog.at_level(logging.WARNING):
        assert [callers.patient(request(patient="Ada")) for _ in range(3)] == ["", "", ""]
    assert caplog.text.count("Patients are not stored") == 1
