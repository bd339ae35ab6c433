import pytest

from blastwatch.addresses import encrypted


@pytest.mark.parametrize("address", ["http://127.0.0.1:5000", "HTTP://registry:5000/prefix"])
def test_a_plain_address_has_nothing_to_verify(address):
    assert not encrypted(address)


@pytest.mark.parametrize("address", ["https://registry.lab", "HTTPS://registry.lab", "registry.lab:5000", ""])
def test_every_other_address_is_verified(address):
    assert encrypted(address)
