"""Drift over patients, one after another: what no window of a few patients can show.

Four patients who are all healthy may come any day; forty in a row may not. So every patient enters a sequence once,
with the mean of each column over their first cells, and is held against the patients of the version's reference and
all who came before.

    1. The rank of a patient among these is a conformal p-value. While patients are exchangeable, such p-values are
       independent and uniform, whatever the column's distribution and however few the reference has (Vovk, Gammerman,
       Shafer 2022, Algorithmic Learning in a Random World, 2nd edition, chapter 8).
    2. Against that is bet: on high or low ranks, on the ends, on the middle, with a little of the stake moved from bet
       to bet at every step (Simple Jumper, algorithm 8.1 there). The stake S_n is a martingale that starts at 1.
    3. Nobody knows when a change comes, so the evidence of n patients sums over all beginnings, R_n = (R_(n-1) + 1) *
       S_n / S_(n-1) (Shiryaev 1963; Roberts 1966; for martingales Shin, Ramdas, Rinaldo 2024, New England Journal of
       Statistics in Data Science 2:229). Its mean after n patients is n, so by Doob the chance that it reaches c among
       the first n is at most n / c: no threshold is estimated, and looking after every patient costs nothing. That is
       said of one process from its first patient on; where it begins anew (`monitoring.patient_blocks`), the n of each
       add up.
    4. A column alarms at c = `PATIENTS_PER_FALSE_ALARM` over its share of the false alarms. What a network says has
       half of them, since a changed mix of patients shows there, and what is measured of an image the other half.

The change is dated where the stake was lowest. From there on patients stay out of what others are held against, and
the alarm stands until the latest `AGAIN` are again like those before the change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.scores import OF_IMAGES, PROBABILITY
from monitoring.statistics import STATISTICS

PATIENTS_PER_FALSE_ALARM = 1000
"""One false alarm of all columns together in so many patients, at most."""

LATEST = 30
"""Patients in a row whose mean is told as that of now."""

AGAIN = 75
"""Patients in a row who are as before a change end its alarm. Of 30, and each patient begins another row, some passed
while a change from two ill in three to one in three stood: six of ten alarms ended within 300 patients, of 75 one in
fourteen (13 patients known: one in six). After a return half of the alarms end within 70 patients, nine of ten within
105 (simulated)."""

ALIKE = 0.2  # p-value of Kolmogorov and Smirnov from which two groups of patients count as alike
JUMPS = 0.01  # share of the stake that moves to the other bets at every step
STEEPEST = 1.9  # slope of a bet on high or low ranks, below 2
STEPS = ((0.1, 0.5), (0.9, 0.5), (0.5, 0.1), (0.5, 0.9), (0.25, 0.75), (0.75, 0.25), (0.25, 0.02), (0.75, 0.98))
"""Bets (a, b): that the share b of the ranks, not a, lies below a."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Change:
    """An alarm, by places in the sequence: the first patient after the change, the one at whom the evidence was enough,
    and the first of those who are as before again, None while it stands."""

    since: int
    found: int
    until: int | None = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """What came of a column. evidence: since the sequence or the last alarm began, over what is needed; 1 alarms.
    baseline: what is known of patients before the latest change. changes: found here, oldest first. standing: the one
    that was found before and stands. ended: place of the first of those who ended that. behind: place of the patient
    behind whom the course goes on, where anything was found or ended."""

    evidence: float
    baseline: Floats
    changes: tuple[Change, ...]
    standing: Change | None = None
    ended: int | None = None
    behind: int | None = None

    @property
    def alarm(self) -> Change | None:
        """The one that stands."""
        return self.changes[-1] if self.changes and self.changes[-1].until is None else self.standing


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Where the course of a column goes on. baseline: what is known of patients before, of one that alarmed before the
    latest change. counts: who came behind all that were looked at then, shape (n,): behind the one at whom the evidence
    was enough, behind those who ended the alarm, or of the block. since: place of the first patient after a change that
    stands who is looked at. evidence: of the alarm, over what is needed; None where none stands."""

    baseline: Floats
    counts: NDArray[np.bool_]
    since: int = 0
    evidence: float | None = None


class Unlike:
    """Which `AGAIN` patients in a row were found unlike which baseline at the last look, so that a look tests only what
    it has not seen: an alarm that stands over a thousand patients takes 900 tests for each column. Known by their
    values, so whoever leaves the sequence or enters late changes no result."""

    def __init__(self) -> None:
        self._last: set[bytes] = set()
        self._now: set[bytes] = set()

    def turn(self) -> None:
        """A look begins: what the last one did not meet is forgotten."""
        self._last, self._now = self._now, set()

    def __contains__(self, of: bytes) -> bool:
        if of in self._last:
            self._now.add(of)
        return of in self._now

    def add(self, of: bytes) -> None:
        """These were found unlike."""
        self._now.add(of)


def shares(columns: Sequence[str]) -> dict[str, float]:
    """Each column's share of the false alarms; together 1."""
    measured = [name for name in columns if name in OF_IMAGES]
    kinds = [part for part in (measured, [name for name in columns if name not in measured]) if part]
    return {name: 1 / len(kinds) / len(part) for part in kinds for name in part}


