"""Messages of MLflow are let through by their signature and time alone."""

import time

import pytest

from serving.problems import Problem
from serving.webhook import DELIVERY, SIGNATURE, TIMESTAMP, TOLERANCE, receive, signature

BODY = b'{"entity": "model_version_alias", "action": "created"}'


def headers(secret="secret", stamp="1000", delivery="one"):
    return {SIGNATURE: signature(secret, delivery, stamp, BODY), TIMESTAMP: stamp, DELIVERY: delivery}


def test_it_is_the_signature_that_mlflow_makes():
    from mlflow.webhooks import constants
    from mlflow.webhooks.delivery import _generate_hmac_signature

    assert signature("secret", "one", "1000", BODY) == _generate_hmac_signature("secret", "one", "1000", BODY.decode())
    assert (SIGNATURE, TIMESTAMP, DELIVERY) == (
        constants.WEBHOOK_SIGNATURE_HEADER, constants.WEBHOOK_TIMESTAMP_HEADER, constants.WEBHOOK_DELIVERY_ID_HEADER,
    )  # fmt: skip


def test_a_signed_message_of_now_is_let_through():
    receive(headers(stamp=str(int(time.time()))), BODY, "secret")
    receive({name.lower(): value for name, value in headers().items()}, BODY, "secret", at=1000 + TOLERANCE)


@pytest.mark.parametrize(
    ("given", "body", "at"),
    [
        ({}, BODY, 1000),
        (headers(secret="another"), BODY, 1000),
        (headers() | {DELIVERY: "two"}, BODY, 1000),
        (headers(), BODY + b" ", 1000),
        (headers(), BODY, 1001 + TOLERANCE),
        (headers(), BODY, 999 - TOLERANCE),
        (headers(stamp="soon"), BODY, 1000),
        (headers() | {SIGNATURE: "v1,ünsigned"}, BODY, 1000),
    ],
)
def test_any_other_is_not(given, body, at):
    with pytest.raises(Problem) as caught:
        receive(given, body, "secret", at=at)
    assert caught.value.kind.name == "signature-refused"
