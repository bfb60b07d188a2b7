"""What the operator's ServiceAccount may do, asked of the API server's own authorizer: this much and no more."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from kubernetes import client, config

from localcluster.cluster import Cluster
from tests.chart.helm import render


class Right(NamedTuple):
    """One thing that one may do, or not: in ``where`` (own, watched, other or cluster)."""

    verbs: str
    resource: str
    where: str
    name: str = ""


RUNS = "lorafinetune.io/lorafinetunes"
EVENTS, PODS, SECRETS = "events.k8s.io/events", "/pods", "/secrets"
LEASES, CONFIGMAPS = "coordination.k8s.io/leases", "/configmaps"
CERTIFICATE, ABANDONED, LEASE = "tuner-webhook-tls", "lorafinetune-abandoned", "lorafinetune"

IN_RUNS = (
    ("get list watch patch delete", RUNS),
    ("patch", f"{RUNS}/status"),
    ("update", f"{RUNS}/finalizers"),
    ("get list watch create patch delete", PODS),
    ("get list create patch", EVENTS),
    ("get", SECRETS),
)
MUST = (
    *(Right(verbs, resource, "watched") for verbs, resource in IN_RUNS),
    Right("get list watch", "/nodes", "cluster"),
    Right("get list watch", "lorafinetune.io/gpupools", "cluster"),
    Right("patch", "lorafinetune.io/gpupools/status", "cluster"),
    Right("create", "authentication.k8s.io/tokenreviews", "cluster"),
    Right("create", SECRETS, "own"),
    Right("get patch", SECRETS, "own", CERTIFICATE),
    Right("create", CONFIGMAPS, "own"),
    Right("get patch", CONFIGMAPS, "own", ABANDONED),
    Right("create", LEASES, "own"),
    Right("get patch", LEASES, "own", LEASE),
)
NEVER = (
    Right("create update deletecollection", RUNS, "watched"),
    Right("create update patch delete", "lorafinetune.io/gpupools", "cluster"),
    Right("list watch update patch delete", SECRETS, "watched"),
    Right("create", SECRETS, "watched"),
    Right("list watch delete", SECRETS, "own"),
    Right("update patch", SECRETS, "own", "another"),
    Right("get list patch", CONFIGMAPS, "own", "another"),
    Right("get create patch", CONFIGMAPS, "watched", ABANDONED),
    Right("get patch", LEASES, "own", "another"),
    Right("create", "/pods/exec", "watched"),
    Right("create", "/pods/eviction", "watched"),
    Right("get", "/pods/log", "watched"),
    Right("deletecollection", PODS, "watched"),
    Right("create update patch delete", "/nodes", "cluster"),
    Right("create", "/serviceaccounts/token", "watched"),
    Right("get list", "/namespaces", "cluster"),
    Right("get list watch update", "apiextensions.k8s.io/customresourcedefinitions", "cluster"),
    Right("create update bind escalate", "rbac.authorization.k8s.io/clusterroles", "cluster"),
    Right("create update", "apps/deployments", "own"),
    Right("impersonate", "/users", "cluster"),
)


class Place(NamedTuple):
    """A cluster with the chart's roles in it, and nothing else of the chart."""

    api: client.AuthorizationV1Api
    account: str
    namespaces: dict[str, str]


@pytest.fixture(scope="module", params=[True, False], ids=["one namespace", "all namespaces"])
def place(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Place]:
    names = {where: f"rbac-{where}-{secrets.token_hex(3)}" for where in ("own", "watched", "other")}
    for name in names.values():
        cluster.kubectl("create", "namespace", name)
    values = {"fullnameOverride": "tuner", "watchNamespaces": [names["watched"]] if request.param else []}
    roles = [one for one in render(values, namespace=names["own"]) if "Role" in one["kind"]]
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": roles})
    cluster.kubectl("create", "-f", "-", stdin=manifest)
    api = client.AuthorizationV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    if not request.param:
        names["other"] = names["watched"]  # there is no other where all are watched
    yield Place(api, f"system:serviceaccount:{names['own']}:tuner", names)
    cluster.kubectl("delete", "-f", "-", stdin=manifest)
    for name in set(names.values()):
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def allowed(place: Place, right: Right, user: str = "") -> dict[str, bool]:
    """Return for each verb whether the authorizer allows it."""
    group, _, resource = right.resource.partition("/")
    resource, _, subresource = resource.partition("/")
    answers = {}
    for verb in right.verbs.split():
        asked = client.V1ResourceAttributes(
            verb=verb, group=group, resource=resource, subresource=subresource, name=right.name,
            namespace=place.namespaces.get(right.where, ""),
        )  # fmt: skip
        spec = client.V1SubjectAccessReviewSpec(user=user or place.account, resource_attributes=asked)
        review: Any = place.api.create_subject_access_review(client.V1SubjectAccessReview(spec=spec))
        answers[verb] = bool(review.status.allowed)
    return answers


@pytest.mark.parametrize("right", MUST, ids=" ".join)
def test_the_operator_may(place: Place, right: Right) -> None:
    answers = allowed(place, right)
    assert answers
    assert all(answers.values()), answers


@pytest.mark.parametrize("right", NEVER, ids=" ".join)
def test_the_operator_may_not(place: Place, right: Right) -> None:
    answers = allowed(place, right)
    assert answers
    assert not any(answers.values()), answers


@pytest.mark.parametrize(("verbs", "resource"), IN_RUNS, ids=[resource for _, resource in IN_RUNS])
def test_with_a_list_of_namespaces_nothing_elsewhere(place: Place, verbs: str, resource: str) -> None:
    if place.namespaces["other"] == place.namespaces["watched"]:
        assert all(allowed(place, Right(verbs, resource, "other")).values())
    else:
        assert not any(allowed(place, Right(verbs, resource, "other")).values())


def test_another_account_may_nothing(place: Place) -> None:
    stranger = place.account + "-stranger"
    assert not [right for right in MUST if any(allowed(place, right, stranger).values())]
