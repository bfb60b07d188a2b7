"""kube-apiserver refuses bad manifests by pointing at the field and saying what would be right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from kubernetes import client, config

from tests.integration.crd_refusals import BAD_PLACES, BAD_POOLS, Bad
from tests.integration.crd_refusals_training import BAD_TRAINING
from tests.manifests import FINETUNE, GPUPOOL, changed

BAD_RUNS = (*BAD_PLACES, *BAD_TRAINING)
REGEX = re.compile(r"should match|regex|\[a-z|[(][?]|\^.*\$")
GROUP_VERSION = ("lorafinetune.io", "v1alpha1")


@pytest.fixture(scope="module")
def objects(cluster: Any, crds: None) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(config.new_client_from_config(str(cluster.kubeconfig)))


def refusal(error: client.ApiException) -> tuple[list[tuple[str, str]], str]:
    """Return the (field, message) pairs of a refusal, and the whole of what it says."""
    status = json.loads(error.body)
    causes = status.get("details", {}).get("causes", [])
    return [(cause.get("field", ""), cause["message"]) for cause in causes], status["message"]


def check(error: client.ApiException, bad: Bad) -> None:
    causes, message = refusal(error)
    if bad.words == "unknown field":  # refused by the decoder, before validation: one message, no causes
        assert error.status == 400, message
        assert f'unknown field "{bad.field}' in message
    elif error.status == 422:
        assert [said for field, said in causes if field == bad.field and bad.words in said], message
        assert not [said for _, said in causes if "evaluating rule" in said], message
        # Kubernetes' own words for its own names quote their regular expression after the words; ours never do.
        assert not [said for field, said in causes if field != "metadata.name" and REGEX.search(said)], message
    else:
        pytest.fail(f"refused with {error.status}: {message}")


def test_the_table_is_as_long_as_promised() -> None:
    assert len(BAD_RUNS) >= 120
    for table in (BAD_RUNS, BAD_POOLS):
        assert len({bad.mistake for bad in table}) == len(table)


def test_the_manifests_that_the_mistakes_are_made_in_are_good(objects: client.CustomObjectsApi, namespace: str) -> None:
    strict = {"dry_run": "All", "field_validation": "Strict"}
    objects.create_namespaced_custom_object(*GROUP_VERSION, namespace, "lorafinetunes", FINETUNE, **strict)
    objects.create_cluster_custom_object(*GROUP_VERSION, "gpupools", GPUPOOL, **strict)


@pytest.mark.parametrize("bad", BAD_RUNS, ids=lambda bad: bad.mistake)
def test_a_bad_run_is_refused_in_words(objects: client.CustomObjectsApi, bad: Bad) -> None:
    with pytest.raises(client.ApiException) as refused:
        objects.create_namespaced_custom_object(
            *GROUP_VERSION,
            "default",
            "lorafinetunes",
            changed(FINETUNE, bad.changes),
            dry_run="All",
            field_validation="Strict",
        )
    check(refused.value, bad)


@pytest.mark.parametrize("bad", BAD_POOLS, ids=lambda bad: bad.mistake)
def test_a_bad_pool_is_refused_in_words(objects: client.CustomObjectsApi, bad: Bad) -> None:
    with pytest.raises(client.ApiException) as refused:
        objects.create_cluster_custom_object(
            *GROUP_VERSION, "gpupools", changed(GPUPOOL, bad.changes), dry_run="All", field_validation="Strict"
        )
    check(refused.value, bad)
