"""What the pages of service and monitor have in common: what a browser may do with them, and how they look."""

from pathlib import Path

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
