"""`GET /v1/history`: what served at a time and who made it so, read from the signed history beside the registry."""

from pathlib import Path
from typing import Any

from blastwatch import history
from blastwatch.errors import HistoryBroken, RegistryError, SettingsError, UsageError
from blastwatch.gate import Gate
from blastwatch.ledger import Ledger
from blastwatch.settings import Settings
from blastwatch.signing import open_trusted
from serving.problems import Problem

LATEST = 200  # entries that one answer holds


class Told:
    """Reads the history for the page and its route; keeps no connection between two calls."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._trusted = open_trusted(settings)

    def answer(self, at: str | None, *, follows: bool = False) -> dict[str, Any]:
        """What served at a time, the latest entries up to it, newest first, of how many, and the check of all.

        Args:
            at: ISO 8601; None is now, after every entry, whatever its time.
            follows: as of `none_to_ask`.

        Raises:
            Problem: the time is no time, or there is no history here, or it is not at hand, or has entries that cannot
                be read.
        """
        try:
            moment = history.parse_time(at) if at else None
        except UsageError as error:
            raise Problem("time-unreadable", str(error)) from error
        if self.none_to_ask(follows=follows):
            raise Problem("no-history", "This service has its version without a registry, and no history beside it.")
        if not self._at_hand():
            raise Problem("history-unavailable", "No history of the registry is at hand here.")
        name = self._settings.model_name
        ledger, faults = Ledger(self._settings.history_url, name), []
        try:
            rows = ledger.rows()
            faults = history.faults(rows, self._trusted, model=name)
            told = history.told(rows, moment)
            if told["version"]:
                told["gates"] = _with_verdicts(told["gates"])
            every = [row.record() for row in rows]
            records = every if moment is None else history.until(every, moment)
        except HistoryBroken as error:
            raise Problem(
                "history-broken", f"Entry {faults[0][0]}: {faults[0][1]}." if faults else str(error)
            ) from error
        except (RegistryError, SettingsError) as error:
            raise Problem("history-unavailable", "The history of the registry cannot be read.") from error
        finally:
            ledger.close()
        return {
            "told": told,
            "total": len(records),
            "entries": [record.to_dict() for record in reversed(records[-LATEST:])],
            "check": {"intact": not faults, "entries": len(rows), "faults": [f"{n}: {text}" for n, text in faults[:5]]},
        }

    def none_to_ask(self, *, follows: bool) -> bool:
        """Whether there is no history for this service, as for a bento, which is no failure.

        Args:
            follows: whether the service goes by a registry. That has a history, and one which is gone is a failure.
        """
        file = self._file()
        return not follows and file == self._settings.home / "history.db" and not file.is_file()

    def _at_hand(self) -> bool:
        """An embedded history that is not there must not be made by looking for it."""
        file = self._file()
        return file is None or file.is_file()

    def _file(self) -> Path | None:
        """Where the history lies; None where a server has it."""
        url = self._settings.history_url
        return Path(url.split("///", 1)[-1]) if url.startswith("sqlite") else None


def _with_verdicts(gates: Any) -> list[dict[str, Any]]:
    """The report of the gates, with the verdict of each in one word. Raises `HistoryBroken` where it is no report."""
    try:
        made = [Gate.stored(gate) for gate in gates]
    except (TypeError, AttributeError) as error:
        raise HistoryBroken("The report of the gates cannot be read.") from error
    return [gate | {"verdict": one.verdict.lower()} for gate, one in zip(gates, made, strict=True)]
