"""Kubernetes manifests: they start what the launch scripts take, as the user of the image, on the volumes they name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.conftest import ROOT
from tests.launch.test_torchrun import check_refused, printed

SUBMIT = "kubernetes/submit.sh"
TRAIN = {"IMAGE": "registry/fwpkm:train", "NNODES": "2", "GPUS_PER_NODE": "8"}
PREPROCESS = {"IMAGE": "registry/fwpkm:train", "NUM_SHARDS": "4"}
KINDS = {"train": TRAIN, "preprocess": PREPROCESS, "volumes": {}}
ODD = ["--save", 'a "b" \\ $(NNODES) $HOME']


@pytest.fixture
def rendered(launch, environment) -> Any:
    """rendered(kind, settings, *arguments): the documents of --dry-run."""

    def call(kind: str, settings: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
        process = launch(SUBMIT, environment | {"PYTHON": sys.executable} | settings, kind, "--dry-run", *arguments)
        assert process.returncode == 0, process.stderr
        return list(yaml.safe_load_all(process.stdout))

    return call


def jobs(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Specifications of a JobSet's Jobs by name."""
    return {job["name"]: job["template"]["spec"] for job in document["spec"]["replicatedJobs"]}


def pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["template"]["spec"]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_the_pods_run_what_multi_node_takes(rendered, launch, environment, nodes):
    (document,) = rendered("train", TRAIN | {"NNODES": nodes, "NAME": "run-7"}, *ODD)
    job = jobs(document)["nodes"]
    assert job["completions"] == job["parallelism"] == int(nodes) and job["completionMode"] == "Indexed"
    container = pod(job)["containers"][0]
    env = variables(container)
    assert container["command"] == ["bash", "examples/launch/multi_node.sh"]
    # The first pod's name under the service that the JobSet makes.
    host = f"run-7-nodes-0-0.{document['spec']['network']['subdomain']}"
    assert env["RDZV_ENDPOINT"] == f"{host}:29500" and document["spec"]["network"]["publishNotReadyAddresses"]
    arguments = [word.replace("$$(", "$(") for word in container["args"]]
    training = printed(launch("multi_node.sh", environment | env, "--dry-run", *arguments))[-1]
    assert training[-4:] == ["pretrain.py", *ODD, "--resume"]
    options = {f"--nnodes={nodes}", "--nproc-per-node=8", f"--rdzv-endpoint={host}:29500", "--rdzv-id=run-7"}
    assert options < set(training)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8" == env["GPUS_PER_NODE"]


def test_kubernetes_leaves_the_arguments_alone(rendered):
    (document,) = rendered("train", TRAIN, *ODD)
    assert pod(jobs(document)["nodes"])["containers"][0]["args"] == ["--save", 'a "b" \\ $$(NNODES) $HOME', "--resume"]


