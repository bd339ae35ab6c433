"""The tables of the database of predictions:

    predictions   one row an answer: what was said by which model version, the image statistics, the embedding
    labels        one row a label that came later, at most one a prediction; the last word counts
    label_words   every word on a label, also those that were taken back: what was known at a time
    images        pictures of answered cells, where the policy keeps any (`monitoring.image_store`)

`patient` and `site` are whatever the caller hashed, or empty.
"""

from typing import Any

import sqlalchemy as sa

from monitoring.database import UtcTime
from monitoring.statistics import STATISTICS

LATER = ("chroma_noise",)
"""Statistics that rows of an older Blastwatch lack, see `monitoring.revisions`; there they are read as NaN."""

METADATA = sa.MetaData()
_predictions = sa.Table(
    "predictions",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("model_version", sa.String(64), nullable=False),
    sa.Column("model_digest", sa.String(64), nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),
    sa.Column("label", sa.String(16), nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
    sa.Column("pixel_sha256", sa.String(64), nullable=False),
    sa.Column("concerns", sa.JSON, nullable=False),
    sa.Column("patient", sa.String(128), nullable=False),
    sa.Column("site", sa.String(128), nullable=False),
    *(sa.Column(name, sa.Double, nullable=name in LATER) for name in STATISTICS),
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("seen", sa.Boolean, nullable=True),  # whether the version learned from this image; NULL: nobody knows
)
sa.Index("predictions_by_model_and_time", _predictions.c.model_digest, _predictions.c.time)
_labels = sa.Table(
    "labels",
    METADATA,
    sa.Column("id", sa.String(64), sa.ForeignKey("predictions.id"), primary_key=True),
    sa.Column("label", sa.String(16), nullable=False),
    sa.Column("time", UtcTime, nullable=False),
)
_words = sa.Table(
    "label_words",
    METADATA,
    sa.Column("id", sa.String(64), sa.ForeignKey("predictions.id"), primary_key=True),
    sa.Column("time", UtcTime, primary_key=True),
    sa.Column("label", sa.String(16), nullable=False),
)
_images = sa.Table(
    "images",
    METADATA,
    # No foreign key: prediction and picture are written by two threads, and either may come first.
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("patient", sa.String(128), nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("png", sa.LargeBinary, nullable=False),
)
sa.Index("images_by_time", _images.c.time)


def every_word() -> sa.CompoundSelect[Any]:
    """All words on labels ever given: id, time, label. The union takes in labels that an older Blastwatch wrote."""
    return sa.union(*(sa.select(table.c.id, table.c.time, table.c.label) for table in (_words, _labels)))
