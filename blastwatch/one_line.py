"""A text of somebody else's in one line for a person, so that it looks like nothing but what it is."""

import unicodedata

_TURNING = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def turning(text: str) -> str:
    """The first sign of a text that turns the direction of what follows, "" for none: with it a text would be read as
    another than was signed."""
    return next((sign for sign in text if sign in _TURNING), "")


def breaking(text: str, *, allowed: str = "") -> str:
    """The first sign of a text that ends its line, moves the cursor, or is half a character; "" for none."""
    wrong = (sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp"))
    return next((sign for sign in wrong if sign not in allowed), "")


def one_line(text: str) -> str:
    r"""The text with each such sign escaped.

    >>> print(one_line("fine\n   3  tom  promote 2"))
    fine\n   3  tom  promote 2
    """
    return "".join(ascii(sign)[1:-1] if turning(sign) or breaking(sign) else sign for sign in text)
