"""MLflow's webhook: the registry says that an alias moved, so the follower looks now and not at its next turn.

MLflow signs `DELIVERY-ID.TIMESTAMP.BODY` with HMAC-SHA256 (`mlflow.webhooks.delivery`). What the message says is not
even read: the follower asks the registry itself. So the worst that a replayed message does is one look.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

from serving.problems import Problem

SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
TOLERANCE = 300.0  # seconds that the clocks of the two machines, and a retry of the delivery, may be apart


def receive(headers: Mapping[str, str], body: bytes, secret: str, *, at: float | None = None) -> None:
    """Let through what MLflow signed lately.

    Args:
        headers: looked up without regard to case.
        at: seconds since 1970; default: now.

    Raises:
        Problem: signed by nobody who knows the secret, or too long ago.
    """
    given = {name.lower(): value for name, value in headers.items()}
    stamp, delivery = given.get(TIMESTAMP.lower(), ""), given.get(DELIVERY.lower(), "")
    expected = signature(secret, delivery, stamp, body)
    if not hmac.compare_digest(expected.encode(), given.get(SIGNATURE.lower(), "").encode()):
        raise Problem("signature-refused", f"Expected {SIGNATURE} made with the secret of this webhook.")
    now = time.time() if at is None else at
    if not stamp.isdecimal() or abs(now - int(stamp)) > TOLERANCE:
        raise Problem(
            "signature-refused", f"Expected {TIMESTAMP} within {TOLERANCE:g} s of now but got {stamp[:32]!r}."
        )


def signature(secret: str, delivery: str, stamp: str, body: bytes) -> str:
    """What MLflow writes into the header of its signature."""
    signed = f"{delivery}.{stamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
