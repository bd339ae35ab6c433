"""schemathesis against a service that runs: requests made from /docs.json, good and bad, and answers checked by it.

No answer is a 5xx, each has a status, a media type, headers and a body that the document names, what the document
forbids is refused, and so is every other method.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_schemathesis(url: str, *, examples: int, key: str | None = None, seconds: float = 600) -> tuple[int, str]:
    """Its exit code, 0 where it found nothing, and what it printed.

    Args:
        examples: random requests an operation, beside those of the phase that covers each constraint once.
        key: API key that is sent; with one it also tries what happens without.
    """
    words = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    words += ["--config-file", str(ROOT / "tests" / "schemathesis.toml"), "run", f"{url}/docs.json", "--no-color"]
    words += ["--phases", "coverage,fuzzing,stateful", "--max-examples", str(examples), "--continue-on-failure"]
    words += ["-H", f"Authorization: Bearer {key}"] if key else ["--exclude-checks", "ignored_auth"]
    variables = os.environ | {"SCHEMATHESIS_HOOKS": "tests.schemathesis_files"}
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=seconds)
    return done.returncode, done.stdout + done.stderr
