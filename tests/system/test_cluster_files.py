"""The clusters that we ship: accepted by Ray's own schema, understood by our command line, and started for real."""

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.workers import dividing_worlds
from pipelines import recipes
from pipelines.cli import command_line
from pipelines.recipes.recipe import with_flags
from pipelines.training.checks import check_places
from tests.system.commands import train
from tests.system.ray_head import ray_head

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "ray_cluster.yaml"
KUBERAY = ROOT / "cluster" / "kuberay"
HEAD = "ray.head.default"
# Ray's fake provider finds its head by this id.
FAKE_HEAD_ID = "f" * 51 + "00000"
PLACEHOLDERS = r"ami-0{8,}|subnet-0{8}|sg-0{8}|fs-0{8}|example\.com|aweigh-node|my-bucket|us-west-2|claimName"


def _aws() -> dict[str, Any]:
    return yaml.safe_load(AWS.read_text())


def test_ray_accepts_the_aws_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(_aws())
    validate_config(prepared)
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        assert any("pip install" in line and "requirements.txt" in line for line in commands)


def test_no_worker_runs_on_the_head_and_spot_comes_first() -> None:
    types = _aws()["available_node_types"]
    assert types[HEAD]["resources"] == {"CPU": 0}
    spot, on_demand = types["gpu.spot"], types["gpu.on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["priority"] > on_demand["priority"]
    same = ("InstanceType", "ImageId", "IamInstanceProfile", "BlockDeviceMappings")
    assert [spot["node_config"][key] for key in same] == [on_demand["node_config"][key] for key in same]
    assert spot["resources"] == on_demand["resources"]


def test_every_efa_interface_is_complete_and_on_a_card_of_its_own() -> None:
    interfaces = _aws()["available_node_types"]["gpu.efa"]["node_config"]["NetworkInterfaces"]
    assert [one["NetworkCardIndex"] for one in interfaces] == [0, 1, 2, 3]
    assert all(one["InterfaceType"] == "efa" and one["SubnetId"] and one["Groups"] for one in interfaces)


@pytest.mark.parametrize(
    "path", [AWS, KUBERAY / "ray_cluster.yaml", KUBERAY / "ray_job.yaml"], ids=lambda path: path.name
)
def test_every_placeholder_is_near_a_line_that_says_edit(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.search(PLACEHOLDERS, line) and not line.lstrip().startswith("#"):
            near = lines[max(0, number - 10) : number + 1]
            assert any("EDIT" in one for one in near), f"{path.name}:{number + 1}: {line}"


def test_the_pinned_ray_is_the_one_of_the_manifests() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert pinned is not None
    assert _kuberay("ray_cluster.yaml")["spec"]["rayVersion"] == pinned[1]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert python == ">=3.11,<3.13"
    assert "FROM python:3.12" in (KUBERAY / "Dockerfile").read_text()


# The fields of ray.io/v1 that we use, as KubeRay's API reference describes them; its own CRD is not available offline.
_QUANTITIES = {
    "type": "object",
    "required": ["cpu", "memory"],
    "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(m|[KMGT]i?)?$"},
}
_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "additionalProperties": False,
    "properties": {
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["containers"],
            "additionalProperties": False,
            "properties": {
                "terminationGracePeriodSeconds": {"type": "integer", "minimum": 30},
                "tolerations": {"type": "array"},
                "serviceAccountName": {"type": "string"},
                "volumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "image": {"type": "string"},
                            "ports": {"type": "array", "items": {"required": ["containerPort", "name"]}},
                            "env": {"type": "array", "items": {"required": ["name", "value"]}},
                            "volumeMounts": {"type": "array", "items": {"required": ["name", "mountPath"]}},
                            "lifecycle": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "preStop": {
                                        "required": ["exec"],
                                        "properties": {"exec": {"required": ["command"]}},
                                    },
                                },
                            },
                            "resources": {
                                "type": "object",
                                "required": ["requests", "limits"],
                                "additionalProperties": False,
                                "properties": {"requests": _QUANTITIES, "limits": _QUANTITIES},
                            },
                        },
                    },
                },
            },
        },
    },
}
_START_PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
_CLUSTER = {
    "type": "object",
    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {"required": ["mode"], "properties": {"mode": {"enum": ["token", "disabled"]}}},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "version": {"enum": ["v1", "v2"]},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "idleTimeoutSeconds": {"type": "integer"},
                "resources": {"type": "object"},
            },
        },
        "headGroupSpec": {
            "type": "object",
            "required": ["template", "rayStartParams"],
            "additionalProperties": False,
            "properties": {"template": _TEMPLATE, "rayStartParams": _START_PARAMETERS},
        },
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "template", "rayStartParams"],
                "additionalProperties": False,
                "properties": {
                    "groupName": {"type": "string", "pattern": "^[a-z0-9-]+$"},
                    "replicas": {"type": "integer", "minimum": 0},
                    "minReplicas": {"type": "integer", "minimum": 0},
                    "maxReplicas": {"type": "integer", "minimum": 1},
                    "template": _TEMPLATE,
                    "rayStartParams": _START_PARAMETERS,
                },
            },
        },
    },
}
_JOB = {
    "type": "object",
    "required": ["entrypoint", "rayClusterSpec"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "runtimeEnvYAML": {"type": "string"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "backoffLimit": {"type": "integer", "minimum": 0},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "rayClusterSpec": _CLUSTER,
    },
}


def _kuberay(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / name).read_text())


