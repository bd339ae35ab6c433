"""Every link of the documents to another, and to a heading of it, leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def _anchor(heading):
    """As the hosts of repositories make it: of the text alone, lower case, without signs."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def _dead(document, text):
    """Targets of links in `text`, as it stands in `document`, that lead nowhere."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        other = (document.parent / path).resolve() if path else document
        if not other.exists():
            found.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            found += [] if anchor in map(_anchor, headings) else [target]
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    assert _dead(document, document.read_text()) == []


def test_a_link_that_leads_nowhere_is_found():
    readme = ROOT / "README.md"
    text = "[a](docs/none.md) [b](docs/training.md#no-such-heading) [c](docs/settings.md) [d](https://example.org/#e)"
    assert _dead(readme, text) == ["docs/none.md", "docs/training.md#no-such-heading"]
