"""Several trainings of a cross-validation at a time, each in a process of its own.

A small network leaves a GPU waiting for the next kernel, and a machine with many cores gains little from giving all of
them to one small batch. Who has both trains several folds side by side.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from multiprocessing import get_context
from typing import Any

import torch

from blastwatch.cores import cores
from blastwatch.errors import BlastwatchError
from blastwatch.manifest import read_cells
from blastwatch.settings import Settings
from training.fold_answers import Answers, Folds, network_answers
from training.pack import open_pack
from training.recipes import Recipe

Turn = tuple[Recipe, int]  # what is trained, and the fold that it does not see


class TrainingKilled(BlastwatchError):
    """A process that trained ended without an answer and without an error."""


_told: list[tuple[dict[str, Any], Settings]] = []  # what a process begins with: the fields of `Folds` but the pack
_opened: list[Folds] = []  # what it opens once, at its first turn: an error of its initializer would be lost


def answers_side_by_side(
    turns: Sequence[Turn], folds: Folds, settings: Settings, *, processes: int
) -> Iterator[tuple[Turn, Answers]]:
    """Train and evaluate each turn; yields its answers as it is done, in whatever order that is.

    The first error is raised as it came; turns that have not begun are then left out, those that have are finished.

    Args:
        processes: how many at a time; each takes its share of the cores.

    Raises:
        TrainingKilled: where a process ended from outside, which ends the others too.
    """
    context = get_context("forkserver")  # a process that has touched a GPU cannot be forked
    context.set_forkserver_preload([__name__])
    # The pack is a memory map: each process opens it anew and shares the pages, where pickling would copy it.
    shared = {field.name: getattr(folds, field.name) for field in fields(folds) if field.name != "packed"}
    share = max(1, cores() // processes)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin, initargs=(shared, settings, share)
    ) as pool:
        try:
            waiting = {pool.submit(_take, turn): turn for turn in turns}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BrokenProcessPool as error:
            raise TrainingKilled(
                f"Expected an answer of every training but one of {processes} at a time was killed, probably for want "
                "of memory. Take fewer processes (--processes): the same call goes on where it stopped."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(shared: dict[str, Any], settings: Settings, threads: int) -> None:
    torch.set_num_threads(threads)
    _told.append((shared, settings))


def _take(turn: Turn) -> Answers:
    [(shared, settings)] = _told
    if not _opened:
        _opened.append(Folds(packed=open_pack(shared["pack"], read_cells(shared["cells"])), **shared))
    [folds] = _opened
    return network_answers(*turn, folds, settings)
