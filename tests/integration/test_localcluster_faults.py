"""Faults show what the clouds show, on real Nodes and pods."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from localcluster.cluster import Cluster
from localcluster.images import SHELL
from localcluster.waiting import eventually
from tests.integration.processes import alive

Json = dict[str, Any]
FINALIZER = "lorafinetune.io/test"
TRAP = "trap 'exit 86' TERM; echo $$$$ ready; while true; do sleep 0.1; done"


@pytest.fixture(scope="module", autouse=True)
def ready_node(cluster: Cluster) -> Iterator[None]:
    """One node that always stays Ready: with none left, Kubernetes stops evicting from lost nodes."""
    cluster.add_node("steady")
    yield
    cluster.remove_node("steady")


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[None]:
    """Remove what the test's nodes left."""
    yield
    for name in cluster.status()["nodes"]:
        if name != "steady":
            cluster.remove_node(name)


def run(cluster: Cluster, namespace: str, node: str, name: str, script: str = TRAP, **more: Any) -> int:
    """Run a pod that is held by a finalizer on a node; returns the pid of its process."""
    annotations = more.pop("annotations", {})
    spec = {
        "restartPolicy": "Never", "nodeSelector": {"kubernetes.io/hostname": node},
        "tolerations": [
            {"operator": "Exists", "effect": "NoSchedule"},
            {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
        ],
        "terminationGracePeriodSeconds": 10,
        "containers": [{"name": "main", "image": SHELL, "command": ["sh", "-c", script]}],
    } | more  # fmt: skip
    meta = {"name": name, "namespace": namespace, "finalizers": [FINALIZER], "annotations": annotations}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    logs = ("logs", name, "-n", namespace)
    return int(eventually(lambda: cluster.kubectl(*logs, check=False), 60, f"{name} runs").split()[0])


class Look:
    """Reads pods and nodes of the test."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def pod(self, name: str) -> Json:
        return self.cluster.get("pod", name, "-n", self.namespace)

    def ended(self, name: str, seconds: float = 60) -> Json:
        def probe() -> Json | None:
            found = self.pod(name)
            return found if found["status"]["phase"] in ("Failed", "Succeeded") else None

        return eventually(probe, seconds, f"pod {name} has ended")

    def disruption(self, name: str) -> str | None:
        conditions = {c["type"]: c.get("reason") for c in self.pod(name)["status"].get("conditions", [])}
        return conditions.get("DisruptionTarget")

    def node(self, name: str) -> Json | None:
        text = self.cluster.kubectl("get", "node", name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(text)) if text else None

    def taints(self, name: str) -> set[str]:
        return {f"{t['key']}:{t['effect']}" for t in (self.node(name) or {}).get("spec", {}).get("taints", [])}

    def condition(self, node: str, kind: str) -> tuple[str, str] | None:
        for found in (self.node(node) or {}).get("status", {}).get("conditions", []):
            if found["type"] == kind:
                return found["status"], found["reason"]
        return None

    def let_go(self, *names: str) -> None:
        for name in names:
            patch = '{"metadata":{"finalizers":null}}'
            self.cluster.kubectl("patch", "pod", name, "-n", self.namespace, "--type=merge", "-p", patch)


@pytest.fixture
def look(cluster: Cluster, namespace: str, nodes: None) -> Look:
    return Look(cluster, namespace)


def exit_code(pod: Json) -> int:
    return int(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"])


def test_karpenter_reclaims_a_spot_node_with_notice(cluster: Cluster, look: Look) -> None:
    cluster.add_node("kar", cloud="eks-karpenter", capacity_type="spot", gpus=1, pool="spot-4090")
    assert look.node("kar")["metadata"]["labels"]["karpenter.sh/capacity-type"] == "spot"  # type: ignore[index]
    run(cluster, look.namespace, "kar", "moved")
    kept = run(cluster, look.namespace, "kar", "kept", annotations={"karpenter.sh/do-not-disrupt": "true"})
    cluster.faults.preempt("kar", notice=5, replace_after=0.5)
    assert exit_code(look.ended("moved")) == 86
    assert look.disruption("moved") == "EvictionByEvictionAPI"
    node = look.node("kar")
    assert node is not None
    assert node["metadata"]["deletionTimestamp"]
    assert {"karpenter.sh/disrupted:NoSchedule", "nvidia.com/gpu:NoSchedule"} <= look.taints("kar")
    assert alive(kept), "Karpenter does not evict a pod that says do-not-disrupt"
    assert look.disruption("kept") is None
    eventually(lambda: look.node("kar") is None, 60, "the Node goes with its machine")
    assert not alive(kept)
    eventually(lambda: look.condition("kar-r2", "Ready") == ("True", "KubeletReady"), 60, "a node of the pool joins")
    replacement = look.node("kar-r2")
    assert replacement is not None
    assert replacement["metadata"]["labels"]["karpenter.sh/nodepool"] == "spot-4090"
    look.let_go("moved", "kept")


def test_karpenter_ends_a_node_as_soon_as_it_is_drained(cluster: Cluster, look: Look) -> None:
    cluster.add_node("quick", cloud="eks-karpenter", capacity_type="spot")
    run(cluster, look.namespace, "quick", "only")
    cluster.faults.preempt("quick", notice=600)
    eventually(lambda: look.node("quick") is None, 30, "the Node goes long before the notice is over")
    assert exit_code(look.ended("only")) == 86
    look.let_go("only")


def test_gke_shuts_a_spot_node_down_gracefully_and_brings_it_back_under_its_name(cluster: Cluster, look: Look) -> None:
    cluster.add_node("gk", cloud="gke", capacity_type="spot", gpus=1)
    assert "cloud.google.com/gke-spot:NoSchedule" in look.taints("gk")
    boot = look.node("gk")["status"]["nodeInfo"]["bootID"]  # type: ignore[index]
    forever = {"tolerations": [{"operator": "Exists"}]}  # else the taint of a node that is not Ready may be quicker
    ignore = "trap '' TERM; echo $$$$; while true; do sleep 0.1; done"
    run(cluster, look.namespace, "gk", "polite", **forever)
    stubborn = run(cluster, look.namespace, "gk", "stubborn", ignore, **forever)
    cluster.faults.preempt("gk", notice=8, replace_after=1)
    eventually(lambda: look.condition("gk", "Ready") == ("False", "KubeletNotReady"), 5, "not Ready at once")
    refused = {"restartPolicy": "Never", "nodeName": "gk", "containers": [{"name": "main", "image": SHELL}]}
    meta = {"name": "refused", "namespace": look.namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": refused})
    assert look.ended("refused")["status"]["reason"] == "NodeShutdown"
    for name, code in (("polite", 86), ("stubborn", 137)):
        ended = look.ended(name)
        assert exit_code(ended) == code
        assert ended["status"]["reason"] == "Terminated"
        assert ended["status"]["message"] == "Pod was terminated in response to imminent node shutdown."
        assert look.disruption(name) == "TerminationByKubelet"
    assert not alive(stubborn)
    shutdown = "node.cloudprovider.kubernetes.io/shutdown:NoSchedule"
    eventually(lambda: shutdown in look.taints("gk"), 60, "the machine is switched off, its Node stays")

    def is_back() -> bool:
        info = (look.node("gk") or {})["status"]["nodeInfo"]
        return info["bootID"] != boot and look.condition("gk", "Ready") == ("True", "KubeletReady")

    eventually(is_back, 60, "the same name boots again")
    eventually(lambda: shutdown not in look.taints("gk"), 60, "the mark of the switched-off machine goes")
    look.let_go("polite", "stubborn")


def test_aks_and_managed_node_groups_announce_in_their_own_ways(cluster: Cluster, look: Look) -> None:
    cluster.add_node("ak", cloud="aks", capacity_type="spot", gpus=1)
    cluster.add_node("mng", cloud="eks-managed", capacity_type="spot", gpus=1)
    assert "kubernetes.azure.com/scalesetpriority:NoSchedule" in look.taints("ak")
    for node in ("ak", "mng"):
        run(cluster, look.namespace, node, f"on-{node}")
        cluster.faults.preempt(node, notice=5)
    assert look.condition("ak", "PreemptionScheduled") == ("True", "SpotEvictionIncoming")
    assert look.condition("ak", "VMEventScheduled") == ("True", "VMEventScheduled")
    assert look.condition("ak", "Ready") == ("True", "KubeletReady"), "our conditions and the kubelet's live together"
    assert look.node("mng")["spec"]["unschedulable"]  # type: ignore[index]
    eventually(
        lambda: "node.kubernetes.io/unschedulable:NoSchedule" in look.taints("mng"), 5, "a cordon shows as taint"
    )
    for node in ("ak", "mng"):
        assert exit_code(look.ended(f"on-{node}")) == 86
        assert look.disruption(f"on-{node}") == "EvictionByEvictionAPI"
        eventually(lambda node=node: look.node(node) is None, 60, f"{node} is gone")
    look.let_go("on-ak", "on-mng")


def test_a_drained_node_stays_and_a_budget_is_respected(cluster: Cluster, look: Look) -> None:
    cluster.add_node("dr", cloud="generic")
    run(cluster, look.namespace, "dr", "drained")
    cluster.faults.drain("dr", timeout=20)
    assert look.disruption("drained") == "EvictionByEvictionAPI"
    assert look.condition("dr", "Ready") == ("True", "KubeletReady")
    cluster.kubectl("uncordon", "dr")
    guarded = run(cluster, look.namespace, "dr", "guarded")
    cluster.kubectl("label", "pod", "guarded", "-n", look.namespace, "app=guarded")
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}
    meta = {"name": "guard", "namespace": look.namespace}
    cluster.apply({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": budget})
    with pytest.raises(RuntimeError, match=f"there still run on dr: {look.namespace}/guarded"):
        cluster.faults.drain("dr", timeout=3)
    assert alive(guarded)
    look.let_go("drained", "guarded")


class Beats(http.server.BaseHTTPRequestHandler):
    """Counts what reaches it: the webhook of the cut test."""

    count = 0

    def do_GET(self) -> None:
        Beats.count += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def beats() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Beats) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


BEAT = """
import signal, sys, time, urllib.request
signal.signal(signal.SIGTERM, lambda *_: sys.exit(86))
print('ready', flush=True)
while True:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=1).close()
    except OSError:
        pass
    time.sleep(0.1)
