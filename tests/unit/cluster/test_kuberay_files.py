"""The Kubernetes files, against tables of the fields of KubeRay and Kubernetes, and read by Ray's autoscaler."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_fields import KUBERNETES, RAY_JOB, faults

from introspect_ray import __version__
from introspect_ray.cli import parse
from introspect_ray.config import load_config

ROOT = Path(__file__).parents[3]
IMAGE = f"YOUR_REGISTRY/introspect-ray:{__version__}"


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / name).read_text()))


@pytest.fixture()
def job() -> dict[str, Any]:
    (job,) = read("kuberay-sweep.yaml")
    return job


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_fields_that_a_schema_lacks_are_found() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": "80"}]}}
    assert faults(service, KUBERNETES["v1", "Service"]) == [".spec.ports[0].port: '80' is not of type int"]
    service["spec"] = {"port": [{"port": 80}]}
    assert faults(service, KUBERNETES["v1", "Service"]) == [".spec.ports: missing", ".spec.port: no such field"]


def test_the_sweep_is_a_ray_job(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert faults(job, RAY_JOB) == []
    locked = (ROOT / "requirements-cuda.lock").read_text()
    assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in locked


def test_ray_reads_resources_and_priorities_from_it(job: dict[str, Any]) -> None:
    """By Ray's own code, which the autoscaler runs on the RayCluster that KubeRay makes of the job."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = {"metadata": {"name": "sweep", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    spot, on_demand = types["h100-spot"], types["h100-on-demand"]
    assert spot["priority"] > on_demand["priority"]
    for group in (spot, on_demand):
        assert (group["min_workers"], group["max_workers"]) == (0, 4)
        assert group["resources"] == {"CPU": 64, "GPU": 8, "memory": 512 * 2**30}
    assert types["headgroup"]["resources"]["GPU"] == 0
    (waits,) = job["spec"]["rayClusterSpec"]["autoscalerOptions"]["env"]
    from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig

    assert f'"{waits["name"]}"' in inspect.getsource(InstanceReconcileConfig), "Ray reads no such variable"
    assert int(waits["value"]) < InstanceReconcileConfig().allocate_status_timeout_s


def test_pods_ask_for_what_they_use(job: dict[str, Any]) -> None:
    for pod in pods(job):
        (container,) = pod["containers"]
        wants = container["resources"]
        assert container["image"] == IMAGE and wants["requests"] == wants["limits"]
        assert wants["requests"]["ephemeral-storage"].endswith("Gi")
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    _, *workers = pods(job)
    for pod in workers:
        disks = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        assert int(disks["scratch"]["sizeLimit"][:-2]) < int(
            pod["containers"][0]["resources"]["limits"]["ephemeral-storage"][:-2]
        )
        assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-h100-80gb"
        assert "nvidia.com/gpu" in {taint["key"] for taint in pod["tolerations"]}


def test_the_mlflow_server_is_valid_and_where_the_job_looks_for_it(job: dict[str, Any]) -> None:
    objects = read("kuberay-mlflow.yaml")
    for one in objects:
        assert faults(one, KUBERNETES[one["apiVersion"], one["kind"]]) == []
    kinds = {one["kind"]: one for one in objects}
    pod, service = kinds["Deployment"]["spec"]["template"], kinds["Service"]
    (container,), (port,) = pod["spec"]["containers"], service["spec"]["ports"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert service["spec"]["selector"] == kinds["Deployment"]["spec"]["selector"]["matchLabels"]
    assert port["targetPort"] == container["ports"][0]["containerPort"]
    host = f"{service['metadata']['name']}:{port['port']}"
    assert f"tracking.uri=http://{host}" in job["spec"]["entrypoint"].split()
    allowed = next(arg for arg in container["args"] if arg.startswith("--allowed-hosts=")).partition("=")[2]
    assert host in allowed.split(",")  # MLflow compares the whole header, port included, unless there is a "*"
    assert container["image"] == f"{IMAGE}-cpu"


def test_pods_end_later_than_a_job_that_is_stopped(job: dict[str, Any]) -> None:
    args = parse("", shlex.split(job["spec"]["entrypoint"])[2:], takes_names=True)
    cfg = load_config(ROOT / "cluster" / "h100.yaml", args.overrides)
    assert all(pod["terminationGracePeriodSeconds"] > cfg.stop_within_s for pod in pods(job))


def test_a_trial_fits_on_one_node(job: dict[str, Any]) -> None:
    args = parse("", shlex.split(job["spec"]["entrypoint"])[2:], takes_names=True)
    assert args.config == "/opt/introspect-ray/cluster/h100.yaml"
    cfg = load_config(ROOT / "cluster" / "h100.yaml", args.overrides)
    assert args.resume and cfg.wait_for_nodes and cfg.output_dir.startswith("s3://")
    assert cfg.train.checkpoint_every, "a job that is retried goes on"
    gpus = int(pods(job)[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert cfg.train.num_workers + cfg.rollout.num_actors * cfg.rollout.num_gpus <= gpus


def test_the_kubernetes_files_use_the_images_user() -> None:
    (user,) = {line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("USER ")}
    (deployment,) = (one for one in read("kuberay-mlflow.yaml") if one["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["securityContext"]["fsGroup"] == int(user)
