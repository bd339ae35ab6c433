"""What a finding of the monitor may start: one command, by policy. It promotes nothing.

    retraining:                      in the file that BLASTWATCH_POLICY names
      command: [sh, retrain.sh]      for instance: dvc repro && blastwatch registry register results/package
      findings: [drift, realised]
      after_hours: 24
      pause_days: 7

A finding that has stood for `after_hours` starts the command, which is told why in the JSON file that
BLASTWATCH_FINDING names. It runs under BLASTWATCH_UNATTENDED=1, where the registry lets nobody promote: what it trains
becomes a candidate at most, and a person judges it. The monitor may end meanwhile and the command goes on: a lock that
the command holds tells the next monitor that it still runs, and a file how it ended (`monitoring.retraining_command`).
Where the lock is free and that file empty, it was ended together with the monitor, as in a container.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from blastwatch import private_file
from blastwatch.errors import BlastwatchError, DataError
from blastwatch.policy import FINDINGS, RetrainingPolicy
from blastwatch.settings import UNATTENDED_VARIABLE, Settings
from blastwatch.state_files import try_lock
from monitoring.drift import DriftReport

FINDING_VARIABLE = "BLASTWATCH_FINDING"
DRIFT, PATIENTS, ESTIMATED, REALISED = FINDINGS
ENDED = (
    "it was ended before it had come to its end, as with its container, or how it ended could not be written down, as "
    "on a full disk; its log tells how far it came"
)
_RUNNER = Path(__file__).with_name("retraining_command.py")

_log = logging.getLogger("blastwatch.monitor")


@dataclass(frozen=True, kw_only=True)
class Started:
    """One start, as `home/retraining/last.json` keeps it; times in ISO 8601.

    ended_at, exit_code: empty and None while it runs; no exit code where it could not be started or was ended.
    problem: why it could not be started, or that it was ended; else empty.
    """

    finding: str
    version: str
    since: str
    started_at: str
    log: str
    ended_at: str = ""
    exit_code: int | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a look of the monitor found.

    report: None where no new prediction came: then what was found before stands on, unless `verdict` is False: too few
    cells are left to say anything. patients: from `monitoring.patient_report`. performance: from
    `monitoring.performance_report.report`.
    """

    report: DriftReport | None
    verdict: bool = True
    patients: Mapping[str, Any]
    performance: Mapping[str, Any]


