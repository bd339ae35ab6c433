"""Steps that are taken once: what a step made is kept as long as what it was made of is the same."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blastwatch.console import say
from blastwatch.digests import folder_digests
from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import write_json

STATE = "step.json"
Values = Mapping[str, Any]


def take_once(folder: Path, inputs: Values, make: Callable[[], object], *, what: str) -> bool:
    """Call `make`, which fills the folder, unless it filled it from these inputs before; returns whether it did.

    The inputs and the digest of every file are written last, so a step that was stopped is taken again. What is made
    anew is said together with its reason.

    Args:
        inputs: all that the result depends on, by name, as JSON has it: parameters, digests.
        what: name of the step, for the person at the terminal.
    """
    wanted = json.loads(json.dumps(inputs))
    known = read_state(folder)
    if known is not None:
        reasons = [*changes(known["inputs"], wanted), *_damage(folder, known["outputs"])]
        if not reasons:
            return False
        more = f" and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        say(f"{what} is done again: {'; '.join(reasons[:4])}{more}.")
        shutil.rmtree(folder)
    make()
    state = {"inputs": wanted, "outputs": folder_digests(folder, leave_out=[STATE])}
    partial = folder / f"{STATE}.partial"
    write_json(partial, state)
    partial.replace(folder / STATE)
    return True


def read_state(folder: Path) -> dict[str, Any] | None:
    """Inputs and digests of a step that was taken to its end; None of one that was not.

    Raises:
        DataError: where the file is none that `take_once` wrote.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged: {error}. Remove {folder} to make it anew.") from error
    if not isinstance(state, dict) or not {"inputs", "outputs"} <= set(state):
        raise DataError(f"Expected inputs and outputs in {path} but got something else. Remove {folder}.")
    return state


def changes(before: Values, now: Values) -> list[str]:
    """What differs between two sets of inputs, in words.

    >>> changes({"train.epochs": 2, "split": "a"}, {"train.epochs": 3, "split": "a"})
    ['train.epochs is 3 and was 2']
    """
    names = [*now, *(name for name in before if name not in now)]
    return [
        f"{name} is {_short(now.get(name, 'not there'))} and was {_short(before.get(name, 'not there'))}"
        for name in names
        if now.get(name) != before.get(name) or (name in now) != (name in before)
    ]


def _damage(folder: Path, outputs: Mapping[str, str]) -> list[str]:
    """Files that are no longer what the step wrote."""
    found = folder_digests(folder, leave_out=[STATE])
    return [f"{name} is missing or was changed" for name, digest in outputs.items() if found.get(name) != digest]


def _short(value: Any) -> Any:
    """A digest by its first digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made where it is missing.

    Raises:
        UsageError: where one is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"Another process is at work in {folder}. Wait for it, or name another folder: --out."
    with held(folder / ".lock", refusal):
        yield


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, whose folder is there.

    Raises:
        UsageError: with the text of `refusal`, where another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(refusal) from error
    try:
        yield
    finally:
        lock.release()
