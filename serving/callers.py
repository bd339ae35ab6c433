"""What a caller says of itself and of the cell, in headers: who it is, and whose cell it is."""

import logging
from pathlib import Path

from starlette.requests import Request
from starlette.types import Scope

from blastwatch.errors import BlastwatchError
from monitoring.pseudonyms import Pseudonyms
from serving.canary import CALLER_HEADER, LONGEST_HEADER, PATIENT_HEADER
from serving.header import header
from serving.problems import Problem

_CALLER, _PATIENT = CALLER_HEADER.lower().encode(), PATIENT_HEADER.lower().encode()
_log = logging.getLogger("blastwatch.service")


def check_headers(scope: Scope) -> None:
    """Raise the `Problem` of a header that is longer than /docs.json allows."""
    for name, sent in ((CALLER_HEADER, _CALLER), (PATIENT_HEADER, _PATIENT)):
        length = len(header(scope, sent))
        if length > LONGEST_HEADER:
            raise Problem("header-too-long", f"Expected at most {LONGEST_HEADER} bytes in {name} but got {length}.")


def caller_of(request: Request) -> str:
    """The key by which a caller stays in the canary or out of it: its header, else its address."""
    return header(request.scope, _CALLER) or (request.client.host if request.client else "")


class Callers:
    """Reads the headers; `salt` is the file of the patients' salt."""

    def __init__(self, salt: Path) -> None:
        self._pseudonyms = Pseudonyms(salt)
        self._said = False

    def patient(self, request: Request) -> str:
        """The hashed key of the patient whose cells these are, "" where the caller gave none.

        A salt that cannot be had is said once in the log; the cell is answered and stored without its patient.
        """
        try:
            return self._pseudonyms(header(request.scope, _PATIENT))
        except BlastwatchError as error:
            if not self._said:
                _log.warning("Patients are not stored: %s", error)
                self._said = True
            return ""
