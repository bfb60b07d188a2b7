"""Pods that run as processes keep the kubelet's contract, seen through the real API server."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcluster.cluster import Cluster
from localcluster.images import SHELL
from localcluster.waiting import eventually
from tests.integration.processes import alive

Json = dict[str, Any]
NODE = "plain"
FINALIZER = "lorafinetune.io/test"


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[str]:
    """A node with two GPUs whose projected tokens are renewed after half a second instead of eight minutes."""
    yield cluster.add_node(NODE, gpus=2, token_refresh_fraction=0.5 / 600)
    cluster.remove_node(NODE)


def pod(name: str, script: str = "sleep 300", **spec: Any) -> Json:
    container = {"name": "main", "image": SHELL, "command": ["sh", "-c"], "args": [script]}
    container |= spec.pop("container", {})
    defaults: Json = {
        "restartPolicy": "Never",
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": defaults | spec}


class Room:
    """One namespace of the cluster."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def apply(self, *objects: Json) -> None:
        for item in objects:
            item["metadata"]["namespace"] = self.namespace
        self.cluster.apply(*objects)

    def pod(self, name: str) -> Json:
        return self.cluster.get("pod", name, "-n", self.namespace)

    def exists(self, name: str) -> bool:
        return bool(self.cluster.kubectl("get", "pod", name, "-n", self.namespace, "--ignore-not-found"))

    def phase(self, name: str, *wanted: str, seconds: float = 60) -> Json:
        def probe() -> Json | None:
            found = self.pod(name)
            return found if found["status"].get("phase") in wanted else None

        return eventually(probe, seconds, f"pod {name} is {' or '.join(wanted)}")

    def state(self, name: str) -> Json:
        return dict(self.pod(name)["status"].get("containerStatuses", [{"state": {}}])[0]["state"])

    def waits(self, name: str, *reasons: str) -> Json:
        def probe() -> Json | None:
            found = self.state(name).get("waiting", {})
            return found if found.get("reason") in reasons else None

        return eventually(probe, 60, f"pod {name} waits with {reasons}")

    def logs(self, name: str, *options: str) -> str:
        return self.cluster.kubectl("logs", name, "-n", self.namespace, *options)

    def log_has(self, name: str, text: str) -> None:
        """Wait for output that says that the process has come so far."""
        asked = ("logs", name, "-n", self.namespace)
        eventually(lambda: text in self.cluster.kubectl(*asked, check=False), 60, f"pod {name} says {text}")

    def let_go(self, name: str) -> None:
        """Remove the finalizer, as the operator does when it has stored how the pod ended."""
        patch = '{"metadata":{"finalizers":null}}'
        self.cluster.kubectl("patch", "pod", name, "-n", self.namespace, "--type=merge", "-p", patch)

    def delete(self, name: str, *options: str) -> None:
        self.cluster.kubectl("delete", "pod", name, "-n", self.namespace, *options)


@pytest.fixture
def room(cluster: Cluster, namespace: str, node: str) -> Room:
    return Room(cluster, namespace)


def terminated(found: Json, index: int = 0) -> Json:
    return dict(found["status"]["containerStatuses"][index]["state"]["terminated"])


def config_map(name: str, data: Json) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, data: Json) -> Json:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


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


