"""What the pages of service and monitor have in common: what a browser may do with them, how they look, and what is not
answered because a page from elsewhere let a browser ask it."""

from collections.abc import Mapping
from pathlib import Path

from blastwatch.addresses import asked_on_loopback

PAGES = Path(__file__).parent / "pages"
FILES = {"/page.css": PAGES / "page.css", "/entries.js": PAGES / "entries.js"}
"""What every page loads, by its path."""

# What a browser may do with an answer: the pages load nothing from elsewhere and are framed by nobody.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def from_elsewhere(headers: Mapping[str, str]) -> str:
    """Why a request without a key is not to be answered: a page from elsewhere let the browser of this machine send it.

    A page needs nobody's leave to send a form with files, and one whose own name leads to the loopback by now (DNS
    rebinding) would also read the answers.

    Args:
        headers: of the request; their names in small letters, or whatever finds them by these.

    Returns:
        What was expected and what came; "" where nothing speaks against it.

    >>> from_elsewhere({"host": "evil.example"})
    "Expected a name or address of the loopback in `Host` but got 'evil.example'."
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if not asked_on_loopback(host):
        return f"Expected a name or address of the loopback in `Host` but got {host[:64]!r}."
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return f"Expected a page of {host[:64]!r} itself but got the `Origin` {origin[:64]!r}."
    if headers.get("sec-fetch-site") == "cross-site":
        return f"Expected a page of {host[:64]!r} itself but got `Sec-Fetch-Site: cross-site`."
    return ""
