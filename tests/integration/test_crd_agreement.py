"""Whatever the API server lets in, the operator's models can read: the two never disagree about a stored object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client, config
from pydantic import ValidationError

from localcluster.cluster import Cluster
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from tests.manifests import FINETUNE, GPUPOOL, MINIMAL, changed

GROUP_VERSION = ("lorafinetune.io", "v1alpha1")
SETTINGS = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

words = st.text(st.sampled_from("aZ0-_./:@ ?#\n'\"\\é犬\x1f"), max_size=12)
addresses = st.builds(
    "{}{}".format, st.sampled_from(["s3://", "s3://bkt", "s3://bkt/", "hf://a/", "/", "http://"]), words
)
strings = st.one_of(words, addresses)
durations = st.one_of(words, st.sampled_from(["20m", "1h30m", "0s", "", "h", "90", "1.5h", "1m1h", "99999h59m59s"]))
instants = st.one_of(
    words,
    st.from_regex(
        r"(20|19)[0-9]{2}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9]([.x][0-9]{1,3})?[Zz]",
        fullmatch=True,
    ),
    st.sampled_from(["2028-02-29T00:00:00Z", "2036-12-24t18:00:00.5+01:00", "2036-12-24T18:00:00+99:99", "2036-12-24"]),
)
numbers = st.one_of(st.integers(-2, 2**60), st.floats(allow_nan=False, allow_infinity=False, width=32), st.booleans())

RUN_FIELDS = {
    "spec.baseModel.source": strings,
    "spec.baseModel.revision": strings,
    "spec.baseModel.vae": strings,
    "spec.baseModel.credentialsSecret": strings,
    "spec.dataset.source": strings,
    "spec.baseModel.cache": numbers,
    "spec.dataset.instancePrompt": strings,
    "spec.dataset.classSource": strings,
    "spec.dataset.classPrompt": strings,
    "spec.dataset.classImages": numbers,
    "spec.dataset.keepClassImages": st.booleans(),
    "spec.training.steps": numbers,
    "spec.training.epochs": numbers,
    "spec.training.optimizer": st.sampled_from(["AdamW", "AdamW8bit", "Prodigy", "Lion"]),
    "spec.training.schedule": st.sampled_from(["constant", "cosine", "cosineWithRestarts", "polynomial", "step"]),
    "spec.training.schedulePower": numbers,
    "spec.training.scheduleCycles": numbers,
    "spec.training.textEncoderLearningRate": numbers,
    "spec.training.prediction": st.sampled_from(["epsilon", "v_prediction", "x"]),
    "spec.training.zeroTerminalSnr": st.booleans(),
    "spec.training.emaDecay": numbers,
    "spec.training.minSnrGamma": numbers,
    "spec.training.microBatch": numbers,
    "spec.training.priorLossWeight": numbers,
    "spec.training.captions": st.fixed_dictionaries(
        {}, optional={"shuffle": st.booleans(), "keepTokens": numbers, "dropout": numbers}
    ),
    "spec.training.resolution": st.one_of(numbers, st.sampled_from([64, 512, 2048, 2112])),
    "spec.training.learningRate": numbers,
    "spec.training.warmupSteps": numbers,
    "spec.training.seed": numbers,
    "spec.training.lora": st.fixed_dictionaries(
        {},
        optional={
            "rank": numbers,
            "alpha": numbers,
            "textEncoder": st.booleans(),
            "dropout": st.sampled_from([0, 0.0, 0.1, 1]),
            "initFrom": st.one_of(strings, st.sampled_from(["/x.safetensors", "s3://loras/a b.safetensors"])),
        },
    ),
    "spec.checkpoint": st.fixed_dictionaries(
        {},
        optional={
            "everySteps": numbers,
            "keep": numbers,
            "keepIntermediate": st.fixed_dictionaries(
                {}, optional={"steps": st.lists(numbers, max_size=3), "everySteps": numbers}
            ),
        },
    ),
    "spec.validation": st.fixed_dictionaries(
        {"prompts": st.lists(strings, max_size=3)},
        optional={"negativePrompt": strings, "everySteps": numbers, "guidance": numbers, "seed": numbers},
    ),
    "spec.metrics": st.fixed_dictionaries({}, optional={"tensorBoard": st.booleans()}),
    "spec.storage.uri": strings,
    "spec.storage.endpoint": strings,
    "spec.storage.region": strings,
    "spec.placement.pools": st.lists(strings, max_size=3),
    "spec.placement.onDemand": st.fixed_dictionaries(
        {"pools": st.lists(strings, max_size=2)}, optional={"afterPending": durations, "afterPreemptions": numbers}
    ),
    "spec.limits": st.fixed_dictionaries(
        {},
        optional={
            "deadline": instants,
            "maxCost": strings,
            "maxDuration": durations,
            "atLimit": st.sampled_from(["Fail", "fail"]),
        },
    ),
    "spec.queueName": strings,
    "spec.ttlSecondsAfterFinished": numbers,
    "spec.suspend": numbers,
}
POOL_FIELDS = {
    "spec.capacityType": st.sampled_from(["Spot", "OnDemand", "spot", ""]),
    "spec.nodeSelector": st.dictionaries(strings, strings, max_size=3),
    "spec.tolerations": st.lists(
        st.fixed_dictionaries(
            {"key": strings}, optional={"operator": st.sampled_from(["Exists", "Equal", "In"]), "value": strings}
        ),
        max_size=2,
    ),
    "spec.gpu": st.fixed_dictionaries({}, optional={"resource": strings, "product": strings, "memoryGiB": numbers}),
    "spec.provisioningTimeout": durations,
    "spec.allowedNamespaces": st.lists(strings, max_size=2),
    "spec.maxConcurrentAttempts": numbers,
    "spec.pricePerHour": st.one_of(words, st.from_regex(r"[0-9]{1,8}[.,]?[0-9]{0,8}", fullmatch=True)),
}


def changes(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """One to three fields with values that are often nearly right."""
    some = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True)
    return some.flatmap(lambda names: st.fixed_dictionaries({name: fields[name] for name in names}))


@pytest.fixture(scope="module")
def stored(cluster: Cluster, crds: None) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Return what posts an object as a dry run: what would be stored, or None if it is refused."""
    objects = client.CustomObjectsApi(config.new_client_from_config(str(cluster.kubeconfig)))
    strict = {"dry_run": "All", "field_validation": "Strict"}

    def post(body: dict[str, Any]) -> dict[str, Any] | None:
        try:
            if body["kind"] == "GPUPool":
                return dict(objects.create_cluster_custom_object(*GROUP_VERSION, "gpupools", body, **strict))
            return dict(
                objects.create_namespaced_custom_object(*GROUP_VERSION, "default", "lorafinetunes", body, **strict)
            )
        except client.ApiException as refused:
            said = json.loads(refused.body)["message"]
        # A rule must not fail for want of a field or type, save for whole numbers that are written with a point.
        if "evaluating rule" in said and "expected int, got float64" not in said:
            pytest.fail(said)
        return None

    return post