"""


def test_nodes_are_lost_with_and_without_their_pods_and_come_back(cluster: Cluster, look: Look, beats: int) -> None:
    address = f"127.0.0.1:{beats}"
    for name in ("cut", "killed", "forgotten"):
        cluster.add_node(name, cloud="generic", routes=[address])
    script = f'echo $$$$ ; exec python3 -c "$CODE" http://{address}/'
    code = [{"name": "main", "image": SHELL, "command": ["sh", "-c", script], "env": [{"name": "CODE", "value": BEAT}]}]
    zombie = run(cluster, look.namespace, "cut", "zombie", containers=code)
    victim = run(cluster, look.namespace, "killed", "victim")
    orphan = run(cluster, look.namespace, "forgotten", "orphan")
    boot = look.node("killed")["status"]["nodeInfo"]["bootID"]  # type: ignore[index]

    begin = time.monotonic()
    cluster.faults.cut("cut")
    cluster.faults.kill("killed")
    cluster.faults.kill("forgotten", delete_node_after=1)
    assert not alive(victim)
    assert not alive(orphan)
    assert alive(zombie)
    assert look.pod("victim")["status"]["phase"] == "Running", "nobody has told"
    eventually(lambda: look.node("forgotten") is None, 60, "the cloud's controller removes the Node")

    for name in ("cut", "killed"):
        eventually(
            lambda name=name: look.condition(name, "Ready") == ("Unknown", "NodeStatusUnknown"), 40, f"{name} is lost"
        )
        eventually(
            lambda name=name: "node.kubernetes.io/unreachable:NoExecute" in look.taints(name), 60, f"{name} is tainted"
        )
    assert time.monotonic() - begin > 8, "a lost node is noticed by its Lease, not at once"
    for name in ("zombie", "victim"):
        eventually(
            lambda name=name: look.pod(name)["metadata"].get("deletionTimestamp"), 60, f"{name} is to be deleted"
        )
        assert look.disruption(name) == "DeletionByTaintManager"
        assert look.pod(name)["status"]["phase"] == "Running", "its node cannot tell how it ended"

    assert alive(zombie), "a cut-off node's pods run on"
    before = Beats.count
    eventually(lambda: Beats.count > before + 3, 5, "and still reach what they reached")
    cluster.faults.cut("cut", pods=True)
    time.sleep(1.2)  # what was under way has come or timed out
    before = Beats.count
    time.sleep(1)
    assert Beats.count == before, "until their routes are cut as well"

    cluster.faults.heal("cut")
    cluster.faults.heal("killed")
    ended = look.ended("zombie")
    assert exit_code(ended) == 86
    assert not alive(zombie)
    assert look.disruption("zombie") == "DeletionByTaintManager"
    lost = look.ended("victim")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (lost["exitCode"], lost["reason"]) == (137, "ContainerStatusUnknown")
    assert look.node("killed")["status"]["nodeInfo"]["bootID"] != boot  # type: ignore[index]
    for name in ("cut", "killed"):
        eventually(lambda name=name: look.condition(name, "Ready") == ("True", "KubeletReady"), 60, f"{name} is Ready")
    look.let_go("zombie", "victim", "orphan")


def test_wrong_requests_are_refused_with_a_reason(cluster: Cluster, nodes: None) -> None:
    with pytest.raises(RuntimeError, match="cloud 'moon' is unknown: choose one of eks-karpenter"):
        cluster.add_node("x", cloud="moon")
    with pytest.raises(RuntimeError, match="write key=value:NoSchedule"):
        cluster.add_node("x", taints=["nonsense"])
    with pytest.raises(RuntimeError, match="there is no node 'absent': the nodes are steady"):
        cluster.faults.preempt("absent")
    with pytest.raises(RuntimeError, match="node 'steady' exists already"):
        cluster.add_node("steady")


def test_a_machine_ends_on_time_although_the_api_server_is_away(cluster: Cluster, look: Look) -> None:
    cluster.add_node("late", cloud="eks-managed", capacity_type="spot")
    process = run(cluster, look.namespace, "late", "unseen")
    with cluster.faults.without_api_server():
        cluster.faults.preempt("late", notice=1)
        eventually(lambda: not alive(process), 60, "its pod's process is gone with it")
        with pytest.raises(RuntimeError, match="has ended: `heal` starts it again"):
            cluster.faults.cut("late")
    eventually(lambda: look.node("late") is None, 60, "the cloud's controller catches up")
    look.let_go("unseen")
