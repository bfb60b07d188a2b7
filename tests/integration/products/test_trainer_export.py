"""The product is used: loaded back by diffusers' own pipeline and by our reader, it does what the adapter did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafinetune.contract.manifest import Manifest
from tests.integration.trainer.adapters import Kind, loaded_back
from tests.integration.trainer.process import Run, Trainers, in_preloaded

KINDS = {
    "attention": Kind(alpha=6.0),
    "all": Kind(targets="All", alpha=4.0),
    "DoRA": Kind(targets="All", dora=True),
    "all, text encoders, rsLoRA": Kind(targets="All", text_encoder=True, rs_lora=True),
    "DoRA, text encoders": Kind(dora=True, text_encoder=True),
}
EXACT = 1e-5
"""Relative: float32 with the scale multiplied in before or after."""


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> dict[str, dict[str, Any]]:
    return dict(zip(KINDS, in_preloaded(loaded_back, str(tiny_model), list(KINDS.values())), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["diffusers", "kohya"])
def test_loaded_by_diffusers_without_our_header_it_is_the_adapter_in_memory(
    file: str, kind: str, loaded: dict[str, dict[str, Any]]
) -> None:
    found = loaded[kind]
    assert found["moved"] > 0.05
    assert found[file]["weights"] < EXACT
    assert found[file]["picture"] < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["diffusers", "kohya"])
def test_read_by_our_reader_it_is_the_adapter_in_memory(
    file: str, kind: str, loaded: dict[str, dict[str, Any]]
) -> None:
    found = loaded[kind][f"{file} read"]
    assert found["names"]
    assert found["weights"] < EXACT


@pytest.fixture(scope="module")
def finished(trainers: Trainers) -> Run:
    run = trainers.run("exported", training={"learningRate": 1e-2, "lora": {"rank": 4, "alpha": 8}})
    run.finish()
    return run


def test_the_artifact_is_whole(finished: Run) -> None:
    artifact = finished.head.artifact
    assert artifact is not None
    manifest = Manifest.model_validate_json(finished.bucket.get(f"{artifact.folder}manifest.json").body)
    assert [file.name for file in manifest.files] == [
        "README.md",
        "lora_kohya.safetensors",
        "loss.svg",
        "metrics.jsonl",
        "pytorch_lora_weights.safetensors",
    ]
    assert {one.key: one.size for one in finished.bucket.walk(artifact.folder) if "manifest" not in one.key} == {
        f"{artifact.folder}{file.name}": file.size for file in manifest.files
    }
    card = finished.file("README.md").decode()
    assert "a photo of sks timber dog" in card
    assert finished.config.run.uid in card
    assert str(finished.config.storage.credentials) not in card
