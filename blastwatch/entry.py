"""One model version as the registry knows it: MLflow's tags, and what the signed history says of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from blastwatch import clocks, history
from blastwatch.history import Record
from blastwatch.model_store import Model, Version

METRIC_TAG = "blastwatch.metric."


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model version as the registry knows it.

    created, synthetic, metrics: as MLflow's tags have them, which whoever may write to MLflow may change:
        `Registry.check_files` holds them against the package, and a service tells those of the package.
    overridden: gates that it failed when it was promoted all the same.
    moved: aliases that it carries in MLflow though the history has them elsewhere, with the version there, "" for none:
        no service follows such an alias.
    word: number of the entry of the history that moved an alias here, where `proven` was asked; else 0.
    """

    version: str
    digest: str
    run_id: str
    created: str
    synthetic: bool
    registered_by: str
    aliases: list[str] = field(default_factory=list)
    promoted_at: str | None = None
    promoted_by: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    overridden: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    data_digest: str = ""
    split_digest: str = ""
    git_commit: str = ""
    word: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def entry_of(version: Version, model: Model, records: Sequence[Record] | None) -> Entry:
    """What the registry says of a version, from MLflow's tags and the history; None where the history is not asked."""
    tags, number = version.tags, version.number
    aliases = sorted(alias for alias, target in model.aliases.items() if target == number)
    moved = {} if records is None else _moved(aliases, number, records)
    records = records or []
    crowned, registered = history.crowned(records, number), history.registered(records, number)
    evidence = history.promoted(records, number)
    return Entry(
        version=number,
        digest=tags.get("blastwatch.digest", ""),
        run_id=version.run_id,
        created=tags.get("blastwatch.created", ""),
        synthetic=tags.get("blastwatch.synthetic") == "true",
        registered_by=registered.who if registered else tags.get("blastwatch.registered_by", ""),
        aliases=aliases,
        promoted_at=clocks.told_time(records, crowned) if crowned else None,
        promoted_by=crowned.who if crowned else None,
        metrics=_metrics(tags),
        overridden=evidence.overridden if evidence else [],
        moved=moved,
        data_digest=tags.get("blastwatch.data_digest", ""),
        split_digest=tags.get("blastwatch.split_digest", ""),
        git_commit=tags.get("blastwatch.git_commit", ""),
    )


def _moved(aliases: Sequence[str], number: str, records: Sequence[Record]) -> dict[str, str]:
    """The aliases of a version that the history has elsewhere, and where; other aliases than ours it does not know."""
    said = {alias: history.aliases(records).get(alias, "") for alias in aliases if alias in history.ALIASES}
    return {alias: version for alias, version in said.items() if version != number}


def _metrics(tags: Mapping[str, str]) -> dict[str, float]:
    """The figures among MLflow's tags. Somebody may have set one that is no finite number: it is left out, and
    `Registry.check_files` says that the package has others."""
    found = {}
    for name, text in tags.items():
        if name.startswith(METRIC_TAG):
            try:
                value = float(text)
            except ValueError:
                continue
            if math.isfinite(value):
                found[name.removeprefix(METRIC_TAG)] = value
    return found
