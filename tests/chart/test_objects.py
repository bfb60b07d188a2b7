"""Whatever the chart renders, a real API server takes with strict validation, under the strictest pod security."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from localcluster.cluster import Cluster
from tests.chart.helm import only, render
from tests.manifests import GPUPOOL

POOL = GPUPOOL["spec"]
SERVED = ("--api-versions", "lorafinetune.io/v1alpha1/GPUPool")

MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "pools": {"pools": {"spot-4090": POOL, "od.a10g": {**POOL, "capacityType": "OnDemand", "tolerations": []}}},
    "one namespace": {"watchNamespaces": ["{namespace}"]},
    "own account, no roles": {
        "serviceAccount": {"create": False, "name": "default"},
        "rbac": {"create": False, "aggregate": False},
        "crds": {"install": False},
    },
    "definitions that go with the chart": {"crds": {"keep": False}},
    "by digest": {
        "image": {"repository": "example.com:5000/op", "digest": "sha256:" + "a" * 64, "pullPolicy": "Always"},
        "trainerImage": {"repository": "example.com/trainer", "tag": "v1.2.3"},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "everything": {
        "fullnameOverride": "tuner",
        "commonLabels": {"team": "ml"},
        "ambientStorage": ["s3://loras/"],
        "serviceAccount": {"name": "tuner", "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]}]
                }
            }
        },
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "extraEnv": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
    },
}


@pytest.fixture
def restricted(cluster: Cluster, namespace: str) -> str:
    """Yield a namespace that takes only pods of the restricted Pod Security Standard."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


def filled(values: dict[str, Any], namespace: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(values).replace("{namespace}", namespace)))


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_object_is_taken(cluster: Cluster, crds: None, restricted: str, values: dict[str, Any]) -> None:
    objects = render(filled(values, restricted), *SERVED, namespace=restricted)
    pod = pod_of(only(objects, "Deployment"))
    everything = {"apiVersion": "v1", "kind": "List", "items": [*objects, pod]}
    answered = cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-",
        stdin=json.dumps(everything),
    )  # fmt: skip
    assert len(answered.splitlines()) == len(objects) + 1


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return the pod that the Deployment would make, under an account that is there already."""
    template = copy.deepcopy(deployment["spec"]["template"])
    template["spec"]["serviceAccountName"] = "default"
    metadata = {**template["metadata"], "name": "operator", "namespace": deployment["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def test_the_namespace_above_would_refuse_a_lesser_pod(cluster: Cluster, restricted: str) -> None:
    pod = pod_of(only(render(namespace=restricted), "Deployment"))
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    with pytest.raises(RuntimeError, match=r"violates PodSecurity.*unrestricted capabilities"):
        cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_the_operators_pod_is_locked_down() -> None:
    pod = only(render(), "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert {probe for probe in container if probe.endswith("Probe")} == {
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
    }
    assert container["resources"]["limits"]["memory"]