def test_the_environment_is_what_a_container_gets_and_no_more(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = [
        {"name": "PLAIN", "value": "one"},
        {"name": "EXPANDED", "value": "$(PLAIN)-$(FROM_MAP)-$(UNKNOWN)-$$(PLAIN)"},
        {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
        {"name": "AGAIN", "value": "$(FROM_MAP)"},
        {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x", "optional": True}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "UID_", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['team']"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    ]
    source = [{"prefix": "M_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}]
    made = pod("env", "env -0 | base64 -w0", container={
        "env": environment, "envFrom": source, "resources": {"limits": {"memory": "512Mi"}},
    })  # fmt: skip
    made["metadata"]["labels"] = {"team": "timber"}
    room.apply(config_map("settings", {"a": "A", "b": "B"}), secret("keys", {"password": "p w"}), made)
    found = room.phase("env", "Succeeded")
    lines = base64.b64decode(room.logs("env")).decode().split("\0")
    seen = dict(line.split("=", 1) for line in lines if line)
    wanted = {
        "PLAIN": "one", "EXPANDED": "one-$(FROM_MAP)-$(UNKNOWN)-$(PLAIN)", "FROM_MAP": "A", "AGAIN": "A",
        "FROM_SECRET": "p w", "NODE": NODE, "UID_": found["metadata"]["uid"], "LABEL": "timber", "MEMORY": "512",
        "M_a": "A", "M_b": "B", "password": "p w", "HOSTNAME": "env",
    }  # fmt: skip
    assert {name: seen.get(name) for name in wanted} == wanted
    given = {"PATH", "HOME", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "LD_LIBRARY_PATH"}
    assert {name for name in seen if not name.startswith("KUBERNETES_SERVICE_")} - set(wanted) <= given
    assert Path(seen["HOME"]).parts[-5] == "pods"


def test_volumes_hold_what_they_should_and_paths_are_told_by_environment_and_arguments(room: Room) -> None:
    volumes = [
        {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "a", "path": "deep/a.txt"}]}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "maybe", "configMap": {"name": "absent", "optional": True}},
        {"name": "mixed", "projected": {"sources": [
            {"secret": {"name": "keys"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "audience": "somebody", "expirationSeconds": 600}},
        ]}},
    ]  # fmt: skip
    mounts = [
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "keys", "mountPath": "/etc/keys"},
        {"name": "scratch", "mountPath": "/data"},
        {"name": "scratch", "mountPath": "/data/sub", "subPath": "inner"},
        {"name": "maybe", "mountPath": "/maybe"},
        {"name": "mixed", "mountPath": "/var/run/secrets/mixed/"},
    ]
    script = (
        "cat $(SETTINGS)/deep/a.txt; echo; cat /etc/keys/password; stat -Lc ' %a' /etc/keys/password; ls /maybe; "
        "echo x > /data/sub/file; cat /data/inner/file; cat /var/run/secrets/mixed/name; echo; "
        "ls /var/run/secrets/mixed; echo s3://bucket/data/x $JSON"
    )
    environment = [
        {"name": "SETTINGS", "value": "/etc/settings"},
        {
            "name": "JSON",
            "value": '{"scratch":"/data/work","uri":"s3://b/data","token":"/var/run/secrets/mixed/token"}',
        },
    ]
    room.apply(
        config_map("settings", {"a": "A", "b": "B"}), secret("keys", {"password": "hidden"}),
        pod("vol", script, volumes=volumes, container={"volumeMounts": mounts, "env": environment}),
    )  # fmt: skip
    room.phase("vol", "Succeeded")
    *lines, last = room.logs("vol").splitlines()
    assert lines == ["A", "hidden 400", "x", "vol", "name", "password", "token"]
    uri, told = last.split(" ", 1)
    assert uri == "s3://bucket/data/x"
    paths = json.loads(told)
    assert paths["uri"] == "s3://b/data"
    assert paths["scratch"].endswith("/volumes/scratch/work")
    assert paths["token"].endswith("/volumes/mixed/token")


def test_projected_tokens_are_bound_to_the_pod_and_renewed(room: Room, cluster: Cluster) -> None:
    source = {"serviceAccountToken": {"path": "token", "audience": "receiver", "expirationSeconds": 600}}
    script = 'while true; do t=$(cat /tok/token); [ "$t" = "$o" ] || echo "$t"; o=$t; sleep 0.1; done'
    room.apply(pod(
        "tok", script, volumes=[{"name": "tok", "projected": {"sources": [source]}}],
        container={"volumeMounts": [{"name": "tok", "mountPath": "/tok"}]},
    ))  # fmt: skip
    found = room.phase("tok", "Running")
    tokens = eventually(lambda: lines if len(lines := room.logs("tok").split()) > 1 else None, 60, "a second token")

    def review(token: str, audience: str) -> Json:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        body |= {"spec": {"token": token, "audiences": [audience]}}
        return dict(json.loads(cluster.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(body)))["status"])

    for token in tokens[:2]:
        status = review(token, "receiver")
        assert status["authenticated"]
        assert status["user"]["username"] == f"system:serviceaccount:{room.namespace}:default"
        assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [found["metadata"]["uid"]]
    assert not review(tokens[0], "somebody-else").get("authenticated")
    room.delete("tok", "--wait=true")
    eventually(lambda: not review(tokens[0], "receiver").get("authenticated"), 60, "a deleted pod's token is refused")


