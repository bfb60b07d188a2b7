"""Pods that run as processes live and end as a kubelet's do, seen through the real API server."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from localcluster.cluster import Cluster
from localcluster.images import SHELL
from localcluster.waiting import eventually
from tests.integration.processes import alive
from tests.integration.room import FINALIZER, NODE, Room, pod, terminated

TRAP = "trap 'echo got TERM; echo saved > /dev/termination-log; exit 86' TERM; sleep 300 & echo $! ready; wait"


def test_the_node_is_a_real_node(cluster: Cluster, node: str) -> None:
    found = cluster.get("node", node)
    assert found["metadata"]["labels"]["nvidia.com/gpu.product"] == "RTX-4090"
    assert {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"} in found["spec"]["taints"]
    assert found["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert (
        found["status"]["nodeInfo"]["kubeletVersion"]
        == json.loads(cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    )
    lease = ("lease", node, "-n", "kube-node-lease")
    first = cluster.get(*lease)["spec"]["renewTime"]
    eventually(lambda: cluster.get(*lease)["spec"]["renewTime"] > first, 60, "the Lease is renewed")


def test_exit_codes_become_phases_and_states(room: Room) -> None:
    room.apply(pod("good", "exit 0"), pod("bad", "exit 42"), pod("killed", "kill -9 $$$$"))
    good = room.phase("good", "Succeeded")
    assert terminated(good) | {"exitCode": 0, "reason": "Completed"} == terminated(good)
    bad = terminated(room.phase("bad", "Failed"))
    assert (bad["exitCode"], bad["reason"]) == (42, "Error")
    assert bad["startedAt"] <= bad["finishedAt"]
    killed = terminated(room.phase("killed", "Failed"))
    assert (killed["exitCode"], killed["signal"], killed["reason"]) == (137, 9, "Error")
    conditions = {c["type"]: c for c in good["status"]["conditions"]}
    assert conditions["Ready"]["status"] == "False"
    assert conditions["Ready"]["reason"] == "PodCompleted"
    assert conditions["PodScheduled"]["status"] == "True"


def test_deletion_sends_sigterm_to_the_main_process_and_keeps_the_end_for_a_finalizer(room: Room) -> None:
    made = pod("held", TRAP)
    made["metadata"]["finalizers"] = [FINALIZER]
    room.apply(made)
    room.log_has("held", "ready")
    child = int(room.logs("held").split()[0])
    room.delete("held", "--wait=false")
    found = room.phase("held", "Failed")
    ended = terminated(found)
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (86, "Error", "saved\n")
    assert found["metadata"]["deletionTimestamp"]
    assert "got TERM" in room.logs("held")
    assert not alive(child), "what the main process left behind is killed when it has ended"
    eventually(lambda: room.pod("held")["metadata"].get("deletionGracePeriodSeconds") == 0, 60, "deleted with grace 0")
    room.let_go("held")
    eventually(lambda: not room.exists("held"), 60, "the pod is gone")


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_with_all_its_children(room: Room) -> None:
    script = "trap '' TERM; (setsid sleep 301 & echo $!); sleep 302 & echo $! ready; wait; wait"
    made = pod("stubborn", script, terminationGracePeriodSeconds=2)
    made["metadata"]["finalizers"] = [FINALIZER]
    room.apply(made)
    room.log_has("stubborn", "ready")
    escaped, child = (int(word) for word in room.logs("stubborn").split() if word != "ready")
    begin = time.monotonic()
    room.delete("stubborn", "--wait=false")
    ended = terminated(room.phase("stubborn", "Failed"))
    assert time.monotonic() - begin >= 2
    assert (ended["exitCode"], ended["signal"]) == (137, 9)
    assert not alive(child)
    assert not alive(escaped)
    room.let_go("stubborn")


def test_a_second_deletion_with_less_grace_shortens_the_wait(room: Room) -> None:
    room.apply(
        pod("slow", "trap '' TERM; echo ready; while true; do sleep 0.1; done", terminationGracePeriodSeconds=120)
    )
    room.log_has("slow", "ready")
    room.delete("slow", "--wait=false")
    room.delete("slow", "--wait=false", "--grace-period=1")
    eventually(lambda: not room.exists("slow"), 15, "the pod is gone long before its first grace")


def test_a_pod_deleted_by_force_still_ends_on_its_node(room: Room) -> None:
    room.apply(pod("forced", "echo $$$$ ready; exec sleep 300"))
    room.log_has("forced", "ready")
    process = int(room.logs("forced").split()[0])
    room.delete("forced", "--force", "--grace-period=0")
    eventually(lambda: not alive(process), 60, "the process ends although its pod is gone")


def test_termination_message_falls_back_to_the_log(room: Room) -> None:
    room.apply(
        pod("fallback", "echo why; exit 1", container={"terminationMessagePolicy": "FallbackToLogsOnError"}),
        pod("file", "printf short > /my/note; echo log; exit 1", container={"terminationMessagePath": "/my/note"}),
        pod("long", "head -c 10000 /dev/zero | tr '\\0' x > /dev/termination-log"),
    )  # fmt: skip
    assert terminated(room.phase("fallback", "Failed"))["message"] == "why\n"
    assert terminated(room.phase("file", "Failed"))["message"] == "short"
    assert terminated(room.phase("long", "Succeeded"))["message"] == "x" * 4096


def test_init_containers_run_first_and_restarts_follow_the_policy(room: Room) -> None:
    shared = [{"name": "d", "mountPath": "/d"}]
    init = [{"name": "first", "image": SHELL, "command": ["sh", "-c", "echo made > /d/file"], "volumeMounts": shared}]
    volumes = [{"name": "d", "emptyDir": {}}]
    room.apply(
        pod("ordered", "cat /d/file", initContainers=init, volumes=volumes, container={"volumeMounts": shared}),
        pod("init-fails", initContainers=[{"name": "first", "image": SHELL, "command": ["false"]}]),
        pod(
            "retried", "if [ -e /d/done ]; then exit 0; fi; touch /d/done; exit 7", restartPolicy="OnFailure",
            volumes=volumes, container={"volumeMounts": shared},
        ),
    )  # fmt: skip
    room.phase("ordered", "Succeeded")
    assert room.logs("ordered") == "made\n"
    failed = room.phase("init-fails", "Failed")
    assert failed["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert room.waits("retried", "CrashLoopBackOff")
    assert room.pod("retried")["status"]["phase"] == "Running"
    again = room.phase("retried", "Succeeded", seconds=30)["status"]["containerStatuses"][0]
    assert again["restartCount"] == 1
    assert again["lastState"]["terminated"]["exitCode"] == 7


def test_a_container_over_its_memory_limit_is_oom_killed(room: Room) -> None:
    script = f"exec {sys.executable} -c 'b = bytearray(300 << 20); import time; time.sleep(60)'"
    room.apply(pod("greedy", script, container={"resources": {"limits": {"memory": "100Mi"}}}))
    ended = terminated(room.phase("greedy", "Failed"))
    assert (ended["exitCode"], ended["reason"], ended["signal"]) == (137, "OOMKilled", 9)


def test_a_pod_past_its_active_deadline_fails(room: Room) -> None:
    room.apply(pod("late", activeDeadlineSeconds=1))
    found = room.phase("late", "Failed")
    assert found["status"]["reason"] == "DeadlineExceeded"


def test_eviction_leaves_its_condition_on_the_ended_pod(room: Room, cluster: Cluster) -> None:
    made = pod("evicted", TRAP)
    made["metadata"]["finalizers"] = [FINALIZER]
    room.apply(made)
    room.log_has("evicted", "ready")
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted", "namespace": room.namespace}}
    path = f"/api/v1/namespaces/{room.namespace}/pods/evicted/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    found = room.phase("evicted", "Failed")
    conditions = {c["type"]: c for c in found["status"]["conditions"]}
    assert conditions["DisruptionTarget"]["reason"] == "EvictionByEvictionAPI"
    assert terminated(found)["exitCode"] == 86
    room.let_go("evicted")


def test_gpus_beyond_the_nodes_are_refused(room: Room) -> None:
    made = pod("too-many", container={"resources": {"limits": {"nvidia.com/gpu": "3"}}})
    del made["spec"]["nodeSelector"]
    made["spec"]["nodeName"] = NODE  # past the scheduler
    room.apply(made)
    assert room.phase("too-many", "Failed")["status"]["reason"] == "OutOfnvidia.com/gpu"


def test_a_node_writes_what_happened_while_the_api_server_was_away(room: Room, cluster: Cluster) -> None:
    room.apply(pod("meanwhile", "echo $$$$ ready; exec sleep 300"))
    room.log_has("meanwhile", "ready")
    process = int(room.logs("meanwhile").split()[0])
    with cluster.faults.without_api_server():
        os.kill(process, signal.SIGTERM)
        eventually(lambda: not alive(process), 60, "the container has ended")
    cluster.faults.compact()
    ended = terminated(room.phase("meanwhile", "Failed"))
    assert (ended["exitCode"], ended["signal"]) == (143, 15)
    room.apply(pod("afterwards", "exit 0"))
    room.phase("afterwards", "Succeeded")