def patient_means(cells: pd.DataFrame, most: int) -> pd.DataFrame:
    """Mean of statistics and probability over the cells of each group of a reference, at most so many of each, evenly
    spaced.

    Returns:
        Indexed by group; NaN for what was not answered.
    """
    names = [name for name in (*STATISTICS, PROBABILITY) if name in cells.columns]
    spread = [
        group.iloc[np.linspace(0, len(group) - 1, min(most, len(group))).round().astype(np.intp)]
        for _, group in cells.groupby("group", sort=True)
    ]
    return pd.concat(spread).groupby("group", sort=True)[names].mean()


def watched(known: pd.DataFrame) -> list[str]:
    """The columns that are watched: what is measured, and the probability; none that does not vary among those
    known."""
    names = [name for name in (*OF_IMAGES, PROBABILITY) if name in known.columns]
    return [name for name in names if known[name].nunique() > 1]


def courses(
    known: pd.DataFrame,
    came: pd.DataFrame,
    uniforms: Floats,
    begun: Mapping[str, Begun] | None = None,
    unlike: Unlike | None = None,
) -> dict[str, Course]:
    """What came of every column that is watched.

    Args:
        known: a row a patient of the reference. came: a row a patient who came, in order; the same columns. A patient
            without a value is left out of a column.
        uniforms: a number of [0, 1) for each patient who came, which breaks ties of ranks, shape (n,).
        begun: of the columns that do not begin with the first of them against those known alone.
        unlike: remembers between looks what was tested; None tests everything.
    """
    unlike = unlike or Unlike()
    unlike.turn()
    needed = {name: PATIENTS_PER_FALSE_ALARM / share for name, share in shares(watched(known)).items()}
    found = {}
    for name, enough in needed.items():
        values = came[name].to_numpy(np.float64)
        goes_on = None if begun is None else begun.get(name)
        there = np.flatnonzero(np.isfinite(values) if goes_on is None else np.isfinite(values) & goes_on.counts)
        reference = known[name].dropna().to_numpy(np.float64)
        course = follow(reference, values[there], uniforms[there], enough, goes_on, unlike)
        found[name] = _placed(course, there)
    return found