@pytest.mark.parametrize(
    ("name", "kind", "schema"), [("ray_cluster.yaml", "RayCluster", _CLUSTER), ("ray_job.yaml", "RayJob", _JOB)]
)
def test_a_kuberay_manifest_has_the_fields_of_its_kind(name: str, kind: str, schema: dict[str, Any]) -> None:
    import jsonschema

    manifest = _kuberay(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert re.fullmatch(r"[a-z0-9-]{1,50}", manifest["metadata"]["name"])
    jsonschema.Draft202012Validator(schema).validate(manifest["spec"])


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "ray_job.yaml"])
def test_every_mount_of_a_pod_has_its_volume_and_gpus_are_a_limit(name: str) -> None:
    spec = _kuberay(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for group in cluster["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"]


def test_a_node_that_is_taken_away_tells_ray_and_has_time_for_a_checkpoint() -> None:
    mounted = {Path(source).name: target for target, source in _aws()["file_mounts"].items()}
    started = "\n".join(_aws()["worker_start_ray_commands"])
    assert f"{mounted['announce_preemption.py']} watch $RAY_HEAD_IP:6379" in started
    assert (ROOT / _aws()["file_mounts"][mounted["announce_preemption.py"]]).is_file()
    pod = _kuberay("ray_cluster.yaml")["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    _, path, action, _, seconds = shlex.split(hook)
    assert f"COPY cluster/announce_preemption.py {path}" in (KUBERAY / "Dockerfile").read_text()
    assert action == "now"
    assert int(seconds) < pod["terminationGracePeriodSeconds"]


def test_both_manifests_describe_one_cluster() -> None:
    assert _kuberay("ray_job.yaml")["spec"]["rayClusterSpec"] == _kuberay("ray_cluster.yaml")["spec"]


def test_our_command_line_accepts_the_command_of_the_ray_job() -> None:
    spec = _kuberay("ray_job.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "aweigh"
    known, rest = command_line().parse_known_args(words[1:])
    recipe = with_flags(recipes.get(known.recipe), rest)
    check_places(recipe)
    worker = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    gpus = int(worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert recipe.cluster.workers == gpus * worker["maxReplicas"]
    assert dividing_worlds(recipe.batch.global_size, recipe.cluster)
    assert recipe.cluster.wait_minutes > 0
    assert yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"].endswith(".zip")


@pytest.mark.slow
def test_the_node_types_start_from_the_head_alone_and_train(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ray's own autoscaler over its fake provider: real raylets on this machine, a core in place of the GPUs."""
    folder, runs = tmp_path_factory.mktemp("r"), tmp_path_factory.mktemp("runs")
    aws = _aws()
    types = copy.deepcopy(aws["available_node_types"])
    for name, kind in types.items():
        kind["node_config"] = {}
        if name != HEAD:
            kind["resources"] = {"CPU": 1}
    types["gpu.spot"]["max_workers"] = 1  # as if there were no more capacity
    config = {
        **{key: aws[key] for key in ("cluster_name", "max_workers", "upscaling_speed", "idle_timeout_minutes")},
        "head_node_type": aws["head_node_type"],
        "available_node_types": types,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "head_node_id": FAKE_HEAD_ID,
        },
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands", "initialization_commands")},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "file_mounts_sync_continuously": False,
    }
    file = folder / "autoscaling.json"
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_ID}

    def write(gcs_address: str) -> None:
        config["provider"]["gcs_address"] = gcs_address
        file.write_text(json.dumps(config))

    with ray_head(folder, f"--autoscaling-config={file}", cpus=0, dashboard=False, prepare=write, **fake) as head:
        command = train(
            *(shards, runs, "scaled", "--cluster.wait_minutes", "5", "--schedule.epochs", "1"),
            *("--schedule.drops_at", "[]"),
            RAY_ADDRESS=head.address,
            **head.environment,
        )
        command.wait_for("preflight checking 2 workers on 2 nodes")
        assert "AP50" in command.finish()
        said = (folder / "session_latest" / "logs" / "monitor.log").read_text()
    for kind in ("gpu.spot", "gpu.on_demand"):
        assert f"Adding 1 node(s) of type {kind}" in said
    assert "of type gpu.efa" not in said
