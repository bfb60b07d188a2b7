"""The pure parts of localcluster: what is told to containers, what phases mean, how clouds' nodes look."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from localcluster import clouds
from localcluster.images import Image
from localcluster.node import admission, podstatus
from localcluster.node.environment import ConfigError, container_environment, expand, quantity
from localcluster.node.paths import PathMap
from localcluster.nodespec import NodeSpec, Taint

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y2z"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$", "$$"),
        ("$A ${A} $( A) $(", "$A ${A} $( A) $("),
    ],
)
def test_references_expand_as_in_a_kubelet(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


PATHS = PathMap(
    {"/data": Path("/real/d"), "/data/sub": Path("/real/s"), "/dev/termination-log": Path("/real/t"), "/": Path("/no")},
    {"127.0.0.1:9000": "127.0.0.1:20001"},
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/data", "/real/d"),
        ("/data/x.png", "/real/d/x.png"),
        ("/data/sub/x", "/real/s/x"),
        ("--out=/data", "--out=/real/d"),
        ("/data:/data/sub", "/real/d:/real/s"),
        ('{"a":"/data","b":"file:///data/y"}', '{"a":"/real/d","b":"file:///real/d/y"}'),
        ("echo > /dev/termination-log; true", "echo > /real/t; true"),
        ("ls /data.", "ls /real/d."),
        ("s3://data/x", "s3://data/x"),
        ("s3://bucket/data/x", "s3://bucket/data/x"),
        ("https://host:9000/data", "https://host:9000/data"),
        ("/database /data-2 /data.json /my/data ./data", "/database /data-2 /data.json /my/data ./data"),
        ("http://127.0.0.1:9000/x", "http://127.0.0.1:20001/x"),
        ("http://127.0.0.1:90001/x 1127.0.0.1:9000", "http://127.0.0.1:90001/x 1127.0.0.1:9000"),
    ],
)
def test_mount_paths_are_rewritten_where_they_stand_alone(text: str, told: str) -> None:
    assert PATHS.translate(text) == told


@pytest.mark.parametrize(
    ("command", "args", "line"),
    [
        (None, None, ["run", "default"]),
        (None, ["mine"], ["run", "mine"]),
        (["other"], None, ["other"]),
        (["other"], ["mine"], ["other", "mine"]),
    ],
)
def test_command_and_args_take_the_places_of_entrypoint_and_cmd(
    command: list[str] | None, args: list[str] | None, line: list[str]
) -> None:
    assert Image(("run",), ("default",)).command_line(command, args) == line


@pytest.mark.parametrize(
    ("text", "amount"), [("1", 1), ("1500m", 1.5), ("2Ki", 2048), ("1.5Gi", 1610612736), ("3k", 3000)]
)
def test_quantities(text: str, amount: float) -> None:
    assert quantity(text) == amount


def environment(container: Json, objects: dict[tuple[str, str], Json]) -> dict[str, str]:
    meta = {"name": "p", "namespace": "n", "uid": "u"}
    pod = {"metadata": meta, "spec": {"containers": [{"name": "c", **container}]}}

    async def fetch(kind: str, name: str) -> Json | None:
        return objects.get((kind, name))

    return asyncio.run(container_environment(pod, {"name": "c", **container}, {}, fetch, {"cpu": "4"}))


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"secretKeyRef": {"name": "absent", "key": "k"}}, 'secret "absent" not found'),
        ({"configMapKeyRef": {"name": "absent", "key": "k"}}, 'configmap "absent" not found'),
        ({"secretKeyRef": {"name": "s", "key": "absent"}}, "couldn't find key absent in Secret n/s"),
        ({"fieldRef": {"fieldPath": "spec.absent"}}, "unsupported fieldPath: spec.absent"),
    ],
)
def test_what_is_missing_is_named_as_a_kubelet_names_it(origin: Json, message: str) -> None:
    objects = {("secrets", "s"): {"data": {"k": base64.b64encode(b"v").decode()}}}
    with pytest.raises(ConfigError) as error:
        environment({"env": [{"name": "X", "valueFrom": origin}]}, objects)
    assert str(error.value) == message


def test_limits_that_are_not_set_are_the_nodes() -> None:
    origin = {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert environment({"env": [{"name": "X", "valueFrom": origin}]}, {}) == {"X": "4"}


RUN: Json = {"running": {}}
WAIT: Json = {"waiting": {"reason": "x"}}


def status(state: Json, restarts: int = 0) -> Json:
    return podstatus.container_status({"name": "c"}, state=state, restartCount=restarts)


def ended(code: int) -> Json:
    return status({"terminated": {"exitCode": code}})


@pytest.mark.parametrize(
    ("policy", "init", "containers", "phase"),
    [
        ("Never", [], [status(WAIT)], "Pending"),
        ("Never", [], [status(RUN)], "Running"),
        ("Never", [], [ended(0)], "Succeeded"),
        ("Never", [], [ended(3)], "Failed"),
        ("Never", [], [ended(0), status(RUN)], "Running"),
        ("Never", [], [ended(0), status(WAIT)], "Running"),
        ("Never", [], [ended(0), ended(1)], "Failed"),
        ("OnFailure", [], [ended(1)], "Running"),
        ("OnFailure", [], [ended(0)], "Succeeded"),
        ("Always", [], [ended(0)], "Running"),
        ("Always", [], [status(WAIT, restarts=1)], "Running"),
        ("Never", [status(RUN)], [status(WAIT)], "Pending"),
        ("Never", [ended(1)], [status(WAIT)], "Failed"),
        ("OnFailure", [ended(1)], [status(WAIT)], "Pending"),
        ("Never", [ended(0)], [status(RUN)], "Running"),
    ],
)
def test_phases(policy: str, init: list[Json], containers: list[Json], phase: str) -> None:
    assert podstatus.phase(policy, init, containers) == phase


def test_conditions_keep_the_time_of_their_last_change() -> None:
    first = podstatus.conditions("Running", [], [status(RUN) | {"ready": True}], [], "then")
    second = podstatus.conditions("Running", [], [status(RUN) | {"ready": True}], first, "now")
    assert first == second
    last = {c["type"]: c for c in podstatus.conditions("Failed", [], [ended(1)], second, "now")}
    assert last["Ready"] | {"status": "False", "reason": "PodFailed", "lastTransitionTime": "now"} == last["Ready"]
    assert last["Initialized"]["lastTransitionTime"] == "then"


def gpu_pod(gpus: int, **selector: str) -> Json:
    limits = {"nvidia.com/gpu": str(gpus)}
    return {"spec": {"nodeSelector": selector, "containers": [{"resources": {"limits": limits}}]}}


@pytest.mark.parametrize(
    ("pod", "in_use", "shutting_down", "reason"),
    [
        (gpu_pod(1, a="b"), 1, False, None),
        (gpu_pod(2, a="b"), 1, False, "OutOfnvidia.com/gpu"),
        (gpu_pod(0, a="c"), 0, False, "NodeAffinity"),
        (gpu_pod(0), 0, True, "NodeShutdown"),
    ],
)
def test_admission(pod: Json, in_use: int, shutting_down: bool, reason: str | None) -> None:
    found = admission.refusal(
        pod, labels={"a": "b"}, capacity={"nvidia.com/gpu": "2"}, gpus_in_use=in_use, shutting_down=shutting_down
    )
    assert (found[0] if found else None) == reason


@pytest.mark.parametrize(
    ("cloud", "label", "taint"),
    [
        ("eks-karpenter", ("karpenter.sh/capacity-type", "spot"), None),
        ("eks-managed", ("eks.amazonaws.com/capacityType", "SPOT"), None),
        ("gke", ("cloud.google.com/gke-spot", "true"), "cloud.google.com/gke-spot"),
        ("aks", ("kubernetes.azure.com/scalesetpriority", "spot"), "kubernetes.azure.com/scalesetpriority"),
    ],
)
def test_spot_nodes_look_as_their_clouds_make_them(cloud: str, label: tuple[str, str], taint: str | None) -> None:
    spot = NodeSpec("n", cloud=cloud, capacity_type="spot", gpus=1)
    assert clouds.labels_of(spot)[label[0]] == label[1]
    keys = {found.key for found in clouds.taints_of(spot)}
    assert keys == {"nvidia.com/gpu"} | ({taint} if taint else set())
    on_demand = NodeSpec("n", cloud=cloud)
    assert clouds.labels_of(on_demand).get(label[0]) != label[1]
    assert clouds.taints_of(on_demand) == []


def test_an_empty_label_removes_the_clouds_own() -> None:
    spec = NodeSpec("n", cloud="gke", capacity_type="spot", labels={"cloud.google.com/gke-spot": "", "mine": "yes"})
    labels = clouds.labels_of(spec)
    assert "cloud.google.com/gke-spot" not in labels
    assert labels["mine"] == "yes"


@pytest.mark.parametrize("text", ["", "key", "key=value", "key:Never", ":NoSchedule"])
def test_taints_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write key=value:NoSchedule"):
        Taint.parse(text)


def test_taints_are_read() -> None:
    assert Taint.parse("a/b=c:NoExecute") == Taint("a/b", "c", "NoExecute")
    assert Taint.parse("a:NoSchedule") == Taint("a", "", "NoSchedule")
