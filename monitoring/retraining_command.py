"""Runs the command that a finding starts and writes down how it ended, also where the monitor is gone by then.

    python -I retraining_command.py END SAID LOCK COMMAND...

END: file for `exit_code` and `ended_at`, as JSON. SAID: descriptor that is told why the command cannot be run, and
closed without a word once it runs. LOCK: descriptor that is open as long as this process or the command is there.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def run(end: Path, said: int, lock: int, command: list[str]) -> int:
    """Run the command to its end; returns its exit code, minus the signal's number where one ended it."""
    try:
        process = subprocess.Popen(command, pass_fds=[lock])  # noqa: S603  (what the owner of the policy file wrote)
    except OSError as error:
        os.write(said, str(error).encode())
        return 1
    os.close(said)
    code = process.wait()
    written = end.with_suffix(".writing")
    try:
        with written.open("w") as file:
            json.dump({"exit_code": code, "ended_at": datetime.now(UTC).isoformat()}, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(end)
    except OSError:  # a full disk, say: the log has the traceback
        written.unlink(missing_ok=True)
        raise
    return code


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
