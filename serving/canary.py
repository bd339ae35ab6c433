"""Which cells the challenger reads in shadow, and which callers it answers: decided by hash, not by chance."""

import hashlib

CALLER_HEADER = "Blastwatch-Caller"
PATIENT_HEADER = "Blastwatch-Patient"
LONGEST_HEADER = 1024  # bytes of each


def position(*words: str) -> float:
    """A number in [0, 1) that belongs to these words, evenly spread: the first 8 bytes of their SHA-256."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def in_canary(caller: str, challenger_digest: str, share: float) -> bool:
    """Whether the challenger answers this caller. Another challenger draws other callers; a larger share keeps them."""
    return position(caller, challenger_digest) < share


def in_shadow(prediction_id: str, share: float) -> bool:
    """Whether the challenger reads the cell of this prediction too."""
    return position(prediction_id) < share
