"""Is a version not inferior to another on the same patients? A paired test by patient, on a stated margin.

    d_i  per patient: mean over the cells of (candidate right - champion right), from -1 to 1
    D    1/2 (mean d_i over patients with blasts + mean d_i over patients with normal cells)

D is the difference of balanced accuracy with every patient weighing the same. The candidate is not inferior where the
one-sided lower confidence bound of D is at least -margin. Non-inferiority is shown by that bound, never by the lack of
a significant difference (ICH E9 1998, section 3.3.2; ICH E10 2000, section 1.5).

Cells of one patient are not independent, so the patient is the unit: a mean per patient and the spread between patients
is the simple and robust way with clustered binary data (Rao & Scott 1992, doi:10.2307/2532311; for two readers of the
same cells Obuchowski 1998, Statistics in Medicine 17:1495). The classes are two strata with variances of their own, so
the bound is Student's with the degrees of freedom of Welch (1947, doi:10.1093/biomet/34.1-2.28) and Satterthwaite
(1946, doi:10.2307/3002019).

What few patients do to it stands in docs/promotion.md, simulated. A loss in rare patients of whom none is compared
shows nowhere, in the mean as little as in the spread (`unseen_share`). A stratum of one patient has no spread and is
not judged. Where no patient differs from another in d_i the bound is D itself: identical answers always pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE

ILL, HEALTHY = CLASS_NAMES[POSITIVE], CLASS_NAMES[1 - POSITIVE]
FEWEST = 2  # patients of a stratum, below which it has no spread


@dataclass(frozen=True, kw_only=True)
class Difference:
    """difference: D, above zero where the candidate is better; low: its lower bound; patients: by label."""

    difference: float
    low: float
    patients: dict[str, int]

    def within(self, margin: float) -> bool:
        """True where a loss of more than the margin is ruled out."""
        # A bound that equals -margin but for the rounding of its sum is within.
        return bool(self.low >= -margin - 1e-12)


def compare_by_patient(
    patients: Sequence[str],
    labels: Sequence[str],
    candidate_right: ArrayLike,
    champion_right: ArrayLike,
    *,
    confidence: float,
) -> Difference | None:
    """Difference of two versions over the same cells.

    Args:
        patients, labels: of every cell, `all` or `hem` the latter.
        candidate_right, champion_right: whether each answered the cell rightly.
        confidence: one-sided, from 0.5 to 1, 1 excluded.

    Returns:
        None where a label has fewer than two patients: nothing can be said then.
    """
    table = patient_differences(patients, labels, candidate_right, champion_right)
    by_label = {name: table.loc[table["label"] == name, "difference"].to_numpy() for name in (ILL, HEALTHY)}
    if min(map(len, by_label.values())) < FEWEST:
        return None
    difference, low = lower_bound(by_label[ILL], by_label[HEALTHY], confidence=confidence, shared=_shared(table))
    counts = {name: len(values) for name, values in by_label.items()}
    return Difference(difference=float(difference), low=float(low), patients=counts)


def unseen_share(patients: int, *, confidence: float) -> float:
    """The largest share of all patients of whom none may be among so many by chance: above it one is, with a
    probability of `confidence`.

    >>> round(unseen_share(5, confidence=0.95), 2)
    0.45
    """
    return float(1 - (1 - confidence) ** (1 / patients))


def patient_differences(
    patients: Sequence[str], labels: Sequence[str], candidate_right: ArrayLike, champion_right: ArrayLike
) -> pd.DataFrame:
    """One row a patient and label, sorted: patient, label, difference (d_i)."""
    gained = np.asarray(candidate_right, dtype=np.int64) - np.asarray(champion_right, dtype=np.int64)
    cells = pd.DataFrame({"patient": list(map(str, patients)), "label": list(labels), "gained": gained})
    # The sum of whole numbers does not depend on the order of the cells, their mean in floating point would.
    sums = cells.groupby(["patient", "label"], sort=True)["gained"].agg(["sum", "size"])
    return (sums["sum"] / sums["size"]).rename("difference").reset_index()


def lower_bound(
    ill: ArrayLike, healthy: ArrayLike, *, confidence: float, shared: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """D and its one-sided lower bound.

    Args:
        ill, healthy: d_i of the patients of each stratum, shapes (..., n) and (..., m), two patients or more each.
            Leading axes are as many separate comparisons.
        shared: covariance of the two means, above zero where patients stand in both strata; the bound then takes the
            smaller degrees of freedom.
    """
    from scipy.special import stdtrit  # Student's quantile, without the second that scipy.stats takes to load

    if not 0.5 <= confidence < 1:
        raise ValueError(f"Expected `confidence` from 0.5 to 1, 1 excluded, but got {confidence}")
    strata = [np.asarray(values, dtype=np.float64) for values in (ill, healthy)]
    if min(values.shape[-1] for values in strata) < FEWEST:
        raise ValueError(f"Expected {FEWEST} patients or more of each label but got {[v.shape[-1] for v in strata]}")
    means = [values.mean(axis=-1) for values in strata]
    # Variances of the means of the two strata, and their degrees of freedom.
    first, second = (values.var(axis=-1, ddof=1) / values.shape[-1] for values in strata)
    free, other = (values.shape[-1] - 1 for values in strata)
    difference = (means[0] + means[1]) / 2
    total = first + second
    # Without any spread the degrees of freedom do not matter, for the standard error is zero.
    below = first**2 / free + second**2 / other
    degrees = np.divide(total**2, below, out=np.ones_like(total), where=below > 0)
    if shared > 0:
        degrees = np.minimum(degrees, min(free, other))
    error = np.sqrt(total + 2 * shared) / 2
    return difference, difference - stdtrit(np.maximum(degrees, 1), confidence) * error


def _shared(table: pd.DataFrame) -> float:
    """Covariance of the means of the strata through patients who have cells of both labels, 0 where it is negative.

    A patient has one label as a rule. Where the audit ties subjects of two, their answers go together.
    """
    both = table.pivot(index="patient", columns="label", values="difference").reindex(columns=[ILL, HEALTHY])
    means, counts = both.mean(), both.count()
    known = (both - means).dropna()
    if len(known) < FEWEST:
        return 0.0
    product = float((known[ILL] * known[HEALTHY]).sum()) / (len(known) - 1)
    return max(0.0, product * len(known) / float(counts[ILL] * counts[HEALTHY]))