def test_secrets_that_are_missing_are_named_and_awaited(room: Room) -> None:
    reference = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "later", "key": "x"}}}]
    room.apply(
        pod("env-waits", "echo $X", container={"env": reference}),
        pod(
            "volume-waits", "cat /s/x", volumes=[{"name": "s", "secret": {"secretName": "later"}}],
            container={"volumeMounts": [{"name": "s", "mountPath": "/s"}]},
        ),
    )  # fmt: skip
    assert room.waits("env-waits", "CreateContainerConfigError")["message"] == 'secret "later" not found'
    assert room.waits("volume-waits", "ContainerCreating")
    events = ("events", "-n", room.namespace, "--field-selector", "involvedObject.name=volume-waits,reason=FailedMount")
    found = eventually(lambda: room.cluster.get(*events)["items"], 60, "an event says what is missing")
    assert 'MountVolume.SetUp failed for volume "s" : secret "later" not found' in found[0]["message"]
    room.apply(secret("later", {"x": "here"}))
    for name in ("env-waits", "volume-waits"):
        room.phase(name, "Succeeded", seconds=30)
        assert room.logs(name).strip() == "here"


def test_images_that_are_not_there_cannot_be_pulled(room: Room) -> None:
    room.apply(
        pod("unknown", container={"image": "registry.example/none:1"}),
        pod("wrong", container={"image": "Not An Image"}),
        pod("no-program", container={"command": ["/no/such/program"]}),
    )
    room.waits("unknown", "ErrImagePull")
    assert "registry.example/none:1" in room.waits("unknown", "ImagePullBackOff")["message"]
    room.waits("wrong", "InvalidImageName")
    assert room.pod("unknown")["status"]["phase"] == "Pending"
    failed = terminated(room.phase("no-program", "Failed"))
    assert (failed["exitCode"], failed["reason"]) == (128, "StartError")
    room.cluster.add_image("registry.example/none:1", entrypoint=["echo"], environment={"A": "b"})
    room.delete("unknown", "--wait=true")
    changed = pod("unknown")
    changed["spec"]["containers"][0] = {"name": "main", "image": "registry.example/none:1", "args": ["$(A)", "x"]}
    changed["spec"]["containers"][0]["env"] = [{"name": "A", "value": "y"}]
    room.apply(changed)
    room.phase("unknown", "Succeeded")
    assert room.logs("unknown") == "y x\n"


TRAP = "trap 'echo got TERM; echo saved > /dev/termination-log; exit 86' TERM; sleep 300 & echo $! ready; wait"


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


def test_logs_are_served_followed_and_limited(room: Room) -> None:
    script = (
        "for i in 1 2 3; do echo line $i; echo oops $i >&2; done; "
        "while [ ! -e /go/now ]; do sleep 0.05; done; printf 'a\\rb\\n'; echo last"
    )
    volume = {"name": "go", "emptyDir": {}}
    mount = {"volumeMounts": [{"name": "go", "mountPath": "/go"}]}
    room.apply(pod("chatty", script, volumes=[volume], container=mount))
    room.log_has("chatty", "oops 3")
    wanted = [f"line {i}" for i in (1, 2, 3)] + [f"oops {i}" for i in (1, 2, 3)]
    assert sorted(room.logs("chatty").splitlines()) == wanted
    assert len(room.logs("chatty", "--tail=2").splitlines()) == 2
    assert room.logs("chatty", "--tail=0") == ""
    stamp, word, _ = room.logs("chatty", "--timestamps", "--tail=1").split()
    assert word in ("line", "oops")
    assert stamp.startswith(room.pod("chatty")["status"]["startTime"][:13])
    assert len(room.logs("chatty", "--limit-bytes=5")) == 5
    kubectl = [room.cluster.kubectl_program, "--kubeconfig", room.cluster.kubeconfig]
    with subprocess.Popen([*kubectl, "logs", "-f", "chatty", "-n", room.namespace], stdout=subprocess.PIPE) as follow:
        directory = Path(room.cluster.status()["nodes"][NODE]["directory"])
        (directory / "pods" / room.pod("chatty")["metadata"]["uid"] / "volumes" / "go" / "now").touch()
        output, _ = follow.communicate(timeout=20)
    assert output.split(b"\n")[-3:] == [b"a\rb", b"last", b""]
    assert len(output.split(b"\n")) == 9


def test_the_log_port_answers_the_api_server_only(room: Room, cluster: Cluster) -> None:
    port = cluster.get("node", NODE)["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    pki = cluster.directory / "pki"

    def ask(credentials: str | None) -> int:
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        if credentials:
            tls.load_cert_chain(pki / f"{credentials}.crt", pki / f"{credentials}.key")
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=tls, timeout=10)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status
        finally:
            connection.close()

    assert ask("kubelet-client") == 200
    assert ask("admin") == 403
    with pytest.raises(OSError):  # by TLS itself, which says it in more than one way
        ask(None)


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
