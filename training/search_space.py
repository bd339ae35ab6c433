"""The space of a search: which parameters of training are tried, and between which values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from blastwatch.errors import UsageError
from training.parameters import NO_YAML, TrainParameters, checked, read_value

if TYPE_CHECKING:
    from optuna import Trial

SECTION = "train"
FORM = "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B|C, such as train.learning_rate=1e-4..3e-3:log"
KINDS = get_type_hints(TrainParameters)
Value = float | int | str | bool


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One parameter: choices, or all from low to high (both included), on the logarithm where `log`."""

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    @property
    def ends(self) -> tuple[Value, ...]:
        """All choices, or the lowest and the highest value."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def suggest(self, trial: "Trial") -> Value:
        if self.choices:
            chosen: Any = trial.suggest_categorical(self.key, self.choices)
            return chosen  # type: ignore[no-any-return]
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def read_space(file: Path | None, ranges: Sequence[str]) -> tuple[Knob, ...]:
    """The knobs of a YAML file (`KEY: LOW..HIGH`) and of a call (`KEY=LOW..HIGH`); the call's win. Sorted by key.

    Raises:
        UsageError: for a text of another form, an unknown key, a value that the key does not take, and an empty space.
    """
    texts = dict(_read(file)) if file else {}
    for text in ranges:
        key, mark, rest = text.partition("=")
        if not mark:
            raise UsageError(f"Expected {FORM} but got {text!r}.")
        texts[key] = rest
    if not texts:
        raise UsageError(
            f"Expected at least one parameter to search: --range {FORM}; or a file of them: --ranges FILE."
        )
    return tuple(read_knob(key, texts[key]) for key in sorted(texts))


def _read(file: Path) -> Mapping[str, str]:
    try:
        document = yaml.safe_load(file.read_text())
    except (OSError, *NO_YAML) as error:
        raise UsageError(f"Expected a YAML file of ranges at {file} but it cannot be read: {error}") from error
    if not isinstance(document, dict) or not all(
        isinstance(key, str) and isinstance(text, str) for key, text in document.items()
    ):
        raise UsageError(f"Expected keys and ranges as text in {file}, such as train.learning_rate: 1e-4..3e-3:log.")
    return document


def read_knob(key: str, text: str) -> Knob:
    """Read one range. Its ends, or its choices, are values that the key takes by itself; whether they go with the other
    parameters is seen once these are known (`training.search.Plan.check`)."""
    section, _, name = key.partition(".")
    if section != SECTION or name not in KINDS:
        raise UsageError(
            f"Expected one of {', '.join(f'{SECTION}.{known}' for known in KINDS)} to search but got {key!r}. "
            "What shapes cells, split or pack is not searched: it would change whom a trial is judged on."
        )
    knob = _choices(key, text) if ".." not in text else _range(key, text)
    for value in knob.ends:
        checked(SECTION, name, KINDS[name], value)
    return knob


def _choices(key: str, text: str) -> Knob:
    choices = tuple(read_value(key, part) for part in text.split("|"))
    same = any(one == other for one, other in combinations(choices, 2))  # not by a set: a list has no hash
    if len(choices) < 2 or same or None in choices:
        raise UsageError(f"Expected {FORM} but got {key}={text!r}: choices are at least two, and different.")
    return Knob(key=key, choices=choices)


def _range(key: str, text: str) -> Knob:
    ends, _, scale = text.partition(":")
    low, _, high = ends.partition("..")
    whole = KINDS[key.partition(".")[2]] is int
    try:
        first, last = (int(low), int(high)) if whole else (float(low), float(high))
    except ValueError as error:
        raise UsageError(f"Expected {FORM} but got {key}={text!r}: the ends are no numbers of this key.") from error
    if scale not in ("", "log") or not first < last or (scale and first <= 0):
        raise UsageError(f"Expected {FORM}, the lower end first, and above 0 with log, but got {key}={text!r}.")
    return Knob(key=key, low=first, high=last, whole=whole, log=bool(scale))


def describe(space: Sequence[Knob]) -> dict[str, Any]:
    """The space as JSON has it."""
    return {
        knob.key: list(knob.choices) if knob.choices else {"low": knob.low, "high": knob.high, "log": knob.log}
        for knob in space
    }
