"""The hands on a real API server: each verb, and each error by what one can do about it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafinetune.kube import errors
from lorafinetune.kube.client import CONFIGMAPS, NODES, PODS, RUNS, Cluster, Resource

SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", namespaced=True)


def configmap(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        # No scheduler but ours would touch it: the tests below decide alone what happens to it.
        "spec": {"containers": [{"name": "trainer", "image": "x"}], "schedulerName": "nobody"},
    }


@pytest.fixture
def counted() -> Counter[tuple[str, str]]:
    return Counter()


@pytest.fixture
async def api(cluster: Any, counted: Counter[tuple[str, str]]) -> AsyncIterator[Cluster]:
    connection = await Cluster.connect(
        str(cluster.kubeconfig), on_request=lambda method, code: counted.update([(method, code)])
    )
    yield connection
    await connection.close()


async def test_get_of_what_is_not_there_is_none(api: Cluster, namespace: str) -> None:
    assert await api.get(PODS, "absent", namespace) is None
    assert await api.get(NODES, "absent") is None


async def test_create_get_delete(api: Cluster, namespace: str, counted: Counter[tuple[str, str]]) -> None:
    made = await api.create(CONFIGMAPS, configmap("one", a="1"), namespace)
    assert made["metadata"]["uid"]
    assert (await api.get(CONFIGMAPS, "one", namespace)) == made
    with pytest.raises(errors.AlreadyExists, match='"one" already exists'):
        await api.create(CONFIGMAPS, configmap("one"), namespace)
    await api.delete(CONFIGMAPS, "one", namespace)
    await api.delete(CONFIGMAPS, "one", namespace)
    assert await api.get(CONFIGMAPS, "one", namespace) is None
    assert counted == {
        ("POST", "201"): 1,
        ("GET", "200"): 1,
        ("POST", "409"): 1,
        ("DELETE", "200"): 1,
        ("DELETE", "404"): 1,
        ("GET", "404"): 1,
    }


async def test_delete_spares_another_object_of_the_same_name(api: Cluster, namespace: str) -> None:
    first = await api.create(CONFIGMAPS, configmap("same"), namespace)
    await api.delete(CONFIGMAPS, "same", namespace, uid=first["metadata"]["uid"])
    second = await api.create(CONFIGMAPS, configmap("same"), namespace)
    await api.delete(CONFIGMAPS, "same", namespace, uid=first["metadata"]["uid"])
    assert await api.get(CONFIGMAPS, "same", namespace) == second


async def test_list_reads_all_pages_of_what_is_selected(
    api: Cluster, namespace: str, counted: Counter[tuple[str, str]]
) -> None:
    for number in range(7):
        body = configmap(f"c{number}")
        body["metadata"]["labels"] = {"parity": "odd" if number % 2 else "even"}
        await api.create(CONFIGMAPS, body, namespace)
    counted.clear()
    odd, version = await api.list_all(CONFIGMAPS, namespace, label_selector="parity=odd", limit=2)
    assert [thing["metadata"]["name"] for thing in odd] == ["c1", "c3", "c5"]
    assert counted["GET", "200"] == 2
    everywhere, later = await api.list_all(CONFIGMAPS, limit=3)
    assert len(everywhere) >= 7
    assert int(later) >= int(version)


async def test_watch_tells_each_change_after_the_version(api: Cluster, namespace: str) -> None:
    await api.create(CONFIGMAPS, configmap("before"), namespace)
    _, version = await api.list_all(CONFIGMAPS, namespace)
    stream = api.watch(CONFIGMAPS, namespace, resource_version=version)
    await api.create(CONFIGMAPS, configmap("after"), namespace)
    await api.delete(CONFIGMAPS, "after", namespace)
    seen = [await asyncio.wait_for(anext(stream), 10) for _ in range(2)]
    await stream.aclose()
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in seen] == [
        ("ADDED", "after"),
        ("DELETED", "after"),
    ]


async def test_watch_that_stays_silent_is_given_up(api: Cluster, namespace: str) -> None:
    _, version = await api.list_all(CONFIGMAPS, namespace)
    stream = api.watch(CONFIGMAPS, namespace, resource_version=version, silence=0.5)
    with pytest.raises(errors.Unavailable, match=r"silent for 0\.5 s"):
        await anext(stream)


async def test_refused_carries_the_servers_own_sentence(api: Cluster, namespace: str) -> None:
    bad = pod("bad")
    bad["spec"]["restartPolicy"] = "Sometimes"
    with pytest.raises(errors.Refused, match=r'Pod "bad" is invalid: spec\.restartPolicy') as invalid:
        await api.create(PODS, bad, namespace)
    assert (invalid.value.status, invalid.value.reason) == (422, "Invalid")
    body = configmap("elsewhere")
    body["metadata"]["namespace"] = "another"
    with pytest.raises(errors.Refused, match="does not match the namespace"):
        await api.create(CONFIGMAPS, body, namespace)


async def test_policy_is_a_refusal(api: Cluster, namespace: str) -> None:
    limits = Resource("", "v1", "limitranges", namespaced=True)
    spec = {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}
    await api.create(
        limits, {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": spec}, namespace
    )
    greedy = pod("greedy")
    greedy["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "2"}}
    with pytest.raises(errors.Refused, match="maximum cpu usage per Container is 1") as refused:
        await api.create(PODS, greedy, namespace)
    assert refused.value.status == 403


async def test_namespace_or_kind_that_is_not_there(api: Cluster) -> None:
    with pytest.raises(errors.NotFound, match=r"namespaces .*nowhere"):
        await api.create(CONFIGMAPS, configmap("x"), "nowhere")
    with pytest.raises(errors.NotFound):
        await api.list_all(Resource("example.test", "v1", "unknowns", namespaced=True))


async def test_json_patch_is_all_or_nothing(api: Cluster, namespace: str) -> None:
    await api.create(CONFIGMAPS, configmap("patched", a="1", b="2"), namespace)
    change = [{"op": "test", "path": "/data/a", "value": "1"}, {"op": "replace", "path": "/data/b", "value": "3"}]
    patched = await api.json_patch(CONFIGMAPS, "patched", namespace, change)
    assert patched is not None
    assert patched["data"] == {"a": "1", "b": "3"}
    change = [{"op": "replace", "path": "/data/b", "value": "4"}, {"op": "test", "path": "/data/a", "value": "other"}]
    with pytest.raises(errors.Conflict, match="a tested value is another"):
        await api.json_patch(CONFIGMAPS, "patched", namespace, change)
    with pytest.raises(errors.Conflict):
        await api.json_patch(CONFIGMAPS, "patched", namespace, [{"op": "remove", "path": "/data/absent"}])
    assert (await api.get(CONFIGMAPS, "patched", namespace) or {})["data"] == {"a": "1", "b": "3"}
    assert await api.json_patch(CONFIGMAPS, "absent", namespace, change) is None


async def test_json_patch_that_fails_validation_is_refused(api: Cluster, namespace: str) -> None:
    await api.create(PODS, pod("stays"), namespace)
    with pytest.raises(errors.Refused, match="is invalid"):
        await api.json_patch(
            PODS, "stays", namespace, [{"op": "replace", "path": "/spec/containers/0/name", "value": "other"}]
        )


async def test_apply_creates_changes_and_minds_the_version(api: Cluster, namespace: str) -> None:
    body = configmap("applied", a="1")
    body["metadata"]["namespace"] = namespace
    first = await api.apply(CONFIGMAPS, body, manager="tester")
    body["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    body["data"] = {"b": "2"}
    second = await api.apply(CONFIGMAPS, body, manager="tester")
    assert second["data"] == {"b": "2"}
    with pytest.raises(errors.Conflict):
        await api.apply(CONFIGMAPS, body | {"data": {"c": "3"}}, manager="tester")
    await api.delete(CONFIGMAPS, "applied", namespace)
    body["metadata"]["uid"] = first["metadata"]["uid"]
    with pytest.raises(errors.Conflict):
        await api.apply(CONFIGMAPS, body, manager="tester")


async def test_apply_of_a_subresource(api: Cluster, namespace: str) -> None:
    made = await api.create(PODS, pod("has-status"), namespace)
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "has-status", "namespace": namespace}}
    body["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    answer = await api.apply(PODS, body | {"status": {"phase": "Failed"}}, manager="tester", subresource="status")
    assert answer["status"]["phase"] == "Failed"
    body["metadata"] = {"name": "absent", "namespace": namespace}
    with pytest.raises(errors.NotFound):
        await api.apply(PODS, body | {"status": {"phase": "Failed"}}, manager="tester", subresource="status")


async def test_server_that_is_not_there_is_unavailable_soon(cluster: Any, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    counted: Counter[tuple[str, str]] = Counter()
    api = await Cluster.connect(str(path), on_request=lambda method, code: counted.update([(method, code)]))
    try:
        with pytest.raises(errors.Unavailable, match="did not answer POST"):
            await api.create(CONFIGMAPS, configmap("x"), "default")
        assert counted == {("POST", "<error>"): 1}, "a write whose answer is lost is not for us to repeat"
        with pytest.raises(errors.Unavailable):
            await api.get(CONFIGMAPS, "x", "default")
        assert counted["GET", "<error>"] == 3
    finally:
        await api.close()


async def test_server_that_accepts_and_says_nothing_is_bounded(cluster: Any, tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    api = await Cluster.connect(str(path), request_timeout=0.3)
    try:
        with pytest.raises(errors.Unavailable):
            await asyncio.wait_for(api.create(CONFIGMAPS, configmap("x"), "default"), 5)
        with pytest.raises(errors.Unavailable, match="did not answer GET"):
            await anext(api.watch(CONFIGMAPS, "default", resource_version="1", silence=0.3))
    finally:
        await api.close()
        ended.set()
        silent.close()
        await silent.wait_closed()


async def test_renewed_token_file_is_read_again(api: Cluster, cluster: Any, namespace: str, tmp_path: Path) -> None:
    token = await api._call(
        "POST",
        SERVICE_ACCOUNTS.path(namespace, "default", "token"),
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    config["users"][0]["user"] = {"tokenFile": str(tmp_path / "token")}
    (tmp_path / "token").write_text("worn-out")
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    other = await Cluster.connect(str(tmp_path / "kubeconfig"))
    try:
        with pytest.raises(errors.Unavailable) as unknown:
            await other.get(CONFIGMAPS, "x", namespace)
        assert unknown.value.status == 401
        (tmp_path / "token").write_text(token["status"]["token"])
        with pytest.raises(errors.Refused, match=f"system:serviceaccount:{namespace}:default"):
            await other.get(CONFIGMAPS, "x", namespace)
    finally:
        await other.close()


async def test_in_cluster_credentials(
    api: Cluster, cluster: Any, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await api._call(
        "POST",
        SERVICE_ACCOUNTS.path(namespace, "default", "token"),
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    told = yaml.safe_load(Path(cluster.kubeconfig).read_text())["clusters"][0]["cluster"]
    (tmp_path / "token").write_text(token["status"]["token"])
    (tmp_path / "ca.crt").write_bytes(
        base64.b64decode(told["certificate-authority-data"])
        if "certificate-authority-data" in told
        else Path(told["certificate-authority"]).read_bytes()
    )
    host, port = told["server"].removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr("kubernetes.aio.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.aio.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    inside = await Cluster.connect()
    try:
        with pytest.raises(errors.Refused, match=f"system:serviceaccount:{namespace}:default"):
            await inside.get(CONFIGMAPS, "x", namespace)
    finally:
        await inside.close()


async def token_of(api: Cluster, namespace: str, name: str, audience: str, uid: str | None = None) -> str:
    spec: dict[str, Any] = {"audiences": [audience]}
    if uid is not None:
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await api._call("POST", SERVICE_ACCOUNTS.path(namespace, "default", "token"), body=body)
    token: str = answer["status"]["token"]
    return token


async def test_review_says_whose_pod_the_token_is(api: Cluster, namespace: str) -> None:
    made = await api.create(PODS, pod("speaker"), namespace)
    uid = made["metadata"]["uid"]
    token = await token_of(api, namespace, "speaker", "ours", uid)
    review = await api.review_token(token, "ours")
    assert review is not None
    assert (review.namespace, review.service_account) == (namespace, "default")
    assert (review.pod_name, review.pod_uid) == ("speaker", uid)
    assert await api.review_token(token, "others") is None
    assert await api.review_token("no token at all", "ours") is None
    head, claims, signature = token.split(".")
    payload = json.loads(base64.urlsafe_b64decode(claims + "=="))
    payload["kubernetes.io"]["pod"]["uid"] = "00000000-0000-0000-0000-000000000000"
    forged = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
    assert await api.review_token(f"{head}.{forged}.{signature}", "ours") is None
    unbound = await api.review_token(await token_of(api, namespace, "", "ours"), "ours")
    assert unbound is not None
    assert unbound.pod_uid == ""


def test_paths() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("n", "p", "status") == "/api/v1/namespaces/n/pods/p/status"
    assert RUNS.path("n", "r") == "/apis/lorafinetune.io/v1alpha1/namespaces/n/lorafinetunes/r"
    assert NODES.path(name="n") == "/api/v1/nodes/n"
    assert PODS.path("n", "../x") == "/api/v1/namespaces/n/pods/..%2Fx"
    with pytest.raises(ValueError, match="needs a namespace"):
        PODS.path(name="p")
    with pytest.raises(ValueError, match="have no namespace"):
        NODES.path("n")
