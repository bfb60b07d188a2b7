"""The product is used: loaded by diffusers' own pipeline, in both formats, it changes the picture alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafinetune.contract.manifest import Manifest
from tests.integration.trainer.process import Run, Trainers, in_preloaded


def _pictures(model: str, loras: list[str]) -> dict[str, Any]:
    """Paint the same picture without and with each LoRA; return how far each is from the plain one, and the pixels."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def paint() -> Any:
        return pipeline(
            "a photo of sks timber dog",
            num_inference_steps=3,
            height=64,
            width=64,
            output_type="np",
            generator=torch.Generator("cpu").manual_seed(1),
        ).images[0]

    plain = paint()
    found = {}
    for lora in loras:
        path = Path(lora)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        layers = sum("lora_A" in name for name, _ in pipeline.unet.named_parameters())
        picture = paint()
        found[path.name] = {
            "moved": float(np.abs(picture - plain).max()),
            "layers": layers,
            "picture": picture.tolist(),
        }
        pipeline.unload_lora_weights()
    found["again"] = {"moved": float(np.abs(paint() - plain).max())}
    return found


@pytest.fixture(scope="module")
def finished(trainers: Trainers) -> Run:
    run = trainers.run("exported", training={"learningRate": 1e-2, "lora": {"rank": 4, "alpha": 8}})
    run.finish()
    return run


def test_both_files_change_the_picture_and_alike(finished: Run, tiny_model: Path, tmp_path: Path) -> None:
    import numpy as np

    names = ["pytorch_lora_weights.safetensors", "lora_kohya.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(finished.file(name))
    found = in_preloaded(_pictures, str(tiny_model), [str(tmp_path / name) for name in names])
    diffusers, kohya = (found[name] for name in names)
    assert diffusers["moved"] > 0.01
    assert diffusers["layers"] == kohya["layers"] == 64
    assert np.allclose(np.array(diffusers["picture"]), np.array(kohya["picture"]), atol=1e-5)
    assert found["again"]["moved"] == 0


def test_the_artifact_is_whole(finished: Run) -> None:
    artifact = finished.head.artifact
    assert artifact is not None
    manifest = Manifest.model_validate_json(finished.bucket.get(f"{artifact.folder}manifest.json").body)
    assert [file.name for file in manifest.files] == [
        "README.md",
        "lora_kohya.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    assert {one.key: one.size for one in finished.bucket.walk(artifact.folder) if "manifest" not in one.key} == {
        f"{artifact.folder}{file.name}": file.size for file in manifest.files
    }
    card = finished.file("README.md").decode()
    assert "a photo of sks timber dog" in card
    assert finished.config.run.uid in card
    assert str(finished.config.storage.credentials) not in card
