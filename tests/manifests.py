"""Manifests for the tests of the API: two good ones, and how to change a copy of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

REMOVED: Final = object()
"""As a value in :func:`changed`: take the field away."""

FINETUNE: Final[dict[str, Any]] = {
    "apiVersion": "lorafinetune.io/v1alpha1",
    "kind": "LoRAFineTune",
    "metadata": {"name": "timber"},
    "spec": {
        "baseModel": {
            "source": "hf://stabilityai/stable-diffusion-xl-base-1.0",
            "revision": "462165984030d82259a11f4367a4eed129e94a7b",
            "vae": "hf://madebyollin/sdxl-vae-fp16-fix",
            "credentialsSecret": "hub",
        },
        "dataset": {"source": "s3://training-data/timber/", "instancePrompt": "photo of timberdog"},
        "training": {"steps": 500, "learningRate": 1e-4, "lora": {"rank": 16, "alpha": 16}},
        "checkpoint": {"everySteps": 50, "keep": 2},
        "storage": {
            "uri": "s3://loras/",
            "endpoint": "https://account.r2.cloudflarestorage.com",
            "region": "auto",
            "credentialsSecret": "r2-credentials",
        },
        "placement": {
            "pools": ["spot-4090", "spot-a10g"],
            "onDemand": {"pools": ["ondemand-a10g"], "afterPreemptions": 5},
        },
    },
}

MINIMAL: Final[dict[str, Any]] = {
    "apiVersion": "lorafinetune.io/v1alpha1",
    "kind": "LoRAFineTune",
    "metadata": {"name": "minimal"},
    "spec": {
        "baseModel": {"source": "hf://stabilityai/stable-diffusion-xl-base-1.0"},
        "dataset": {"source": "s3://training-data/timber/"},
        "storage": {"uri": "s3://loras/"},
    },
}

GPUPOOL: Final[dict[str, Any]] = {
    "apiVersion": "lorafinetune.io/v1alpha1",
    "kind": "GPUPool",
    "metadata": {"name": "spot-4090"},
    "spec": {
        "capacityType": "Spot",
        "nodeSelector": {"karpenter.sh/capacity-type": "spot", "nvidia.com/gpu.product": "RTX-4090"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "gpu": {"resource": "nvidia.com/gpu", "count": 1, "product": "RTX-4090", "memoryGiB": 24},
        "pricePerHour": "0.348",
        "default": True,
    },
}


def changed(manifest: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of *manifest* with the members at these dotted paths set, or taken away by REMOVED."""
    made = copy.deepcopy(dict(manifest))
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = made
        for name in parents:
            node = node.setdefault(name, {})
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return made
