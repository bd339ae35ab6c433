"""The service without what watching costs: no image statistics, no record. For `tests.benchmarks.capture`."""

import monitoring.capture
import serving.predictor
from monitoring.statistics import STATISTICS

NOTHING = dict.fromkeys(STATISTICS, 0.0)

# Before the service is imported: its modules take these names from here.
serving.predictor.image_statistics = lambda _crop, _preprocessing: NOTHING
serving.predictor.concerns = lambda _statistics, _limits: []
monitoring.capture.Capture.submit = lambda _self, _record: True

from serving.service import Blastwatch  # noqa: E402

__all__ = ["Blastwatch"]
