"""Is this image the kind of image that the model was trained on? Limits per statistic, and reasons one can read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from monitoring.statistics import TABLE, Statistic

if TYPE_CHECKING:
    import pandas as pd

Limits = Mapping[str, tuple[float, float]]

# The limits reach beyond the reference by this share of its spread: they are there to notice another kind of image
# (a field, a blank, another stain), not an unusual cell.
REACH = 0.5
_OUTER = (0.005, 0.995)  # quantiles that stand for the spread, so that one odd reference cell does not set a limit


def concerns(statistics: Mapping[str, float], limits: Limits) -> list[str]:
    """Reasons why an image is not this model's kind of image; empty when it is.

    Args:
        statistics: from `monitoring.statistics.image_statistics`.
        limits: lowest and highest value per statistic, from `quality_limits`; a statistic without limits is not judged.

    Returns:
        Sentences with the statistic, its value and the limit that it passed, in the order of the table.
    """
    if statistics["cell_area"] <= 0:
        return ["there is no cell: the image is black"]
    reasons = []
    for row in TABLE:
        if row.name not in limits:
            continue
        value, (low, high) = statistics[row.name], limits[row.name]
        if value < low:
            reasons.append(f"{row.low_reason} ({row.name} {value:.4g}, expected at least {low:.4g})")
        elif value > high:
            reasons.append(f"{row.high_reason} ({row.name} {value:.4g}, expected at most {high:.4g})")
    return reasons


def quality_limits(reference: "pd.DataFrame") -> dict[str, tuple[float, float]]:
    """Wide limits from the reference cells: lowest and highest value per statistic that has reasons, in its unit."""
    return {row.name: _limits(reference[row.name].to_numpy(dtype=np.float64), row) for row in TABLE if row.low_reason}


def _limits(values: np.ndarray[tuple[int], np.dtype[np.float64]], row: Statistic) -> tuple[float, float]:
    low, high = (float(value) for value in np.quantile(values, _OUTER))
    if row.ratio:
        factor = max((high / low) ** REACH, 1.25) if low > 0 else 2.0
        return low / factor, high * factor
    reach = max((high - low) * REACH, row.margin)
    return low - reach, high + reach
