"""Patients whose cells come one after another, as a service stores them."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from monitoring.store import PredictionRecord
from tests.cohorts import as_records, record

DAY = timedelta(days=1)


def cells_of(patient: str, start: datetime, probabilities: list[float], *, digest: str = "d") -> list[PredictionRecord]:
    """A cell a second with these probabilities."""
    return [
        record(
            f"{patient}-{digest}-{start:%H%M}-{number}", time=start + timedelta(seconds=number), patient=patient,
            probability=probability, label="all" if probability >= 0.5 else "hem", digest=digest,
        )
        for number, probability in enumerate(probabilities)
    ]  # fmt: skip


def visits(
    cohort: pd.DataFrame, groups: list[str], *, digest: str, start: datetime, every: timedelta = DAY / 2
) -> list[PredictionRecord]:
    """Each of these groups as a patient of its own, 30 of its cells each time; one may come again under another key."""
    random, records = np.random.default_rng(0), []
    for number, group in enumerate(groups):
        rows = cohort[cohort["group"] == group].sample(30, random_state=random)
        for one in as_records(rows, digest=digest, start=start + number * every):
            key = f"{start:%m%d}-{number}"
            records.append(replace(one, id=f"{key}-{one.id}", patient=key))
    return records
