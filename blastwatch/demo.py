"""The whole chain, once: every step is a command that a user would type, against real servers on loopback."""

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from blastwatch import DISCLAIMER
from blastwatch.addresses import encrypted
from blastwatch.console import say
from blastwatch.embedded_store import make_embedded
from blastwatch.errors import BlastwatchError, UsageError
from blastwatch.manifest import SIDES, read_json, read_split
from blastwatch.processes import Processes, free_port, mlflow_server, script
from blastwatch.rounding import with_interval
from blastwatch.settings import load

SEED = 7
ASKED = 160  # held-out cells that are sent
PATIENCE = 120  # seconds for the monitor to have looked at them
STRENGTH = 2.0  # of the other stain: `blastwatch data restain --strength`
KNOBS = "deploy/demo/params.yaml"  # what the demo changes in params.yaml
NEEDED = ("dvc.yaml", "params.yaml", KNOBS, "deploy/demo/policy.yaml")  # of the checkout
SHOWN = ("weighted_f1", "auroc", "sensitivity", "specificity")
MARK = ".blastwatch-demo"  # an empty file in a work folder: what is there is a demo's, and a later one may empty it
UNMARKED = ("home", "dvc.yaml", "params.yaml", ".dvc/config")  # what a demo leaves in a folder without it

