"""What can be checked of the deployment files without the engines that run them."""

import re
from pathlib import Path

import pytest
import yaml

from blastwatch.policy import load_policy
from blastwatch.settings import TABLE

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = sorted([*DEPLOY.glob("compose*.yaml"), *DEPLOY.glob("kubernetes/*.yaml")])
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


def test_kubernetes_runs_without_root_and_asks_the_probes():
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["enableServiceLinks"] is False
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    kinds = {yaml.safe_load(path.read_text())["kind"] for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert kinds == {"ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}


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
