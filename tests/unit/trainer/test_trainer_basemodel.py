"""Which files of a base model are taken, and what is said of one that is no SDXL. No weight is looked at here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafinetune.contract.runconfig import BaseModelSource
from lorafinetune_trainer.base import files as basemodel
from lorafinetune_trainer.base.files import ENCODERS, TRAINED, Files, Means
from lorafinetune_trainer.failure import Failure

FILES: dict[str, object] = {
    "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
    "README.md": "",
    "sd_xl_base_1.0.safetensors": "",
    "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
    "text_encoder/config.json": {"hidden_size": 768},
    "text_encoder/model.safetensors": "1",
    "text_encoder/model.fp16.safetensors": "2",
    "text_encoder/model.onnx": "",
    "text_encoder_2/config.json": {"hidden_size": 1280},
    "text_encoder_2/model.safetensors": "3",
    "text_encoder_2/model.fp16.safetensors": "4",
    "tokenizer/vocab.json": {},
    "tokenizer/merges.txt": "",
    "tokenizer/tokenizer_config.json": {},
    "tokenizer_2/vocab.json": {},
    "tokenizer_2/merges.txt": "",
    "unet/config.json": {"addition_embed_type": "text_time", "cross_attention_dim": 2048, "in_channels": 4},
    "unet/diffusion_pytorch_model.safetensors": "5",
    "unet/diffusion_pytorch_model.fp16.safetensors": "6",
    "vae/config.json": {},
    "vae/diffusion_pytorch_model.safetensors": "7",
    "vae/diffusion_pytorch_model.fp16.safetensors": "8",
}
"""The layout of stabilityai/stable-diffusion-xl-base-1.0, without its weights."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / "model"


def fetch(model: Path, parts: frozenset[str] = TRAINED | ENCODERS, *, half: bool = False, **source: str) -> Files:
    means = Means(lambda _: pytest.fail("no bucket"), model.parent / "scratch")
    return basemodel.fetch(BaseModelSource(source=str(model), **source), parts, means, half=half)


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_text(text)

    return change


def into_shards(model: Path, *lost: str) -> None:
    """Put two shards in the place of the UNet's weights, without those that are *lost*."""
    remove("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors")(model)
    shards = ["part-1.safetensors", "part-2.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for shard in set(shards) - set(lost):
        (model / "unet" / shard).write_text("x")


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (remove("model_index.json"), r"no model_index\.json.*sd_xl_base_1\.0\.safetensors looks like a single"),
    "Stable Diffusion 1.5": (
        edit("model_index.json", _class_name="StableDiffusionPipeline"),
        "not a StableDiffusionXL",
    ),
    "a refiner": (remove("text_encoder/config.json"), r"text_encoder/config\.json is missing"),
    "no UNet": (
        remove("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        r"unet/diffusion_pytorch_model\.safetensors is missing",
    ),
    "no tokenizer": (remove("tokenizer/merges.txt"), r"tokenizer/merges\.txt is missing"),
    "no scheduler": (remove("scheduler/scheduler_config.json"), r"scheduler/scheduler_config\.json is missing"),
    "no VAE": (remove("vae/config.json"), r"vae/config\.json is missing"),
    "an older UNet": (edit("unet/config.json", addition_embed_type=None), "no text and size conditioning"),
    "an inpainting UNet": (edit("unet/config.json", in_channels=9), "9 channels, not 4"),
    "another encoder": (edit("text_encoder/config.json", hidden_size=1024), r"2048 wide.*1024 \+ 1280"),
    "a broken config": (write("unet/config.json", "{"), r"unet/config\.json of the base model cannot be read"),
    "a lost shard": (lambda model: into_shards(model, "part-1.safetensors"), r"unet/part-1\.safetensors is missing"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_base_model_is_refused(what: str, model: Path) -> None:
    change, words = WRONG[what]
    change(model)
    with pytest.raises(Failure, match=words) as caught:
        fetch(model)
    assert (caught.value.code, caught.value.reason) == (78, "WrongBaseModel")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is not a folder of this machine"):
        fetch(tmp_path / "none")


def test_only_what_is_needed_is_taken(model: Path) -> None:
    assert set(fetch(model).names) == set(FILES) - {
        "README.md",
        "sd_xl_base_1.0.safetensors",
        "text_encoder/model.onnx",
        *(name for name in FILES if ".fp16." in name),
    }
    assert set(fetch(model, TRAINED).names) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


def test_half_size_weights_are_preferred_where_asked(model: Path) -> None:
    found = fetch(model, half=True)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in found.names
    assert "unet/diffusion_pytorch_model.safetensors" not in found.names
    assert found.variant("unet") == "fp16"
    remove("unet/diffusion_pytorch_model.fp16.safetensors")(model)
    mixed = fetch(model, half=True)
    assert (mixed.variant("unet"), mixed.variant("text_encoder")) == (None, "fp16")
    remove("vae/diffusion_pytorch_model.safetensors")(model)
    assert fetch(model).variant("vae") == "fp16"


def test_shards_are_taken(model: Path) -> None:
    into_shards(model)
    assert {"unet/part-1.safetensors", "unet/part-2.safetensors"} <= set(fetch(model).names)


def test_the_digest_knows_the_parts_and_their_bytes(model: Path) -> None:
    before = fetch(model)
    trained, encoders = before.digest(TRAINED), before.digest(ENCODERS)
    assert trained != encoders
    write("vae/diffusion_pytorch_model.safetensors", "other")(model)
    assert fetch(model).digest(TRAINED) == trained == fetch(model, TRAINED).digest(TRAINED)
    assert fetch(model).digest(ENCODERS) != encoders


@pytest.mark.parametrize("below", ["vae/", ""])
def test_a_separate_vae_lies_at_the_root_or_below(below: str, model: Path) -> None:
    folder = model if below else model / "vae"
    source = BaseModelSource(source="unused", vae=str(folder))
    means = Means(lambda _: pytest.fail("no bucket"), model.parent / "scratch")
    found = basemodel.fetch_vae(source, means)
    assert found.names == (f"{below}config.json", f"{below}diffusion_pytorch_model.safetensors")
    remove(f"{below}config.json")(folder)
    with pytest.raises(Failure, match=r"baseModel\.vae"):
        basemodel.fetch_vae(source, means)


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="HF_TOKEN"):
        basemodel.read_token(str(tmp_path))
    assert basemodel.read_token(None) is None
