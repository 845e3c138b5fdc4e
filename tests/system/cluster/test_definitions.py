"""The definitions in cluster/, against the schemas of those who read them.

Launcher files go through Ray's own preparation, overlays through Kustomize, Kubernetes' objects through its schemas.
Those of KubeRay's objects are not part of this repository: they are read from the folder that KUBERAY_SCHEMAS names, or
from ../shared/schemas beside the checkout. Without them the tests that need them are skipped.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from transfer.config import load_config

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
KUBERNETES = CLUSTER / "kubernetes"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", ROOT.parent / "shared" / "schemas"))
BIN = Path(sys.executable).parent
LAUNCHERS = ["aws", "gcp", "on-premises"]
OVERLAYS = ["cpu", "gpu"]
SCHEDULES = ["cronjob", "raycronjob"]
KUBERNETES_VERSION = "1.30"


def launcher(name):
    return yaml.safe_load((CLUSTER / "ray" / f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Kustomize's output of an overlay with a schedule: the one it has, or the other, as its comment says."""
    known = {}

    def render(overlay, schedule="cronjob"):
        if (overlay, schedule) not in known:
            tree = tmp_path_factory.mktemp("kustomize") / "kubernetes"
            shutil.copytree(KUBERNETES, tree)
            path = tree / "overlays" / overlay / "kustomization.yaml"
            text = path.read_text()
            if schedule != "cronjob":
                assert "  # - ../../components/raycronjob" in text
                text = text.replace("  - ../../components/cronjob\n", "")
                text = text.replace("  # - ../../components/raycronjob", "  - ../../components/raycronjob")
                path.write_text(text)
            command = [BIN / "kubectl", "kustomize", path.parent]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            known[overlay, schedule] = list(yaml.safe_load_all(output))
        return known[overlay, schedule]

    return render


def of_kind(objects, kind):
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def pod_specs(node):
    """Every pod's spec in an object, however deep."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pod_specs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_specs(value)


@functools.cache
def crd_schema(plural):
    path = SCHEMAS / f"ray.io_{plural}.yaml"
    if not path.exists():
        pytest.skip(f"no schemas of KubeRay in {SCHEMAS}; KUBERAY_SCHEMAS names another folder")
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    # A resource describes its own metadata as an object of any kind: that is the API server's to check.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def closed(schema):
    """The schema with unknown keys refused, which the API server would drop without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def check_object(each):
    plurals = {"RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
    if each["kind"] in plurals:
        jsonschema.validate(each, crd_schema(plurals[each["kind"]]), cls=jsonschema.Draft202012Validator)
    else:
        kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)


