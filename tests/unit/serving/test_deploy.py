"""What can be checked of the deployment files without the engines that run them."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from blastwatch.policy import load_policy
from blastwatch.settings import TABLE, load
from monitoring.capture import _CLOSING_SECONDS, GATHER_SECONDS, QueuedWriter
from monitoring.page import TO_OTHERS
from serving.limits import REQUEST_SECONDS

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = sorted([*DEPLOY.glob("compose*.yaml"), *DEPLOY.glob("kubernetes/*.yaml")])
WRITERS = 3  # of predictions, of what a challenger says and of pictures, closed one after another
CLOSING = inspect.signature(QueuedWriter.close).parameters["timeout"].default + 2 * GATHER_SECONDS + _CLOSING_SECONDS
OURS = {"BLASTWATCH_DB_PASSWORD", "BLASTWATCH_GRAFANA_PASSWORD"}  # read by compose, not by the project


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_named_is_one_of_the_table(path):
    named = set(re.findall(r"BLASTWATCH_[A-Z_]+", path.read_text()))
    assert named <= {setting.variable for setting in TABLE} | OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_passwords_come_from_outside_only(path):
    for line in path.read_text().splitlines():
        if re.search(r"PASSWORD\w*:|://\w+:", line) and not line.lstrip().startswith("#"):
            assert "${BLASTWATCH_" in line, line


def test_compose_binds_to_loopback_only():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {
        "database", "mlflow", "service", "monitor", "prometheus", "alertmanager", "grafana",
    }  # fmt: skip
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), mount


def test_what_runs_in_the_hosts_network_binds_to_loopback_only():
    """Such a service has no ports to publish: what it binds is what others reach."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    bound = []
    for service in services.values():
        words = [str(word) for word in (service.get("command") or [])]
        bound += [words[number + 1] for number, word in enumerate(words) if word == "--host"]
        bound += [word.split("=", 1)[1] for word in words if "listen-address=" in word]
        given = (service.get("environment") or {}).items()
        bound += [str(value) for name, value in given if re.search("_HOST$|_ADDR$", name)]
    bound.remove("")  # Alertmanager has no cluster
    assert len(bound) >= 5 and all(re.match(r"127\.0\.0\.1(:|$)", address) for address in bound), bound


def manifests(kind):
    """Those of one kind, by name."""
    found = [part for path in (DEPLOY / "kubernetes").glob("*.yaml") for part in yaml.safe_load_all(path.read_text())]
    assert {part["kind"] for part in found} == {
        "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PersistentVolumeClaim",
    }  # fmt: skip
    return {part["metadata"]["name"]: part["spec"] for part in found if part["kind"] == kind}


