"""Names of subjects: one spelling of each, and which differ by nothing but their spelling."""

import re
import unicodedata
from collections.abc import Iterable

LEADING_ZEROS = re.compile(r"(?<![\d.,])0+(?=\d)", re.ASCII)


def one_spelling(text: str) -> str:
    """The text with every letter in its composed form (Unicode NFC), without blanks at its ends.

    A file system of a Mac takes letters with marks apart, a table that is typed has them whole: both are one person.

    >>> one_spelling("Mu\\u0308ller ") == "M\\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", text).strip()


def folded(subject: str) -> str:
    """What is left of a name without case, leading zeros, blanks, and marks that nobody sees.

    H3 and 3 stay two: a letter is no spelling. Unicode's compatible forms (NFKC) are one: full-width digits, NFD.

    >>> folded("P 007"), folded("p7"), folded("0"), folded("1.05"), folded("H3"), folded("3")
    ('p7', 'p7', '0', '1.05', 'h3', '3')
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", subject).casefold())
    seen = "".join(letter for letter in text if not letter.isspace() and unicodedata.category(letter) != "Cf")
    return LEADING_ZEROS.sub("", seen)


def spelled_alike(subjects: Iterable[str]) -> list[list[str]]:
    """The sets of two subjects or more that differ by their spelling alone; each sorted, and sorted by their first."""
    by_fold: dict[str, set[str]] = {}
    for subject in subjects:
        by_fold.setdefault(folded(subject), set()).add(subject)
    return sorted(sorted(alike) for alike in by_fold.values() if len(alike) > 1)


def shown(subject: str) -> str:
    """The name in quotes for people, so that blanks are seen; what is no plain letter is escaped.

    >>> print(shown("Mu\\u0308ller"))
    'Mu\\u0308ller'
    """
    plain = subject == unicodedata.normalize("NFKC", subject) and subject.isprintable()
    return repr(subject) if plain else ascii(subject)