# Ray's launcher


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_takes_the_launcher_files(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher(name))
    validate_config(prepared)
    assert prepared["head_start_ray_commands"][1].startswith("ray start --head")


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_workers_in_a_cloud_come_from_nothing_and_nothing_runs_on_the_head(name):
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(launcher(name))
    head = prepared["available_node_types"].pop(prepared["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    for worker in prepared["available_node_types"].values():
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= prepared["max_workers"]
        assert worker["resources"]["GPU"] >= 1
    assert "spot" in str(prepared["available_node_types"]).lower()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_clusters_of_the_launcher_are_closed(name):
    config = launcher(name)
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


# Kubernetes


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.proof
def test_every_object_of_the_overlays_fits_its_schema(rendered, overlay, schedule):
    objects = rendered(overlay, schedule)
    assert {"RayJob", "NetworkPolicy", "ServiceAccount", "ConfigMap"} < {each["kind"] for each in objects}
    for each in objects:
        check_object(each)


def test_a_key_that_kuberay_does_not_know_is_noticed(rendered):
    job = yaml.safe_load(yaml.safe_dump(of_kind(rendered("cpu"), "RayJob")))
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check_object(job)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_container_may_become_root(rendered, overlay, schedule):
    specs = [spec for each in rendered(overlay, schedule) for spec in pod_specs(each)]
    # Submitter, head and worker, and those of the nightly copy, or the pod that makes it.
    assert len(specs) == {"cronjob": 4, "raycronjob": 6}[schedule]
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["image"] == f"CHANGE-ME/transfer:{'gpu' if overlay == 'gpu' else 'cpu'}"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_policy_is_about_every_pod(rendered, overlay):
    objects = rendered(overlay)
    selected = of_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    job, cron = of_kind(objects, "RayJob")["spec"], of_kind(objects, "CronJob")["spec"]
    cluster = job["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [job["submitterPodTemplate"], cron["jobTemplate"]["spec"]["template"]]
    for template in [*templates, *(group["template"] for group in groups)]:
        assert selected.items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_waits_for_its_night_with_a_token_and_the_version_of_ray_that_is_pinned(rendered, overlay):
    spec = of_kind(rendered(overlay), "RayJob")["spec"]
    assert spec["suspend"] is True
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "transfer-ray-token"}
    assert spec["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert spec["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_that_is_run_exists_and_its_configuration_is_one(rendered, overlay, tmp_path):
    objects = rendered(overlay)
    module, path = re.fullmatch(
        r"python -m jobs\.(\w+) (\S+)", of_kind(objects, "RayJob")["spec"]["entrypoint"]
    ).groups()
    assert (ROOT / "jobs" / f"{module}.py").exists()
    (text,) = [each["data"] for each in objects if each["metadata"]["name"] == "transfer-config"]
    (tmp_path / "config.yaml").write_text(text[Path(path).name])
    workers = load_config(tmp_path / "config.yaml").workers
    worker = of_kind(objects, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert 1 <= workers.count <= worker["maxReplicas"]
    assert workers.gpus_per_worker == int(limits.get("nvidia.com/gpu", 0))
    assert workers.gpus_per_worker == (1 if overlay == "gpu" else 0)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_two_nights_never_run_at_once_and_none_runs_for_ever(rendered, overlay):
    objects = rendered(overlay)
    cron, job = of_kind(objects, "CronJob")["spec"], of_kind(objects, "RayJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["startingDeadlineSeconds"] > 0
    assert job["activeDeadlineSeconds"] > 0
    attempts = job["backoffLimit"] + 1
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] > attempts * job["activeDeadlineSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberays_own_schedule_makes_the_same_job_not_suspended(rendered, overlay):
    objects = rendered(overlay, "raycronjob")
    job, cron = of_kind(objects, "RayJob")["spec"], of_kind(objects, "RayCronJob")["spec"]
    assert cron["jobTemplate"] == job | {"suspend": False}
    assert "CronJob" not in {each["kind"] for each in objects}


# The image


def test_the_linter_has_nothing_to_say_about_the_dockerfile():
    linted = subprocess.run([BIN / "hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


def test_the_image_is_pinned_compiled_and_runs_as_nobody_special():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    final = [words[0] for words in lines]
    final = lines[len(final) - final[::-1].index("FROM") :]
    assert [value for word, value in final if word == "USER"] == ["1000"]
    assert "ADD" not in {word for word, _ in lines}
    bases = [value.split()[0] for word, value in lines if word == "FROM"]
    assert all(re.fullmatch(r"python:\$\{PYTHON\}-slim-\w+", base) for base in bases)
    installs = [value for word, value in lines if word == "RUN" and "pip install" in value]
    assert all("--require-hashes" in value or "--no-deps" in value for value in installs)
    assert any("compileall" in value for word, value in lines if word == "RUN")


@pytest.mark.parametrize("pins", ["run", "gpu"])
def test_both_lists_of_pins_have_the_same_versions(pins):
    pattern = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
    found = dict(pattern.findall((ROOT / "requirements" / f"{pins}.txt").read_text()))
    run = dict(pattern.findall((ROOT / "requirements" / "run.txt").read_text()))
    assert run.items() <= found.items()
    assert found["ray"] == ray.__version__
    assert ("nvidia-nccl-cu12" in found) == (pins == "gpu")


def test_what_the_image_copies_is_let_through_to_the_build():
    text = (CLUSTER / "Dockerfile").read_text()
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()}
    assert {name.replace("${PINS}", "*") for name in copied} == {line[1:] for line in ignored if line.startswith("!")}


# All of them


def test_there_is_no_secret_and_no_registry_in_any_file():
    secrets = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN|(password|secret_access_key|auth_token)\s*[:=]\s*[\"']?[A-Za-z0-9/+]{12,}",
        re.IGNORECASE,
    )
    registries = re.compile(r"\b(gcr|ghcr|nvcr|quay|docker)\.io\b|\.ecr\.|registry\.|pkg\.dev|pypi\.org|rayproject/")
    assert FILES
    for path in FILES:
        text = path.read_text()
        assert not secrets.search(text), path
        assert not registries.search(text), path
        if path.suffix == ".yaml":
            documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
            assert "Secret" not in {each.get("kind") for each in documents}, path