@pytest.mark.parametrize(("name", "ready"), [("blastwatch", "/readyz"), ("blastwatch-monitor", "/livez")])
def test_kubernetes_runs_without_root_and_asks_the_probes(name, ready):
    template = manifests("Deployment")[name]["template"]
    pod, service = template["spec"], manifests("Service")[name]
    (container,), (port,) = pod["containers"], service["ports"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"] == manifests("Deployment")["blastwatch"]["template"]["spec"]["securityContext"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
    assert container["readinessProbe"]["httpGet"]["path"] == ready
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    # Only its own Service finds it, at the port that is scraped.
    found = [
        one
        for one, spec in manifests("Service").items()
        if spec["selector"].items() <= template["metadata"]["labels"].items()
    ]
    assert found == [name] and container["ports"] == [{"name": port["targetPort"], "containerPort": port["port"]}]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["port"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_pod_without_a_gpu_of_its_own_is_given_none():
    """The images ask for all, which NVIDIA's runtime gives where it is a node's default."""
    for name, spec in manifests("Deployment").items():
        (container,) = spec["template"]["spec"]["containers"]
        visible = {row["name"]: row.get("value") for row in container["env"]}.get("NVIDIA_VISIBLE_DEVICES")
        asked = container["resources"]["limits"].get("nvidia.com/gpu")
        assert (asked, visible) in (("1", None), (None, "void")), name
    assert "NVIDIA_VISIBLE_DEVICES=void" in (DEPLOY / "kubernetes" / "deployment.yaml").read_text()


def test_a_pod_computes_on_the_cores_that_it_asks_for():
    """A node may have a hundred, which are its other pods' too."""
    (container,) = manifests("Deployment")["blastwatch"]["template"]["spec"]["containers"]
    rows = {row["name"]: row for row in container["env"]}
    given = rows["BLASTWATCH_THREADS"]["valueFrom"]["resourceFieldRef"]
    assert given == {"resource": "requests.cpu", "divisor": "1"} and int(container["resources"]["requests"]["cpu"]) >= 1
    carried = yaml.safe_load((DEPLOY / "kubernetes" / "configmap.yaml").read_text())["data"]
    assert carried["BLASTWATCH_WORKERS"] == "1"  # each worker takes as many


def test_how_many_pods_there_are_is_said_once():
    """`kubectl apply` of the next image would set a count in the Deployment back, in the middle of a rush."""
    scaled = {spec["scaleTargetRef"]["name"] for spec in manifests("HorizontalPodAutoscaler").values()}
    counted = {name for name, spec in manifests("Deployment").items() if "replicas" in spec}
    assert scaled == {"blastwatch"} and counted == {"blastwatch-monitor"}


def test_the_monitor_of_a_cluster_is_one_that_can_be_scraped(tmp_path):
    spec = manifests("Deployment")["blastwatch-monitor"]
    assert spec["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {row["name"]: row.get("value", "postgresql://h/n") for row in container["env"]}
    settings = load({name: value for name, value in given.items() if name != "NVIDIA_VISIBLE_DEVICES"})
    assert (settings.monitor_host, settings.monitor_port) == ("0.0.0.0", container["ports"][0]["containerPort"])
    assert not settings.embedded_registry and container["args"] == ["drift", "watch"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in TO_OTHERS
    assert spec["template"]["metadata"]["annotations"]["prometheus.io/path"] in TO_OTHERS
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {Path(mount["mountPath"]): volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts[settings.home]["persistentVolumeClaim"]["claimName"] in manifests("PersistentVolumeClaim")
    roles = {
        path.name: volume["configMap"]["name"]
        for path, volume in mounts.items()
        if path.parent == settings.trusted_keys
    }
    assert set(roles) == {"promoter", "trainer"}
    text = (DEPLOY / "kubernetes" / "monitor.yaml").read_text()
    assert all(f"create configmap {name} --from-file=trusted/{role}\n" in text for role, name in roles.items())
    secrets = [row["valueFrom"]["secretKeyRef"]["name"] for row in container["env"] if "valueFrom" in row]
    made = text + (DEPLOY / "kubernetes" / "configmap.yaml").read_text()
    assert secrets and all(f"create secret generic {name} --from-literal=url=" in made for name in secrets)


def test_what_is_stopped_may_finish_what_it_was_asked():
    """Of the monitor, which writes no prediction, it is a look."""
    needed = REQUEST_SECONDS + WRITERS * CLOSING
    parts = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name in ("service", "monitor"):
        part = parts["services"][name]
        assert part["init"] is True and float(part["stop_grace_period"].removesuffix("s")) >= needed, name
    for name, spec in manifests("Deployment").items():
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        waits = float(container["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in container else 0
        assert pod["terminationGracePeriodSeconds"] >= needed + waits, name


def test_a_pod_goes_by_the_policy_that_versions_are_promoted_under(tmp_path):
    """Without it a version that was promoted under another flip rate than the default's is refused in every pod."""
    folder = DEPLOY / "kubernetes"
    pod = yaml.safe_load((folder / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    path = Path(yaml.safe_load((folder / "configmap.yaml").read_text())["data"]["BLASTWATCH_POLICY"])
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    carried = yaml.safe_load((folder / "policy.yaml").read_text())
    assert volumes[mounts[path.parent]]["configMap"]["name"] == carried["metadata"]["name"]
    (tmp_path / "policy.yaml").write_text(carried["data"][path.name])
    assert load_policy(tmp_path / "policy.yaml") == load_policy(None)


def test_under_compose_all_go_by_one_policy():
    parts = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    path = parts["x-settings"]["BLASTWATCH_POLICY"]
    for name in ("service", "monitor"):
        source = next(mount for mount in parts["services"][name]["volumes"] if mount.endswith(f":{path}:ro"))
        given = re.match(r"\$\{BLASTWATCH_POLICY:-(.+?)\}:", source)
        assert given and load_policy(DEPLOY / given.group(1)) == load_policy(None)


def test_an_api_key_can_be_added_to_those_that_pods_have():
    """`kubectl create secret` alone refuses the second time."""
    text = (DEPLOY / "kubernetes" / "configmap.yaml").read_text().replace("\\\n#", "")
    line = next(line for line in text.splitlines() if "secret generic blastwatch-api-keys" in line)
    assert re.search(r"--dry-run=client -o yaml \| kubectl apply -f -$", line)


def test_every_pod_hashes_patients_with_one_salt_from_a_secret():
    folder = DEPLOY / "kubernetes"
    pod = yaml.safe_load((folder / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    salt = Path(yaml.safe_load((folder / "configmap.yaml").read_text())["data"]["BLASTWATCH_PATIENT_SALT"])
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    secret = volumes[mounts[salt.parent]]["secret"]["secretName"]
    assert f"secret generic {secret} --from-file={salt.name}" in (folder / "configmap.yaml").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_the_images_carry_no_path_of_a_machine_and_no_index(name):
    text = (DEPLOY / name).read_text()
    assert not re.search(r"index-url|://|/work/|/tmp/", text)
    assert "NVIDIA_VISIBLE_DEVICES" in text
    assert re.search(r"^USER \w+", text, re.MULTILINE)
