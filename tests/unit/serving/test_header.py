"""One header is found as Starlette finds it."""

from starlette.datastructures import Headers

from serving.header import has_header, header

SCOPE = {"headers": [(b"host", b"one"), (b"origin", b""), (b"host", b"two"), (b"x-name", "é".encode())]}


def test_a_header_is_the_one_of_starlette():
    known = Headers(scope=dict(SCOPE))
    for name in ("host", "origin", "x-name", "none"):
        assert header(SCOPE, name.encode()) == known.get(name, "")
        assert header(SCOPE, name.encode(), "0") == known.get(name, "0")
        assert has_header(SCOPE, name.encode()) == (name in known)
