"""What tests of the monitor's parts share."""

import pytest


@pytest.fixture
def pauses(monkeypatch):
    """What happens in each pause of a look at the registry, which takes no time."""
    happens = []
    monkeypatch.setattr("monitoring.followed.time.sleep", lambda _seconds: [call() for call in happens])
    return happens
