"""Which pods are a run's: labels alone prove nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lorafinetune.engine.observation import RunSeen
from lorafinetune.kube import pods

RUN = RunSeen("team", "timber", "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0", 1, 0.0, has_finalizer=True)
ATTEMPT = "lorafinetune.io/attempt"


def pod(*, name: str = "timber-0b1c2-2", namespace: str = "team", **labels: str) -> dict[str, Any]:
    number = {} if labels.get("attempt") == "absent" else {ATTEMPT: labels.get("attempt", "2")}
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"lorafinetune.io/run-uid": RUN.uid} | number}}


def test_an_attempts_pod_is_ours() -> None:
    assert pods.is_ours(pod(), RUN)


@pytest.mark.parametrize(
    "foreign",
    [
        pod(namespace="another-team"),
        pod(name="copy-of-timber"),
        pod(attempt="3"),
        pod(attempt="x"),
        pod(attempt=""),
        pod(attempt="absent"),
        pod(attempt="0", name="timber-0b1c2-0"),
        pod(attempt="02", name="timber-0b1c2-02"),
        pod(attempt="٢", name="timber-0b1c2-2"),
        {"metadata": {"name": "bare", "namespace": "team"}},
    ],
)
def test_a_pod_that_only_carries_our_label_is_not(foreign: dict[str, Any]) -> None:
    assert not pods.is_ours(foreign, RUN)
