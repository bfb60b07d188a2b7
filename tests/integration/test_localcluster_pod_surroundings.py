"""What a pod that runs as a process is given (environment, volumes, tokens, images), and how its logs are read."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
from pathlib import Path

import pytest

from localcluster.cluster import Cluster
from localcluster.waiting import eventually
from tests.integration.room import NODE, Json, Room, pod, terminated


def config_map(name: str, data: Json) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, data: Json) -> Json:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


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
