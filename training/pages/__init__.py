"""Pages that training writes: templates, each of which becomes one file that needs no network."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from blastwatch.rounding import fixed


def render(name: str, **values: Any) -> str:
    """Fill the template; every text is escaped, a value that is missing is an error, and `fixed` rounds a figure."""
    loader = PackageLoader("training", "pages")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters["fixed"] = fixed
    return pages.get_template(name).render(**values)
