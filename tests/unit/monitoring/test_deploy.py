"""The rules and the dashboard name metrics that exist, and the checkers of Prometheus and Alertmanager accept them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from monitoring.doubts import REASONS
from monitoring.metrics import MonitorMetrics
from monitoring.performance import CONFIRMED, OPEN, STATES, UNCHECKED, UNTRUSTED
from serving.gpus import Gpus
from serving.metrics import ServiceMetrics
from tests.fake_driver import FakeDriver

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
METRIC = re.compile(r"\bblastwatch_\w+")


@pytest.fixture(scope="module")
def exported():
    """Every series name and its labels that the two processes can export."""
    registry = CollectorRegistry()
    MonitorMetrics(registry).tell_ahead(0)
    ServiceMetrics(registry)
    registry.register(Gpus(FakeDriver(2)))
    names = {}
    for metric in registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        names.update(dict.fromkeys((metric.name + end for end in ends), metric.type))
    return names


def expressions():
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_that_is_named_exists(where, expression, exported):
    named = set(METRIC.findall(expression))
    assert named <= set(exported), f"{where} names {sorted(named - set(exported))}"
    assert named or "up{" in expression


def test_every_metric_is_shown_somewhere(exported):
    shown = {name for _, expression in expressions() for name in METRIC.findall(expression)}
    series = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported}
    bare = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in shown}
    assert series == bare


@pytest.mark.system
def test_every_expression_can_be_evaluated_where_there_are_two_of_each_process(tmp_path):
    """Two monitors, or replicas of the service, have series of the same labels but for the instance."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: it comes with the Debian package prometheus")
    parts = [*vars(MonitorMetrics(CollectorRegistry())).values(), *vars(ServiceMetrics(CollectorRegistry())).values()]
    series = []
    for part in (part for part in parts if isinstance(part, MetricWrapperBase)):
        labels = "".join(f', {name}="one"' for name in part._labelnames)
        end = "_total" if part._type == "counter" else ""
        series += [f'{part._name}{end}{{job="monitor", instance="{name}:3001"{labels}}}' for name in "ab"]
    tests = {
        "input_series": [{"series": one, "values": "1x10"} for one in series],
        "promql_expr_test": [{"expr": expression, "eval_time": "5m"} for _, expression in expressions()],
    }
    path = tmp_path / "tests.yml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [{"interval": "1m", **tests}]}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert "expr:" in done.stderr and "err:" not in done.stderr, done.stderr


def test_every_alert_says_what_to_do():
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert all(len(words.split()) > 2 for words in rule["annotations"].values()), rule["alert"]
            assert rule["labels"]["severity"] in ("page", "ticket")


def test_panels_do_not_overlap():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def single_figures():
    return {panel["title"]: panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] == "stat"}


def overrides(panel):
    """Of each series that is shown otherwise than the others of its tile, by its name: what is."""
    return {
        one["matcher"]["options"]: {shown["id"]: shown["value"] for shown in one["properties"]}
        for one in panel["fieldConfig"]["overrides"]
    }


def test_no_single_figure_is_coloured_by_thresholds_that_nobody_chose():
    """Those of Grafana are green, and red from 80: of cells in a window, of an age in seconds, of a 1 for an alarm."""
    stats, named = single_figures(), set(STATES) | {f"doubted: {reason}" for reason in REASONS}
    for title, panel in stats.items():
        shown = panel["fieldConfig"]["defaults"]
        assert shown["thresholds"]["steps"][0]["value"] is None, title
        assert set(overrides(panel)) <= {target["legendFormat"] for target in panel["targets"]} | named, title
    ages = [
        stats["Age of the last report"]["fieldConfig"]["defaults"],
        overrides(stats["Failed looks"])["since the last look"],
    ]
    assert [age["unit"] for age in ages] == ["s", "s"]
    (fell,) = stats["Accuracy fell"]["fieldConfig"]["defaults"]["mappings"]
    assert fell["options"] == {"0": {"text": "no", "color": "green"}, "1": {"text": "fell", "color": "red"}}
    estimate = stats["The estimate"]
    assert estimate["options"]["textMode"] == "name"
    colours = {state: shown["color"]["fixedColor"] for state, shown in overrides(estimate).items()}
    doubted = {f"doubted: {reason}": "orange" for reason in REASONS}
    assert colours == {UNCHECKED: "text", OPEN: "text", CONFIRMED: "green", UNTRUSTED: "red"} | doubted


def test_a_single_figure_is_the_one_of_now():
    """Over a range of hours a tile would show the last there was: of a monitor that ended, of a verdict long gone."""
    stats = single_figures()
    assert all(target.get("instant") is True for panel in stats.values() for target in panel["targets"])
    (drift,) = stats["Drift"]["targets"]
    # The gauge of the verdict is 0 also without one; thresholds are there only with one.
    assert drift["expr"] == "blastwatch_drift_detected and on (job, instance) blastwatch_drift_threshold"
    # That of an accuracy that fell likewise, where nothing can be said.
    (fell,) = stats["Accuracy fell"]["targets"]
    assert fell["expr"] == (
        "blastwatch_performance_fell and on (job, instance, kind) blastwatch_performance_verdict == 1"
    )
    assert stats["Accuracy fell"]["fieldConfig"]["defaults"]["noValue"] == "no verdict"
    shown = stats["Drift"]["fieldConfig"]["defaults"]
    assert shown["noValue"] == "no verdict"
    assert [step["color"] for step in shown["thresholds"]["steps"]] == ["#808080"]  # what has no value gets the first


@pytest.mark.system
def test_of_an_accuracy_on_too_few_cells_no_verdict_is_shown(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: it comes with the Debian package prometheus")
    (target,) = single_figures()["Accuracy fell"]["targets"]
    labels = 'job="monitor", instance="a:3001", kind="%s"'
    fell, verdict = (f"blastwatch_performance_{name}{{{labels}}}" for name in ("fell", "verdict"))
    accuracy = f'blastwatch_performance_ratio{{{labels}, figure="accuracy", bound="value"}}'
    series = {
        fell % "estimated": 0, verdict % "estimated": 1, accuracy % "estimated": 0.9,
        fell % "realised": 0, verdict % "realised": 0, accuracy % "realised": 0.9,
    }  # fmt: skip
    expected = [{"labels": fell % "estimated", "value": 0}]
    tests = {
        "input_series": [{"series": one, "values": f"{value}x10"} for one, value in series.items()],
        "promql_expr_test": [{"expr": target["expr"], "eval_time": "5m", "exp_samples": expected}],
    }
    path = tmp_path / "tests.yml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [{"interval": "1m", **tests}]}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_provisioning_is_yaml():
    for path in (DEPLOY / "grafana" / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1


@pytest.mark.system
@pytest.mark.parametrize(
    ("words", "folder", "package"),
    [
        (("promtool", "check", "config", "prometheus.yml"), "prometheus", "prometheus"),
        (("promtool", "check", "rules", "rules.yml"), "prometheus", "prometheus"),
        (("promtool", "test", "rules", "rules_test.yml"), "prometheus", "prometheus"),
        (("promtool", "test", "rules", "rules_days_test.yml"), "prometheus", "prometheus"),
        (("amtool", "check-config", "alertmanager.yml"), "alertmanager", "prometheus-alertmanager"),
    ],
)
def test_accepted_by_its_own_checker(words, folder, package):
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is missing: it comes with the Debian package {package}")
    done = subprocess.run(words, cwd=DEPLOY / folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
