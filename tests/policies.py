"""Promotion policies for tests that are about something else than a trained network's figures."""

from pathlib import Path
from typing import Any

import yaml

LENIENT: dict[str, dict[str, Any]] = {
    "non_inferiority": {"margin": 0.02, "confidence": 0.8, "least_patients": 2},
    "floors": {"sensitivity": None, "specificity": None},
    "calibration": {"largest_ece": None},
    "engine": {"largest_flip_rate": None, "largest_latency_ms": None, "golden_cells": False},
    "drift_reference": {"least_cells": None, "least_groups": None},
    "card": {"headings": None},
}


def lenient(folder: Path, **changed: Any) -> Path:
    """Write a policy under which a package of `tests.packages` passes every gate that the test is not about.

    Digests, signature, audit, split, groups and initial weights are judged as ever, and so is non-inferiority, by a
    narrow margin.

    Args:
        changed: keys of the policy over that, by section: `two_person=True`, `floors={"sensitivity": 0.95}`.
    """
    document: dict[str, Any] = {name: dict(section) for name, section in LENIENT.items()}
    for name, value in changed.items():
        document[name] = document.get(name, {}) | value if isinstance(value, dict) else value
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