def test_a_node_is_examined_and_ends_softly(rendered):
    (document,) = rendered("train", TRAIN, "-x")
    node = pod(jobs(document)["nodes"])
    (doctor,) = node["initContainers"]
    train = node["containers"][0]
    assert doctor["command"] == ["python", "tools/doctor.py"] and doctor["image"] == train["image"] == TRAIN["IMAGE"]
    assert doctor["resources"]["limits"] == train["resources"]["limits"]
    assert int(variables(train)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < node["terminationGracePeriodSeconds"]
    memory = next(volume for volume in node["volumes"] if "emptyDir" in volume)
    assert memory["emptyDir"]["medium"] == "Memory"
    assert {"name": memory["name"], "mountPath": "/dev/shm"} in train["volumeMounts"]
    # A disruption fails the Job for this reason, and is not counted.
    rule = document["spec"]["failurePolicy"]["rules"][0]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"] and document["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_an_indexed_job_makes_the_parts_and_another_merges(rendered, launch, environment):
    (document,) = rendered("preprocess", PREPROCESS, "--input", "/data/raw")
    shards, merge = jobs(document)["shards"], jobs(document)["merge"]
    assert shards["completions"] == shards["parallelism"] == 4 and shards["completionMode"] == "Indexed"
    assert document["spec"]["replicatedJobs"][1]["dependsOn"] == [{"name": "shards", "status": "Complete"}]
    retried = shards["podFailurePolicy"]["rules"][1]
    (name,) = {container["name"] for container in pod(shards)["containers"]}
    assert retried["onExitCodes"] == {"containerName": name, "operator": "In", "values": [1, 2]}
    for job, last in ((shards, ["--shard-id", "3"]), (merge, ["--merge-shards"])):
        container = pod(job)["containers"][0]
        script, *words = container["command"][1:]
        env = environment | variables(container) | {"JOB_COMPLETION_INDEX": "3"}
        process = launch(script.removeprefix("examples/launch/"), env, *words, "--dry-run", *container["args"])
        shard = ["--num-shards", "4", "--resume", *last]
        assert printed(process)[0][2:] == ["--input", "/data/raw", "--workers", "8", *shard]


@pytest.mark.parametrize("kind", ["train", "preprocess"])
def test_every_pod_is_the_user_of_the_image_and_uses_the_claims(rendered, kind):
    stage = (ROOT / "Dockerfile").read_text().split(" AS train")[1].split("\nFROM ")[0]
    user, folder = (re.findall(rf"^{word} (\S+)", stage, re.MULTILINE)[-1] for word in ("USER", "WORKDIR"))
    claims = {document["metadata"]["name"] for document in rendered("volumes", {"RUNS_CLAIM": "big-runs"})}
    assert claims == {"fwpkm-data", "big-runs"}
    (document,) = rendered(kind, KINDS[kind] | {"RUNS_CLAIM": "big-runs"}, "-x")
    for job in jobs(document).values():
        assert pod(job)["restartPolicy"] == "Never"
        security = pod(job)["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, int(user), int(user))
        volumes = {volume["name"]: volume for volume in pod(job)["volumes"]}
        named = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert named <= claims
        for container in pod(job)["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts.keys() == volumes.keys() and mounts.get("runs", f"{folder}/runs") == f"{folder}/runs"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("train", {"IMAGE": ""}, "IMAGE is not set"),
        ("train", {"NNODES": ""}, "NNODES is not set"),
        ("train", {"NNODES": "two"}, "NNODES=two must be an integer"),
        ("train", {"GPUS_PER_NODE": "0"}, "GPUS_PER_NODE=0 must be an integer of at least 1"),
        ("train", {"NAME": "My_Run"}, "NAME=My_Run must be at most 40 small letters"),
        ("train", {"PREFLIGHT": "yes"}, "PREFLIGHT=yes must be 0 or 1"),
        ("preprocess", {"NUM_SHARDS": "1"}, "NUM_SHARDS=1 must be an integer of at least 2"),
        ("preprocess", {"DATA_CLAIM": "x" * 41}, "must be at most 40"),
        ("volume", {}, "the first argument is 'volume', but must be volumes, preprocess or train"),
    ],
)
def test_what_a_manifest_needs_is_refused(launch, environment, kind, change, said):
    check_refused(launch(SUBMIT, environment | KINDS.get(kind, {}) | change, kind, "--dry-run", "-x"), said)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_kustomize_takes_the_manifest_as_a_base(rendered, tmp_path: Path, kind: str):
    documents = rendered(kind, KINDS[kind], *([] if kind == "volumes" else ["-x"]))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump_all(documents))
    (tmp_path / "kustomization.yaml").write_text("namespace: research\nresources: [base.yaml]\n")
    command = ["kubectl", "kustomize", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    assert [document["metadata"].pop("namespace") for document in found] == ["research"] * len(documents)
    assert sorted(map(str, map(ordered, found))) == sorted(map(str, map(ordered, documents)))


def ordered(value: Any) -> Any:
    """The same with sorted keys."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return list(map(ordered, value)) if isinstance(value, list) else value
