"""What an address says of the connection."""


def encrypted(address: str) -> bool:
    """False for a plain `http://` address, as on the loopback; the value of httpx' `verify`.

    Where httpx may have to verify, it loads the certificates of every authority first: 40 ms a call, for nothing where
    there is no TLS.
    """
    return not address.lower().startswith("http://")