class Retraining:
    """Call `look` after each look of the monitor."""

    def __init__(self, settings: Settings, policy: RetrainingPolicy) -> None:
        self._policy = policy
        self._folder = settings.home / "retraining"
        self._process: subprocess.Popen[bytes] | None = None
        self._standing: dict[str, datetime] = {}
        self._version = ""
        self.last = self._read_last() if policy.command else None  # nobody asks for it otherwise

    def look(self, version: str, findings: Findings, *, at: datetime) -> Started | None:
        """Take note of what stands, and start the command where the policy wants it.

        Args:
            at: now, with a time zone.

        Returns:
            What was started now, None for nothing.

        Raises:
            BlastwatchError: the folder `retraining` cannot be written.
        """
        if not self._policy.command:
            return None
        if version != self._version:
            self._standing, self._version = {}, version
        self._note(findings, at)
        due = [name for name, since in self._standing.items() if at - since >= self._after]
        try:
            self._see_whether_ended(at)
            return None if not due or self._rests(at) else self._start(due[0], findings, at)
        except OSError as error:
            raise BlastwatchError(
                f"What a finding starts is kept in {self._folder}, which cannot be written: {error}. Make room, or "
                "give the monitor's account the right to."
            ) from error

    def document(self) -> dict[str, Any] | None:
        """For the page: the last start and whether it still runs; None where the policy names no command."""
        if not self._policy.command:
            return None
        last = None if self.last is None else asdict(self.last) | {"running": self.running()}
        return {"findings": list(self._policy.findings), "last": last}

    def running(self) -> bool:
        """Whether a command runs that this monitor or an earlier one started."""
        if not self._policy.command:
            return False
        if self._process is not None:
            return self._process.poll() is None
        lock = self._lock()
        if lock is not None:
            lock.close()
        return lock is None

    @property
    def failed(self) -> bool:
        """Whether the last start, for the version that is watched, failed, was ended or could not be made."""
        last = self.last if self._policy.command else None
        return last is not None and last.version == self._version and bool(last.problem or last.exit_code)

    @property
    def _after(self) -> timedelta:
        return timedelta(hours=self._policy.after_hours)

    def _note(self, findings: Findings, at: datetime) -> None:
        now, report = findings.performance["now"], findings.report
        found = {
            DRIFT: (findings.verdict and DRIFT in self._standing) if report is None else report.drifted,
            PATIENTS: bool(findings.patients["drifted"]),
            ESTIMATED: bool(now["latest"]["fell"][ESTIMATED]),
            REALISED: bool(now["labelled"]["fell"][REALISED]),
        }
        wanted = [name for name in self._policy.findings if found[name]]
        self._standing = {name: min(self._standing.get(name, at), at) for name in wanted}  # a clock may be set back

    def _rests(self, at: datetime) -> bool:
        return self.running() or self._rests_since_last(at)

    def _rests_since_last(self, at: datetime) -> bool:
        if self.last is None:
            return False
        # Either way: a start that lies ahead was made by a clock that was, and must not hold off for as long as that.
        return abs(at - datetime.fromisoformat(self.last.started_at)) < timedelta(days=self._policy.pause_days)

    def _start(self, finding: str, findings: Findings, at: datetime) -> Started | None:
        lock = self._lock()
        if lock is None:  # another monitor of this home was faster
            return None
        with lock:
            self.last = self._read_last()
            if self._rests_since_last(at):  # it was, and its command has ended
                return None
            return self._start_locked(lock, finding, findings, at)

    def _start_locked(self, lock: IO[str], finding: str, findings: Findings, at: datetime) -> Started:
        stamp = at.strftime("%Y%m%dT%H%M%SZ")
        started = Started(
            finding=finding, version=self._version, since=self._standing[finding].isoformat(),
            started_at=at.isoformat(), log=str(self._folder / f"{stamp}.log"),
        )  # fmt: skip
        facts = self._folder / f"{stamp}.json"
        told = asdict(started) | {
            "report": findings.report.document if findings.report else None,
            "patients": findings.patients,
            "performance": findings.performance["now"],
        }
        facts.write_text(json.dumps(told, indent=2) + "\n")
        _end_of(started).write_bytes(b"")
        self._keep(started)  # first: a command that no file tells of would be started again at once
        if refused := self._run(started, facts, lock):
            problem = f"{self._policy.command[0]!r} cannot be run: {refused}"
            started = replace(started, ended_at=at.isoformat(), problem=problem)
            self._keep(started)
            _log.error("Retraining was not started: %s", problem)
        else:
            _log.warning("Retraining was started (%s since %s); log: %s", finding, started.since, started.log)
        return started

    def _run(self, started: Started, facts: Path, lock: IO[str]) -> str:
        """Start the command; returns why it cannot be run, "" where it runs."""
        with Path(started.log).open("ab") as log:
            heard, said = os.pipe()
            runner = [sys.executable, "-I", str(_RUNNER), str(_end_of(started)), str(said), str(lock.fileno())]
            with os.fdopen(heard) as answer:
                try:
                    process = subprocess.Popen(  # noqa: S603  (what the owner of the policy file wrote, no shell)
                        [*runner, *self._policy.command],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                        env={**os.environ, FINDING_VARIABLE: str(facts), UNATTENDED_VARIABLE: "1"},
                        pass_fds=[lock.fileno(), said],
                    )  # fmt: skip
                except OSError as error:
                    return str(error)
                finally:
                    os.close(said)
                if refused := answer.read():
                    process.wait()
                    return refused
        self._process = process
        return ""

    def _see_whether_ended(self, at: datetime) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is None and (self.last is None or self.last.ended_at):
            return
        self._process, lock = None, self._lock()
        with lock or nullcontext():
            self.last = self._read_last() or self.last  # another monitor may have started the next one since
            if self.last is None or self.last.ended_at:
                return
            said = _read_end(self.last)
            if said:
                self._keep(replace(self.last, **said))
            elif said is not None and lock is not None:
                self._keep(replace(self.last, ended_at=at.isoformat(), problem=ENDED))
            else:
                return
        code, why = self.last.exit_code, self.last.problem or f"it ended with exit code {self.last.exit_code}"
        _log.log(logging.INFO if code == 0 else logging.ERROR, "Retraining: %s (%s)", why, self.last.log)

    def _lock(self) -> IO[str] | None:
        """The open lock, held; None where a running command holds it. It is the command's too, as long as it runs."""
        return try_lock(self._folder / "lock")

    def _keep(self, started: Started) -> None:
        """On the disk, so that no power cut makes the next monitor start it again."""
        content = json.dumps(asdict(started), indent=2, sort_keys=True) + "\n"
        private_file.replace(self._folder / "last.json", content.encode(), mode=0o644)
        self.last = started

    def _read_last(self) -> Started | None:
        path = self._folder / "last.json"
        if not path.is_file():
            return None
        try:
            found = Started(**json.loads(path.read_text()))
            if datetime.fromisoformat(found.started_at).tzinfo is None:
                raise ValueError(f"no time zone in {found.started_at!r}")
        except (ValueError, TypeError) as error:
            raise DataError(
                f"Expected in {path} what a finding started last but it cannot be read: {error!r}. Remove the file; "
                "the next finding then starts the command again."
            ) from error
        return found


def _end_of(started: Started) -> Path:
    """The file in which stands how it ended; empty until then."""
    return Path(started.log).with_suffix(".ended.json")


def _read_end(started: Started) -> dict[str, Any] | None:
    """`ended_at` and `exit_code`; empty where nothing is said, None where an older Blastwatch started it."""
    path = _end_of(started)
    if not path.is_file():
        return None
    if not (content := path.read_text()):
        return {}
    try:
        said = json.loads(content)
        return {"exit_code": int(said["exit_code"]), "ended_at": datetime.fromisoformat(said["ended_at"]).isoformat()}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"Expected in {path} how the command ended that a finding started but it cannot be read: {error!r}. "
            "Remove the file; its log tells how it ended."
        ) from error
