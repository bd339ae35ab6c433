"""All settings of the running parts in one table: name, environment variable, default, help.

What shapes a model stands in `params.yaml` instead, under DVC.
"""

import difflib
import getpass
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from blastwatch.addresses import shown
from blastwatch.errors import SettingsError
from blastwatch.setting_values import (
    address,
    api_key,
    at_most,
    count,
    count_or_none,
    fraction,
    not_negative,
    one_of,
    optional_path,
    path,
    path_or_word,
    port,
    positive,
    span_target,
    switch,
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table. `default` is text, as it would stand in the environment; "" means: derived, see `help`."""

    name: str
    variable: str
    default: str
    parse: Callable[[str], Any]
    help: str


IMAGE_POLICIES = KEEP_NEVER, KEEP_SAMPLED, KEEP_REFERRED = "never", "sampled", "referred"
LONGEST_DAYS = 36_500  # a century: what is farther away than any prediction leaves the range of dates sooner or later
UNATTENDED_VARIABLE = "BLASTWATCH_UNATTENDED"
LONGEST_ACTOR = 255
PREFIX = "BLASTWATCH_"
NO_SETTINGS = (
    "BLASTWATCH_FINDING", "BLASTWATCH_KEYLESS", "BLASTWATCH_LIVE", "BLASTWATCH_SETTLED",
    "BLASTWATCH_SUPERVISOR", "BLASTWATCH_DB_PASSWORD", "BLASTWATCH_GRAFANA_PASSWORD",
)  # fmt: skip
"""What else may stand in the environment: what one of our processes tells another, and what deploy/compose.yaml reads."""

ENGINES = (
    "auto", "openvino-f32", "openvino-bf16", "openvino-int8", "torch-f32", "torch-bf16", "torch-bf16-graphs",
    "torch-f16-graphs",
)  # fmt: skip

TABLE: tuple[Setting, ...] = tuple(
    Setting(name=name, variable=variable, default=default, parse=parse, help=text)
    for name, variable, default, parse, text in (
        ("home", "BLASTWATCH_HOME", ".blastwatch", path, "folder that holds the embedded state"),
        ("tracking_uri", "MLFLOW_TRACKING_URI", "", str, "MLflow server or store; empty: mlflow.db under home"),
        ("predictions_url", "BLASTWATCH_PREDICTIONS_URL", "", str, "database of predictions; empty: predictions.db under home"),
        ("experiment", "BLASTWATCH_EXPERIMENT", "blastwatch", str, "MLflow experiment of the training runs"),
        ("model_name", "BLASTWATCH_MODEL_NAME", "blastwatch", str, "registered model in MLflow"),
        ("model_alias", "BLASTWATCH_MODEL_ALIAS", "champion", str, "alias of the version that serves"),
        ("actor", "BLASTWATCH_ACTOR", "", str, "who acts on the registry, where MLflow has no accounts; empty: the login name"),
        ("history_url", "BLASTWATCH_HISTORY_URL", "", str, "database of the registry's history; empty: history.db under home"),
        ("policy", "BLASTWATCH_POLICY", "", optional_path, "file of the promotion policy; empty: the defaults in blastwatch/policy.yaml"),
        ("signing_key", "BLASTWATCH_SIGNING_KEY", "", optional_path, "private key (Ed25519, PEM) that signs the history; empty: made under home with the first version"),
        ("trusted_keys", "BLASTWATCH_TRUSTED_KEYS", "", optional_path, "folder of public keys, ROLE/NAME.pem; empty: the one made under home"),
        ("lock_seconds", "BLASTWATCH_LOCK_SECONDS", "600", positive, "longest wait for another writer of the registry, in seconds"),
        ("unattended", UNATTENDED_VARIABLE, "0", switch, "1: nobody is there, so nothing is promoted or rolled back; set for what the monitor starts"),
        ("engine", "BLASTWATCH_ENGINE", "auto", one_of(*ENGINES), "inference engine; auto: torch-f16-graphs on a GPU, else openvino-f32"),
        ("threads", "BLASTWATCH_THREADS", "", str, "inference threads of a service process; empty: its share of the cores, or of its container's limit of CPU"),
        ("host", "BLASTWATCH_HOST", "127.0.0.1", address, "IP address that the service binds; localhost: 127.0.0.1"),
        ("port", "BLASTWATCH_PORT", "3000", port, "port of the prediction service"),
        ("workers", "BLASTWATCH_WORKERS", "1", count, "processes of the prediction service"),
        ("api_keys", "BLASTWATCH_API_KEYS", "", optional_path, "folder of the service's API keys; empty: api-keys under home"),
        ("api_key", "BLASTWATCH_API_KEY", "", api_key, "API key that `blastwatch predict` sends"),
        ("rate_limit", "BLASTWATCH_RATE_LIMIT", "0", not_negative, "cells, or other calls, a second that one caller may send over time; 0: no limit"),
        ("rate_burst", "BLASTWATCH_RATE_BURST", "64", count, "cells, or other calls, that one caller may send at once where there is a limit"),
        ("patient_salt", "BLASTWATCH_PATIENT_SALT", "", optional_path, "file of the salt that patients are hashed with, one for all services on a database; empty: patient.salt under home"),
        ("audit_log", "BLASTWATCH_AUDIT_LOG", "", path_or_word("-", "off"), "file of the audit log; - for standard output, off for none; empty: logs/audit.jsonl under home"),
        ("traces", "BLASTWATCH_TRACES", "", span_target, "where OpenTelemetry spans of requests go: console, or the address of an OTLP/HTTP collector; empty: none are made"),
        ("follow_seconds", "BLASTWATCH_FOLLOW_SECONDS", "1", not_negative, "seconds between two looks of the service at its alias; 0: it stays on the version of its start"),
        ("memory_limit", "BLASTWATCH_MEMORY_LIMIT", "0", not_negative, "memory that a service process may take, in MiB; 0: what the machine or the container has left"),
        ("webhook_secret", "BLASTWATCH_WEBHOOK_SECRET", "", str, "secret of MLflow's webhook that tells the service of moved aliases; empty: no such route"),
        ("shadow_share", "BLASTWATCH_SHADOW_SHARE", "0", fraction, "share of the cells that the challenger reads too, unseen by the caller"),
        ("canary_share", "BLASTWATCH_CANARY_SHARE", "0", fraction, "share of the callers that the challenger answers"),
        ("mlflow_port", "BLASTWATCH_MLFLOW_PORT", "5000", port, "port of MLflow's pages under `blastwatch up`"),
        ("monitor_port", "BLASTWATCH_MONITOR_PORT", "3001", port, "port of the monitor's drift page (127.0.0.1) and gauges"),
        ("monitor_host", "BLASTWATCH_MONITOR_HOST", "127.0.0.1", address, "IP address at which other machines get the monitor's /metrics and /livez, and nothing else"),
        ("evidently_port", "BLASTWATCH_EVIDENTLY_PORT", "8000", port, "port of Evidently's pages under `blastwatch up`"),
        ("max_image_bytes", "BLASTWATCH_MAX_IMAGE_BYTES", "8388608", count, "largest image file that is accepted, in bytes"),
        ("max_image_pixels", "BLASTWATCH_MAX_IMAGE_PIXELS", "4000000", count, "largest image that is decoded, in pixels"),
        ("max_batch_images", "BLASTWATCH_MAX_BATCH_IMAGES", "256", count, "images in one call of /v1/predict_batch; all of them together at most 32 times BLASTWATCH_MAX_IMAGE_BYTES"),
        ("max_batch_size", "BLASTWATCH_MAX_BATCH_SIZE", "32", count, "cells that the engine sees at once; on cores it takes four at most where it computes several batches beside each other"),
        ("answer_cache", "BLASTWATCH_ANSWER_CACHE", "0", count_or_none, "images whose outputs a service process remembers by their pixels, some 8 KB each (13 KB with two networks); 0: none"),
        ("max_latency_ms", "BLASTWATCH_MAX_LATENCY_MS", "2000", count, "longest wait for a batch before the service answers 429, in milliseconds"),
        ("capture_queue", "BLASTWATCH_CAPTURE_QUEUE", "10000", count, "predictions that wait to be stored before some are dropped and counted"),
        ("capture_disk_mib", "BLASTWATCH_CAPTURE_DISK_MIB", "1024", not_negative, "MiB of predictions that wait on disk, under home, while their database is away; 0: they wait in the queue"),
        ("keep_images", "BLASTWATCH_KEEP_IMAGES", KEEP_NEVER, one_of(*IMAGE_POLICIES), "which pictures of answered cells are stored: never any; sampled: a share of all; referred: the same and each cell that was referred"),
        ("keep_share", "BLASTWATCH_KEEP_SHARE", "0.02", fraction, "share of the cells whose picture is stored, where any is"),
        ("drift_interval", "BLASTWATCH_DRIFT_INTERVAL", "60", positive, "seconds between two looks of the monitor"),
        ("drift_window", "BLASTWATCH_DRIFT_WINDOW", "500", count, "latest predictions that the monitor compares with the reference"),
        ("drift_patient_minutes", "BLASTWATCH_DRIFT_PATIENT_MINUTES", "60", at_most(LONGEST_DAYS * 1440, positive), "minutes after a patient's first cell whose cells stand for the patient, in drift over patients"),
        ("drift_minimum", "BLASTWATCH_DRIFT_MINIMUM", "30", count, "predictions below which no verdict is given"),
        ("performance_days", "BLASTWATCH_PERFORMANCE_DAYS", "7", at_most(LONGEST_DAYS, count), "days in a window of estimated and realised performance"),
        ("estimate_tolerance", "BLASTWATCH_ESTIMATE_TOLERANCE", "0.02", fraction, "difference of realised and estimated accuracy beyond which the estimate is untrusted"),
        ("performance_margin", "BLASTWATCH_PERFORMANCE_MARGIN", "0.05", fraction, "fall of an accuracy, below what the version reached on its reference, that is let pass"),
        ("retention_days", "BLASTWATCH_RETENTION_DAYS", "0", at_most(LONGEST_DAYS, not_negative), "days after which the monitor deletes predictions with their labels; 0: never"),
        ("retention_mib", "BLASTWATCH_RETENTION_MIB", "0", not_negative, "size of the stored predictions and pictures, in MiB, beyond which the monitor deletes the oldest, pictures first; 0: none"),
        ("image_days", "BLASTWATCH_IMAGE_DAYS", "30", at_most(LONGEST_DAYS, not_negative), "days after which the monitor deletes stored pictures, their predictions stay; 0: with their predictions"),
        ("service_url", "BLASTWATCH_URL", "http://127.0.0.1:3000", str, "address of the service for predict"),
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The parsed table; build it with `load`."""

    home: Path
    tracking_uri: str
    predictions_url: str
    experiment: str
    model_name: str
    model_alias: str
    actor: str
    history_url: str
    policy: Path | None
    signing_key: Path | None
    trusted_keys: Path | None
    lock_seconds: float
    unattended: bool
    engine: str
    threads: str
    host: str
    port: int
    workers: int
    api_keys: Path
    api_key: str
    rate_limit: float
    rate_burst: int
    patient_salt: Path
    audit_log: str
    traces: str
    follow_seconds: float
    memory_limit: float
    webhook_secret: str
    shadow_share: float
    canary_share: float
    mlflow_port: int
    monitor_port: int
    monitor_host: str
    evidently_port: int
    max_image_bytes: int
    max_image_pixels: int
    max_batch_images: int
    max_batch_size: int
    answer_cache: int
    max_latency_ms: int
    capture_queue: int
    capture_disk_mib: float
    keep_images: str
    keep_share: float
    drift_interval: float
    drift_window: int
    drift_minimum: int
    drift_patient_minutes: float
    performance_days: int
    estimate_tolerance: float
    performance_margin: float
    retention_days: float
    retention_mib: float
    image_days: float
    service_url: str

    @property
    def artifacts(self) -> Path:
        """Where the embedded MLflow store keeps artifacts."""
        return self.home / "mlartifacts"

    @property
    def keys(self) -> Path:
        """Where the embedded signing key and the keys that are trusted by default lie."""
        return self.home / "keys"

    @property
    def packages(self) -> Path:
        """Verified local copies of model packages, one folder a package digest."""
        return self.home / "packages"

    @property
    def waiting(self) -> Path:
        """Predictions that wait for their database, see `monitoring.waiting`."""
        return self.home / "waiting.db"

    @property
    def drift(self) -> Path:
        """Drift reports and the Evidently workspace."""
        return self.home / "drift"

    @property
    def tracking_shown(self) -> str:
        """`tracking_uri` as a message or a page may show it: without account and password."""
        return shown(self.tracking_uri)

    @property
    def embedded_registry(self) -> bool:
        """True where MLflow is the file under `home` and not a server."""
        return self.tracking_uri == _embedded(self.home, "mlflow.db")


def _shown(setting: Setting, text: str) -> str:
    """A value as an error may show it: a key that was mistyped is a secret still."""
    return "(not shown)" if setting.parse is api_key else repr(shown(text))


def _embedded(home: Path, name: str) -> str:
    return f"sqlite:///{home / name}"


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: naming the variable, the value and what was expected, or a variable that is no setting.
    """
    source = os.environ if environment is None else environment
    _check_known(source)
    values: dict[str, Any] = {}
    for setting in TABLE:
        text = source.get(setting.variable, setting.default)
        try:
            values[setting.name] = setting.parse(text)
        except ValueError as error:
            raise SettingsError(
                f"{setting.variable}={_shown(setting, text)} cannot be used: {error}. What it sets: {setting.help}."
            ) from error
    home: Path = values["home"]
    values["tracking_uri"] = values["tracking_uri"] or _embedded(home, "mlflow.db")
    values["predictions_url"] = values["predictions_url"] or _embedded(home, "predictions.db")
    values["history_url"] = values["history_url"] or _embedded(home, "history.db")
    values["api_keys"] = values["api_keys"] or home / "api-keys"
    values["patient_salt"] = values["patient_salt"] or home / "patient.salt"
    values["audit_log"] = values["audit_log"] or str(home / "logs" / "audit.jsonl")
    # An account of MLflow's is checked by its server; a name in the environment by nobody.
    values["actor"] = _actor(source.get("MLFLOW_TRACKING_USERNAME") or values["actor"] or _login())
    if values["threads"]:
        try:
            count(values["threads"])
        except ValueError as error:
            raise SettingsError(f"BLASTWATCH_THREADS={values['threads']!r} cannot be used: {error}.") from error
    return Settings(**values)


def _login() -> str:
    """The login name; a container may run under a number that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _actor(name: str) -> str:
    """A name that an entry of the history can hold. Raises `SettingsError`."""
    if len(name) > LONGEST_ACTOR or not name.isprintable():
        raise SettingsError(
            f"Expected a name of at most {LONGEST_ACTOR} printable characters for who acts on the registry but got "
            f"{len(name)}: {name[:40]!a}. It is MLFLOW_TRACKING_USERNAME, else BLASTWATCH_ACTOR, else the login name."
        )
    return name


def _check_known(source: Mapping[str, str]) -> None:
    """Raise `SettingsError` for a name that is no setting: one that was mistyped would be as if it were not set."""
    known = [setting.variable for setting in TABLE]
    unknown = sorted(name for name in source if name.startswith(PREFIX) and name not in (*known, *NO_SETTINGS))
    if unknown:
        told = ", ".join(name + _meant(name.removeprefix(PREFIX)) for name in unknown)
        raise SettingsError(
            f"Expected every {PREFIX} variable to be a setting of docs/settings.md but got {told}. Rename or unset it."
        )


def _meant(rest: str) -> str:
    """The setting that a mistyped one is near to, as a question; `rest` is its name without the prefix."""
    names = [setting.variable.removeprefix(PREFIX) for setting in TABLE if setting.variable.startswith(PREFIX)]
    return "".join(f" (is {PREFIX}{name} meant?)" for name in difflib.get_close_matches(rest, names, n=1))


def markdown_table() -> str:
    """The table as Markdown, as it stands in the documentation."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    rows += [f"| `{s.variable}` | {f'`{s.default}`' if s.default else ''} | {s.help} |" for s in TABLE]
    return "\n".join(rows)


assert {field.name for field in fields(Settings)} == {setting.name for setting in TABLE}
