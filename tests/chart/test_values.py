"""Values in, objects out; and bad values refused by the schema before anything reaches a cluster."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from lorafinetune.settings import parse
from tests.chart.helm import CHART, ROOT, HelmError, helm, only, render
from tests.manifests import GPUPOOL

POOL = GPUPOOL["spec"]


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, values={"pools": {"spot": POOL}})


def test_every_value_is_explained_and_has_a_schema() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    given = text.replace(text[text.index("resources:") : text.index("# -- Labels of the nodes")], "")
    explained, unexplained = 0, []
    comment = False
    for line in given.splitlines():
        if line.lstrip().startswith("#"):
            comment = comment or line.lstrip().startswith("# -- ")
            continue
        if re.match(r"^ *[a-zA-Z]+: *\S", line):
            explained += comment
            unexplained += [] if comment else [line]
        comment = False
    assert unexplained == []
    assert explained > 20
    missing: list[str] = []

    def compare(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        assert node.get("additionalProperties") is False, path
        missing.extend(f"{path}{name}" for name in set(values) ^ (set(node["properties"]) - {"global"}))
        for name, value in values.items():
            inner = node["properties"].get(name, {})
            if isinstance(value, dict) and value and "properties" in inner:
                compare(value, inner, f"{path}{name}.")

    compare(yaml.safe_load(text), schema, "")
    assert missing == []


def test_definitions_in_the_chart_are_those_in_crds() -> None:
    rendered = {one["metadata"]["name"]: one for one in render() if one["kind"] == "CustomResourceDefinition"}
    truth = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert len(truth) == len(rendered) == 2
    for one in truth:
        assert rendered[one["metadata"]["name"]]["spec"] == one["spec"]
        assert rendered[one["metadata"]["name"]]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_definitions_can_be_left_out_or_left_to_helm() -> None:
    assert "CustomResourceDefinition" not in {one["kind"] for one in render({"crds": {"install": False}})}
    loose = [one for one in render({"crds": {"keep": False}}) if one["kind"] == "CustomResourceDefinition"]
    assert len(loose) == 2
    assert not [one for one in loose if "annotations" in one["metadata"]]


def arguments(values: dict[str, Any]) -> list[str]:
    [container] = only(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "lorafinetune"]
    return list(container["args"])


def test_the_operator_is_told_what_the_values_say() -> None:
    assert arguments({}) == [
        "--trainer-image=lorafinetune/trainer:0.1.0",
        "--trainer-pull-policy=IfNotPresent",
        "--webhook-listen=0.0.0.0:8443",
        "--webhook-url=https://test-lorafinetune.ml.svc:8443",
        "--webhook-tls-secret=test-lorafinetune-webhook-tls",
        "--metrics-listen=0.0.0.0:8080",
        "--collect-timeout=900",
        "--currency=$",
        "--log-level=info",
    ]
    given = arguments(
        {
            "watchNamespaces": ["a", "b"],
            "ambientStorage": ["s3://loras/", "s3://more/x/"],
            "trainerImage": {"repository": "example.com/trainer", "digest": "sha256:" + "0" * 64},
            "collectTimeoutSeconds": 60,
            "currency": "€",
            "notices": {"taints": ["example.com/reclaim"], "conditions": ["Reclaim"]},
            "logLevel": "debug",
        }
    )
    assert given[:2] == ["--namespace=a", "--namespace=b"]
    assert f"--trainer-image=example.com/trainer@sha256:{'0' * 64}" in given
    assert [one for one in given if "ambient" in one] == [
        "--ambient-storage=s3://loras/",
        "--ambient-storage=s3://more/x/",
    ]
    assert given[-5:] == [
        "--collect-timeout=60",
        "--currency=€",
        "--notice-taint=example.com/reclaim",
        "--notice-condition=Reclaim",
        "--log-level=debug",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "watchNamespaces": ["a"],
            "ambientStorage": ["s3://loras/"],
            "currency": "EUR ",
            "notices": {"taints": ["x/y"]},
        },
    ],
    ids=["few", "many"],
)
def test_the_operator_understands_what_the_chart_tells_it(values: dict[str, Any]) -> None:
    settings = parse(arguments(values))
    assert settings.namespaces == tuple(values.get("watchNamespaces", ()))
    assert settings.ambient_storage == tuple(values.get("ambientStorage", ()))
    assert settings.notice_taints == tuple(values.get("notices", {}).get("taints", ()))
    assert (settings.webhook_listen.port, settings.metrics_listen.port) == (8443, 8080)
    assert settings.collect_timeout == 900
    assert settings.currency == values.get("currency", "$")


def test_webhook_url_is_that_of_the_service() -> None:
    objects = render({"fullnameOverride": "tuner"}, namespace="gpu")
    service = only(objects, "Service")
    [container] = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "--webhook-url=https://tuner.gpu.svc:8443" in container["args"]
    assert (service["metadata"]["name"], service["metadata"]["namespace"]) == ("tuner", "gpu")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {(one["name"], one["port"], ports[one["targetPort"]]) for one in service["spec"]["ports"]} == {
        ("webhook", 8443, 8443),
        ("metrics", 8080, 8080),
    }


def test_the_service_finds_the_operator() -> None:
    objects = render({"podLabels": {"team": "ml"}})
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selector = only(objects, "Service")["spec"]["selector"]
    assert selector == only(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert labels["team"] == "ml"


def test_pools_become_objects() -> None:
    served = render({"pools": {"spot": POOL}}, "--api-versions", "lorafinetune.io/v1alpha1/GPUPool")
    pool = only(served, "GPUPool")
    assert pool["spec"] == POOL
    assert "annotations" not in pool["metadata"]
    hook = only(render({"pools": {"spot": POOL}}), "GPUPool")
    assert hook["metadata"]["annotations"] == {
        "helm.sh/hook": "post-install,post-upgrade",
        "meta.helm.sh/release-name": "test",
        "meta.helm.sh/release-namespace": "ml",
    }


def test_a_list_of_namespaces_leaves_no_right_over_secrets_or_pods_elsewhere() -> None:
    objects = render({"watchNamespaces": ["a", "b"]})
    everywhere = [rule for one in objects if one["kind"] == "ClusterRole" for rule in one["rules"]]
    users = {"test-lorafinetune-view", "test-lorafinetune-edit"}
    operator = [
        resource
        for one in objects
        if one["kind"] == "ClusterRole" and one["metadata"]["name"] not in users
        for rule in one["rules"]
        for resource in rule["resources"]
    ]
    assert everywhere
    assert sorted(operator) == ["gpupools", "gpupools/status", "nodes", "tokenreviews"]
    assert {one["metadata"]["namespace"] for one in objects if one["kind"] == "RoleBinding"} == {"a", "b", "ml"}


def test_no_rule_has_a_star() -> None:
    for values in ({}, {"watchNamespaces": ["a"]}):
        rules = [rule for one in render(values) if "Role" in one["kind"] for rule in one.get("rules", ())]
        assert rules
        assert not [rule for rule in rules if "*" in json.dumps(rule)]


BAD = [
    ("misspelt value", {"trainerImages": {}}, "trainerImages"),
    ("misspelt nested value", {"image": {"tags": "1"}}, "tags"),
    ("image without repository", {"image": {"repository": ""}}, "/image/repository"),
    ("digest of another kind", {"image": {"digest": "md5:0"}}, "/image/digest"),
    ("tag in trainer's repository and digest short", {"trainerImage": {"digest": "sha256:00"}}, "/trainerImage/digest"),
    ("unknown pull policy", {"image": {"pullPolicy": "always"}}, "/image/pullPolicy"),
    ("unknown pull policy of the trainer", {"trainerImage": {"pullPolicy": "Sometimes"}}, "/trainerImage/pullPolicy"),
    ("pull secret as text", {"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0"),
    ("namespaces as text", {"watchNamespaces": "default"}, "/watchNamespaces"),
    ("namespace in capitals", {"watchNamespaces": ["ML"]}, "/watchNamespaces/0"),
    ("namespace twice", {"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
    ("ambient storage without scheme", {"ambientStorage": ["loras/"]}, "/ambientStorage/0"),
    ("notice taint with a value", {"notices": {"taints": ["a/b=c:NoSchedule"]}}, "/notices/taints/0"),
    ("unknown kind of notice", {"notices": {"labels": ["a"]}}, "/notices"),
    ("timeout as text", {"collectTimeoutSeconds": "15m"}, "/collectTimeoutSeconds"),
    ("timeout of none", {"collectTimeoutSeconds": 0}, "/collectTimeoutSeconds"),
    ("unknown log level", {"logLevel": "verbose"}, "/logLevel"),
    ("pools as a list", {"pools": [{"name": "spot"}]}, "/pools"),
    ("pool with a bad name", {"pools": {"Spot_4090": POOL}}, "Spot_4090"),
    ("pool without price", {"pools": {"spot": {"capacityType": "Spot", "nodeSelector": {"a": "b"}}}}, "/pools/spot"),
    ("pool's price as a number", {"pools": {"spot": POOL | {"pricePerHour": 0.3}}}, "/pools/spot/pricePerHour"),
    ("pool's price with currency", {"pools": {"spot": POOL | {"pricePerHour": "$1"}}}, "/pools/spot/pricePerHour"),
    ("pool with misspelt field", {"pools": {"spot": POOL | {"selector": {}}}}, "selector"),
    ("pool of unknown capacity", {"pools": {"spot": POOL | {"capacityType": "spot"}}}, "/pools/spot/capacityType"),
    ("toleration without key", {"pools": {"spot": POOL | {"tolerations": [{}]}}}, "/pools/spot/tolerations/0"),
    ("switch as text", {"crds": {"install": "yes"}}, "/crds/install"),
    ("misspelt switch", {"rbac": {"enabled": True}}, "enabled"),
    ("annotation as a number", {"serviceAccount": {"annotations": {"a": 1}}}, "/serviceAccount/annotations/a"),
    ("label too long", {"commonLabels": {"team": "x" * 64}}, "/commonLabels/team"),
    ("unknown part of resources", {"resources": {"limit": {}}}, "limit"),
    ("toleration with misspelt field", {"tolerations": [{"keys": "a"}]}, "keys"),
    ("affinity of unknown kind", {"affinity": {"gpu": {}}}, "gpu"),
    ("variable without name", {"extraEnv": [{"value": "x"}]}, "/extraEnv/0"),
    ("name with a dot", {"fullnameOverride": "a.b"}, "/fullnameOverride"),
]


@pytest.mark.parametrize(("mistake", "values", "place"), BAD, ids=[mistake for mistake, _, _ in BAD])
def test_bad_values_are_refused_by_the_schema(mistake: str, values: dict[str, Any], place: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)
    assert "don't meet the specifications of the schema" in str(refused.value)
    assert place in str(refused.value)


def test_an_own_service_account_must_be_named() -> None:
    with pytest.raises(HelmError, match=r"serviceAccount\.name: needed where serviceAccount\.create is false"):
        render({"serviceAccount": {"create": False}})