def follow(
    reference: Floats,
    stream: Floats,
    uniforms: Floats,
    needed: float,
    begun: Begun | None = None,
    unlike: Unlike | None = None,
) -> Course:
    """The course of one column.

    Args:
        reference: values of known patients, shape (r,), at least one. stream: of those who came, in order, shape (n,).
        uniforms: of [0, 1), shape (n,). needed: evidence at which it alarms. begun: where it goes on; the stream is of
            those alone who count then. unlike: as for `courses`.
    """
    unlike = unlike or Unlike()
    baseline, begin, ended = reference, 0, None
    changes: list[Change] = []
    if begun is not None:
        baseline = begun.baseline
        if begun.evidence is not None:
            ended = _again(baseline, stream, begin, unlike)
            if ended is None:
                stands = Change(since=begun.since, found=begun.since)  # at whom it was found may have left
                return Course(evidence=begun.evidence, baseline=baseline, changes=(), standing=stands)
            begin = ended + AGAIN
    while True:
        stake = stakes(p_values(baseline, stream[begin:], uniforms[begin:]), needed)
        evidence = evidence_of(stake)
        beyond = np.flatnonzero(evidence >= needed)
        if not len(beyond):
            last = float(evidence[-1]) / needed if len(evidence) else 0.0
            behind = begin - 1 if changes or ended is not None else None
            return Course(evidence=last, baseline=baseline, changes=tuple(changes), ended=ended, behind=behind)
        found = begin + int(beyond[0])
        since = begin + int(np.argmin(stake[: beyond[0] + 1]))
        baseline = np.concatenate([baseline, stream[begin:since]])
        until = _again(baseline, stream, found + 1, unlike)
        changes.append(Change(since=since, found=found, until=until))
        if until is None:
            reached = float(evidence[beyond[0]]) / needed
            return Course(evidence=reached, baseline=baseline, changes=tuple(changes), ended=ended, behind=found)
        begin = until + AGAIN


def p_values(known: Floats, stream: Floats, uniforms: Floats) -> Floats:
    """Smoothed conformal p-values: the share of patients so far, the new one among them, whose value is lower.

    Args:
        known: shape (r,). stream: in order, shape (n,); each is known to those after it. uniforms: the share of equal
            values that counts as lower, of [0, 1), shape (n,).

    Returns:
        float64, shape (n,), of [0, 1).
    """
    ordered = np.sort(known)
    found = np.empty(len(stream))
    for place, (value, uniform) in enumerate(zip(stream, uniforms, strict=True)):
        lower, upper = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right")
        found[place] = (lower + uniform * (upper - lower + 1)) / (len(ordered) + 1)
        ordered = np.insert(ordered, lower, value)
    return found


def stakes(ranks: Floats, enough: float) -> Floats:
    """A stake of 1 before each rank and after the last, shape (n + 1,); no further than where it is enough, since the
    evidence is more and the stake of a change that stays would outgrow a float."""
    from crepes.martingales import SimpleJumper

    return np.concatenate([[1.0], SimpleJumper(JUMPS, Bets()).apply(ranks, c=enough, return_index=False)])


class Bets:
    """What the library calls a betting function."""

    def apply(self, ranks: Floats) -> Floats:
        """What each bet makes of 1, shape (n, bets)."""
        from crepes.martingales import EpsilonBettingFunction, StepBettingFunction

        bets = [EpsilonBettingFunction([-STEEPEST, 0, STEEPEST]), *(StepBettingFunction(Gs=[b], A=a) for a, b in STEPS)]
        return np.concatenate([bet.apply(ranks) for bet in bets], axis=1)


def evidence_of(stake: Floats) -> Floats:
    """The sum over all beginnings after each step, of the stake before it and after, shape (n + 1,) and (n,)."""
    found, total = np.empty(len(stake) - 1), 0.0
    for place, factor in enumerate(stake[1:] / stake[:-1]):
        total = (total + 1) * factor
        found[place] = total
    return found


def _again(baseline: Floats, stream: Floats, begin: int, unlike: Unlike) -> int | None:
    """Place of the first `AGAIN` patients from a place on who are like the baseline; None where none are."""
    from scipy.stats import ks_2samp

    held = blake2b(np.sort(baseline).tobytes())
    for place in range(begin, len(stream) - AGAIN + 1):
        row = stream[place : place + AGAIN]
        hashed = held.copy()
        hashed.update(row.tobytes())
        if (of := hashed.digest()) in unlike:
            continue
        if ks_2samp(row, baseline).pvalue > ALIKE:
            return place
        unlike.add(of)
    return None


def _placed(course: Course, there: NDArray[np.intp]) -> Course:
    """With places among all patients, where some had no value."""

    def placed(change: Change) -> Change:
        until = None if change.until is None else int(there[change.until])
        return Change(since=int(there[change.since]), found=int(there[change.found]), until=until)

    return replace(
        course,
        changes=tuple(placed(change) for change in course.changes),
        ended=None if course.ended is None else int(there[course.ended]),
        behind=None if course.behind is None else int(there[course.behind]),
    )
