"""deploy/: manifests against their schemas, scripts run with programs that write down."""

import configparser
import inspect
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from bkray.cli.sweep import sweep
from tests.kuberay import RAY_JOB
from tests.shell import lint

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
KUBERNETES = "1.34"


def manifests() -> dict[str, Any]:
    loaded = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())
    return {one["kind"]: one for one in loaded}


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def pod(template: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "pod", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": template["spec"]}


def strictly(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_manifests_fit_their_schemas() -> None:
    found = manifests()
    assert found.keys() == {"PersistentVolumeClaim", "RayJob"}
    strictly(found["PersistentVolumeClaim"])
    jsonschema.validate(found["RayJob"], RAY_JOB)
    for template in templates(found["RayJob"]):
        strictly(pod(template))


def test_a_misspelt_name_in_a_manifest_would_not_pass() -> None:
    job = manifests()["RayJob"]
    job["spec"]["shutdownAfterJobFinish"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.validate(job, RAY_JOB)
    template = templates(job)[0]
    template["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePolicy"):
        strictly(pod(template))


def test_the_job_on_kubernetes_asks_for_a_token_and_ends_its_cluster() -> None:
    spec = manifests()["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == PINS["ray"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] <= 86400
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    resources = cluster["workerGroupSpecs"][0]["rayStartParams"]["resources"]
    [given] = shlex.split(resources)  # as the operator writes it into ray start
    assert json.loads(json.loads(resources.strip("'"))) == json.loads(given.replace("\\", ""))
    assert "slot" in given


def test_every_pod_of_the_job_sees_the_folder_of_runs() -> None:
    job = manifests()["RayJob"]
    words = shlex.split(job["spec"]["entrypoint"])
    runs = words[words.index("--runs") + 1]
    user = int(next(rest for kind, rest in instructions() if kind == "USER"))
    for template in templates(job):
        [container] = template["spec"]["containers"]
        [mount] = container["volumeMounts"]
        assert mount["mountPath"] == runs
        assert template["spec"]["securityContext"] == {"fsGroup": user}
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_entry_points_give_options_that_there_are() -> None:
    words = manifests()["RayJob"]["spec"]["entrypoint"].split()
    assert words[:3] == ["bkray", "sweep", "act"]
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    assert given <= inspect.signature(sweep).parameters.keys()


def instructions() -> list[list[str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    joined = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def test_the_image_holds_the_pinned_versions_and_no_others() -> None:
    kinds = {kind for kind, _ in instructions()}
    assert kinds <= {"FROM", "ENV", "ARG", "RUN", "WORKDIR", "COPY", "USER"}
    text = " ".join(rest for _, rest in instructions())
    named = dict(re.findall(r"([\w.-]+)==([\w.]+)", text))
    assert named.items() <= PINS.items()
    assert "PIP_CONSTRAINT=/opt/bkray/constraints.txt" in text
    python = re.search(r"FROM python:(\d+\.\d+)-", (DEPLOY / "Dockerfile").read_text())
    assert python
    clusters = yaml.safe_load((ROOT / "cluster.yaml").read_text())["metadata"]
    assert clusters["python"] == python.group(1)  # one Python everywhere


def test_the_image_has_a_target_for_cpus_and_one_for_cuda_that_run_as_nobody() -> None:
    stages: dict[str, list[list[str]]] = {}
    for kind, rest in instructions():
        if kind == "FROM":
            stages[rest.split()[-1]] = []
        stages[list(stages)[-1]].append([kind, rest])
    assert stages.keys() == {"base", "cpu", "cuda"}
    for target in ("cpu", "cuda"):
        said = stages[target]
        assert said[0] == ["FROM", f"base AS {target}"]
        installs = [rest for kind, rest in said if kind == "RUN" and "pip install" in rest]
        assert installs[0].endswith(" torch")  # before the rest, so that its build is chosen
        assert installs[1] == "pip install '.[aws]'"
        assert ["USER", "1000"] in said
        for source in (rest.split()[:-1] for kind, rest in said if kind == "COPY"):
            assert all((ROOT / name).exists() for name in source)
    assert any("PIP_CONSTRAINT" in rest for _, rest in stages["base"])
    assert ["COPY", "constraints.txt ./"] in stages["base"]


def test_what_the_image_copies_is_sent_to_docker_and_nothing_else() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {
        name for kind, rest in instructions() if kind == "COPY" for name in rest.split()[:-1]
    }
    assert sent == copied


def test_scripts_are_shell() -> None:
    lint(*DEPLOY.glob("*.sh"))


def test_the_service_of_mlflow_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "mlflow.service")
    service = unit["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--artifacts-destination") + 1] == "${MLFLOW_ARTIFACTS}"
    assert service["Restart"] == "always"
    assert unit["Unit"]["RequiresMountsFor"] == "/home/ubuntu/runs"
    laid = configparser.RawConfigParser(strict=False)
    laid.optionxform = str  # type: ignore[assignment,method-assign]
    laid.read(DEPLOY / "mlflow-password.conf")
    assert laid["Service"]["ExecStart"] == service["ExecStart"] + " --app-name basic-auth"
    if not (analyze := shutil.which("systemd-analyze")):
        return
    here = tmp_path / "mlflow.service"
    text = (DEPLOY / "mlflow.service").read_text()
    here.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", text))
    read = subprocess.run([analyze, "verify", str(here)], capture_output=True, text=True)
    assert "mlflow.service" not in read.stderr + read.stdout