@pytest.fixture
def taken() -> Iterator[list[bool]]:
    """Yield a list for what was taken and what was refused: a test that saw too few of either fails."""
    answers: list[bool] = []
    yield answers
    assert 10 < sum(answers) < len(answers) - 10, f"{sum(answers)} of {len(answers)} taken"


@SETTINGS
@given(base=st.sampled_from([FINETUNE, MINIMAL]), change=changes(RUN_FIELDS))
def test_a_run_that_is_taken_can_be_read(
    stored: Callable[[dict[str, Any]], dict[str, Any] | None],
    taken: list[bool],
    base: dict[str, Any],
    change: dict[str, Any],
) -> None:
    made = stored(changed(base, change))
    taken.append(made is not None)
    if made is not None:
        LoRAFineTuneSpec.model_validate(made["spec"])


@SETTINGS
@given(change=changes(POOL_FIELDS))
def test_a_pool_that_is_taken_can_be_read(
    stored: Callable[[dict[str, Any]], dict[str, Any] | None], taken: list[bool], change: dict[str, Any]
) -> None:
    made = stored(changed(GPUPOOL, change))
    taken.append(made is not None)
    if made is not None:
        GPUPoolSpec.model_validate(made["spec"])


def test_what_a_newer_definition_knows_is_passed_over_but_not_in_the_mathematics() -> None:
    """An operator that is rolled back must still read runs and statuses that a newer one has written."""
    newer = changed(FINETUNE, {"spec.placement.novelty": 1, "spec.storage.novelty": {}, "spec.novelty": []})
    assert LoRAFineTuneSpec.model_validate(newer["spec"]) == LoRAFineTuneSpec.model_validate(FINETUNE["spec"])
    with pytest.raises(ValidationError, match=r"training\.novelty"):
        LoRAFineTuneSpec.model_validate(changed(FINETUNE, {"spec.training.novelty": 1})["spec"])