GAUGE = re.compile(r"^(\w+) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """What came of sending cells: the service's answers, the drift report, and what the monitor's gauge said."""

    answers: list[dict[str, Any]]
    report: dict[str, Any]
    gauge: bool


class Demo:
    """One run in a work folder of its own; the checkout is only read."""

    def __init__(self, checkout: Path, folder: Path, *, cells: Path | None, patients: int, each: int) -> None:
        self.checkout, self.folder, self.cells = checkout, folder, cells
        self.patients, self.each = patients, each
        self.home = folder / "home"
        self.started = time.monotonic()
        self.service, registry, self.gauges = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
        self.registry_port = _port(registry)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "BLASTWATCH_HOME": str(self.home),
            "BLASTWATCH_POLICY": str(checkout / "deploy/demo/policy.yaml"),
            "BLASTWATCH_PORT": str(_port(self.service)),
            "BLASTWATCH_URL": self.service,
            "BLASTWATCH_MONITOR_PORT": str(_port(self.gauges)),
            "BLASTWATCH_DRIFT_INTERVAL": "5",
            "BLASTWATCH_KEEP_IMAGES": "sampled",  # example cells for the drift page
            "BLASTWATCH_KEEP_SHARE": "0.5",
            "MLFLOW_TRACKING_URI": registry,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def run(self, knobs: Mapping[str, Mapping[str, Any]]) -> str:
        """Do every step; returns the summary.

        Args:
            knobs: what params.yaml holds, whole and checked.

        Raises:
            BlastwatchError: naming the step that failed, with what it printed.
        """
        self._prepare(knobs)
        make_embedded(load({"BLASTWATCH_HOME": str(self.home)}))
        with Processes(self.environment, self.home / "logs") as children:
            children.start("mlflow", mlflow_server(self.home, self.home / "mlartifacts", self.registry_port))
            with self._telling_how_to_go_on():
                self._pipeline(children)
                entry = self._promote()
            cells = self._held_out()
            # The monitor looks at as many predictions as are sent at once, so that the last look sees nothing else.
            self.environment["BLASTWATCH_DRIFT_WINDOW"] = str(len(cells))
            with Processes(self.environment, self.home / "logs") as answering:
                answering.start("service", [script("blastwatch"), "serve"])
                answering.start("monitor", [script("blastwatch"), "drift", "watch"])
                answering.wait_for("service", f"{self.service}/readyz")
                answering.wait_for("monitor", f"{self.gauges}/metrics")
                clean = self._ask(answering, cells, "Held-out cells")
                other = self._ask(answering, self._restained(cells), "The same cells in another stain")
        return self._summary(entry, clean, other)

    def _prepare(self, knobs: Mapping[str, Mapping[str, Any]]) -> None:
        check_checkout(self.checkout)
        check_emptied(self.folder, checkout=self.checkout, state=load().home)
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.home.mkdir(parents=True)
            (self.folder / MARK).touch()
            shutil.copy(self.checkout / "dvc.yaml", self.folder)
            (self.folder / "params.yaml").write_text(yaml.safe_dump(knobs, sort_keys=False))
        except OSError as error:
            raise UsageError(
                f"Expected a work folder that can be made and written to but got {self.folder}: "
                f"{error.strerror or error}. Name another: --dir"
            ) from error

    @contextmanager
    def _telling_how_to_go_on(self) -> Iterator[None]:
        """Say, where the pipeline fails or is stopped, how to go on there: another demo begins anew."""
        try:
            yield
        except (BlastwatchError, KeyboardInterrupt):
            if (self.folder / "data" / "source.dvc").is_file():  # before that there is nothing to go on with
                say(self._to_go_on())
            raise

    def _to_go_on(self) -> str:
        told = ("BLASTWATCH_HOME", "BLASTWATCH_POLICY")
        variables = " ".join(f"{name}={shlex.quote(self.environment[name])}" for name in told)
        return (
            "The next demo begins anew. What is done so far is kept; to go on with it:\n"
            f"    cd {shlex.quote(str(self.folder))}\n"
            f"    export PATH={shlex.quote(str(Path(script('blastwatch')).parent))}:$PATH\n"  # for dvc.yaml
            "    unset MLFLOW_TRACKING_URI\n"  # or the demo's model would be registered in the laboratory's
            f"    export {variables}\n"
            "    dvc repro && blastwatch registry register results/package\n"
            '    blastwatch registry promote candidate --reason "the demo"'
        )

    def _pipeline(self, children: Processes) -> None:
        if self.cells is None:
            self._step(f"Draw {self.patients * self.each} synthetic cells of {self.patients} patients")
            sizes = ["--patients", str(self.patients), "--cells", str(self.each), "--seed", str(SEED)]
            self._call("blastwatch", "data", "synth", *sizes, "--out", "data/source")
        else:
            self._step(f"Take the cells of {self.cells}")
            shutil.copytree(self.cells, self.folder / "data" / "source" / self.cells.name)
        self._step("Version the cells with DVC")
        self._call("dvc", "init", "--no-scm", "--quiet")
        # Relative: DVC writes it into a file of ASCII, and the folder may be of other letters.
        self._call("dvc", "remote", "add", "--default", "local", "remote", "--quiet")
        self._call("dvc", "add", "--quiet", "data/source")
        children.wait_for("mlflow", f"http://127.0.0.1:{self.registry_port}/health")
        self._step("Run the pipeline: import, audit, check, split, pack, train, evaluate, package")
        self._call("dvc", "repro", show=True)
        self._step("Run it again: nothing is left to do")
        again = self._call("dvc", "repro")
        if "Running stage" in again:
            raise BlastwatchError(f"Expected the second dvc repro to run nothing but it ran:\n{again}")
        self._call("dvc", "push", "--quiet")

    def _promote(self) -> dict[str, Any]:
        self._step("Register and promote")
        self._call("blastwatch", "registry", "register", "results/package", "--json")
        self._call("blastwatch", "registry", "promote", "candidate", "--reason", "the demo", "--json")
        entry: dict[str, Any] = json.loads(self._call("blastwatch", "registry", "show", "champion", "--json"))
        return entry

    def _held_out(self) -> list[Path]:
        """Test cells, taken in turn from every test patient."""
        cells = self.folder / "data" / "cells"
        rows = read_split(cells, self.folder / "data" / "split")
        tested = rows[rows["side"] == "test"].sort_values("path")
        turn = tested.groupby("subject").cumcount()
        chosen = tested.assign(turn=turn).sort_values(["turn", "subject"]).head(ASKED)
        root = (cells / read_json(cells / "import.json", made_by="blastwatch data import")["root"]).resolve()
        return [root / path for path in chosen["path"]]

    def _restained(self, cells: list[Path]) -> list[Path]:
        self._step("Give them another stain")
        out = self.folder / "restained"
        self._call("blastwatch", "data", "restain", *map(str, cells), "--out", str(out), "--strength", str(STRENGTH))
        return sorted(path for path in out.rglob("*") if path.suffix == ".bmp")

    def _ask(self, children: Processes, cells: list[Path], what: str) -> Asked:
        """Send cells to the service, compare what was captured with the reference, and scrape the monitor's verdict."""
        since = datetime.now(UTC).isoformat()
        self._step(f"{what}: ask the service about {len(cells)}")
        answers = json.loads(self._call("blastwatch", "predict", *map(str, cells), "--json"))
        time.sleep(1)  # capture writes within a fraction of a second
        self._step(f"{what}: drift report")
        report = json.loads(self._call("blastwatch", "drift", "report", "--since", since, "--json"))
        self._step(f"{what}: the monitor's gauges")
        children.check("monitor")
        return Asked(answers, report, self._gauge_at(datetime.fromisoformat(report["window"]["until"]).timestamp()))

    def _gauge_at(self, moment: float) -> bool:
        """`blastwatch_drift_detected`, once the monitor's report reaches up to a moment."""
        import httpx

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = dict(
                GAUGE.findall(httpx.get(f"{self.gauges}/metrics", timeout=30, verify=encrypted(self.gauges)).text)
            )
            if float(found["blastwatch_drift_window_end_timestamp_seconds"]) >= moment:
                return float(found["blastwatch_drift_detected"]) == 1
            time.sleep(0.5)
        raise BlastwatchError(f"Expected the monitor to report within {PATIENCE} s. See {self.home / 'logs'}.")

    def _step(self, text: str) -> None:
        say(f"[{time.monotonic() - self.started:5.0f} s] {text}")

    def _call(self, name: str, *arguments: str, show: bool = False) -> str:
        """Run an installed command in the work folder; returns its standard output. It ends with the demo."""
        with Processes(self.environment, self.home / "logs") as step:
            done = step.run([script(name), *arguments], self.folder, show=show)
        if done.returncode:
            said = "" if show else f":\n{(done.stdout + done.stderr)[-3000:]}"
            shown = " ".join([name, *arguments])[:200]
            raise BlastwatchError(f"`{shown}` ended with exit code {done.returncode}{said}")
        return done.stdout

    def _summary(self, entry: dict[str, Any], clean: Asked, other: Asked) -> str:
        metrics = read_json(self.folder / "results/evaluate/metrics.json", made_by="blastwatch evaluate")
        sides = read_json(self.folder / "data/split/split.json", made_by="blastwatch data split")["sides"]
        groups = {side: sum(row["groups"] for row in sides[side].values()) for side in SIDES}
        home = shlex.quote(str(self.home))
        kind = "SYNTHETIC cells: no figure says anything about patients" if metrics["synthetic"] else "real cells"
        counts, window = metrics["counts"], self.environment["BLASTWATCH_DRIFT_WINDOW"]  # of the cells asked last alone
        figures = [_figure(name, metrics["cells"][name]) for name in SHOWN]
        figures.append(_figure("three size numbers alone: auroc", metrics["size_baseline"]["auroc"]))
        return "\n".join(
            [
                "",
                f"Data      {kind}; patients: " + ", ".join(f"{side} {count}" for side, count in groups.items()),
                f"Test      {counts['cells']} cells of {counts['groups']} patients, 95 % intervals by patient",
                *(f"          {line}" for line in figures),
                f"Serves    version {entry['version']}, package {entry['digest'][:12]}",
                f"Answered  {_counts(clean.answers)}; in another stain: {_counts(other.answers)}",
                f"Drift     held-out cells: {_verdict(clean)}",
                f"          another stain:  {_verdict(other)}",
                f"Try       {shlex.quote(clean.answers[0]['path'])}",
                "          (held out: cells that the network was trained on may be referred as unlike new ones)",
                f"Open      {other.report['report']}",
                f"          {self.folder / 'results' / 'evaluate'} and {self.folder / 'results/package/card.md'}",
                f"          all pages: BLASTWATCH_HOME={home} BLASTWATCH_DRIFT_WINDOW={window} blastwatch up",
                f"{DISCLAIMER} Took {time.monotonic() - self.started:.0f} s.",
            ]
        )


def check_checkout(checkout: Path) -> None:
    """Raise `BlastwatchError` where a folder lacks what a demo reads."""
    for name in NEEDED:
        if not (checkout / name).is_file():
            raise BlastwatchError(f"Expected {name} in {checkout}. Run the demo from the checkout: make demo")


def check_emptied(folder: Path, *, checkout: Path, state: Path) -> None:
    """Refuse a work folder with anything in it that is not a demo's: a demo empties it first.

    Args:
        state: what BLASTWATCH_HOME names; the `home` of an earlier demo in the folder goes with that demo.

    Raises:
        UsageError: naming what would be lost.
    """
    place = folder.resolve()
    dear = {"the checkout": checkout, "your home directory": Path.home()}
    if state.resolve() != place / "home":
        dear["the state of Blastwatch (BLASTWATCH_HOME)"] = state
    for what, path in dear.items():
        if path.resolve().is_relative_to(place):
            raise UsageError(
                f"Expected a work folder without {what} in it, since it is emptied first, but got {folder}, which "
                f"holds {path}. Name another: --dir"
            )
    if folder.is_dir() and any(folder.iterdir()) and not _is_of_a_demo(folder):
        raise UsageError(
            f"Expected a work folder that is empty, not there yet, or of an earlier demo, since it is emptied first, "
            f"but {folder} holds other things. Name another (--dir), or remove it."
        )


def _is_of_a_demo(folder: Path) -> bool:
    """Whether a demo made it: by its mark, or by all of `UNMARKED`, with DVC in it as a demo sets it up."""
    if (folder / MARK).is_file():
        return True
    if not all((folder / name).exists() for name in UNMARKED):
        return False
    set_up = (folder / ".dvc/config").read_text()
    return "no_scm = True" in set_up and "remote = local" in set_up


def _figure(name: str, row: dict[str, float]) -> str:
    return f"{name:<32} {with_interval(row)}"


def _counts(answers: list[dict[str, Any]]) -> str:
    decisions = [answer["decision"] for answer in answers]
    return ", ".join(f"{name} {decisions.count(name)}" for name in ("all", "hem", "refer"))


def _verdict(asked: Asked) -> str:
    drifted = ", ".join(column["name"] for column in asked.report["columns"] if column["drifted"])
    return f"{f'DRIFT in {drifted}' if drifted else 'no drift'}; gauge blastwatch_drift_detected {asked.gauge:d}"


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])
