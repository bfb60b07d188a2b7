"""Which files of a diffusers folder are taken, and what is said of one that is no SDXL. No weight is looked at here."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafinetune.contract.runconfig import BaseModelSource
from lorafinetune_trainer.base import fetching, hub
from lorafinetune_trainer.base.files import ENCODERS, TRAINED, Folder
from lorafinetune_trainer.base.places import Means, open_local
from lorafinetune_trainer.failure import Failure


def weights(name: str, dtype: str = "F16") -> bytes:
    """Return a safetensors file with one tensor of that name."""
    header = json.dumps({name: {"dtype": dtype, "shape": [2], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"1234"


FILES: dict[str, object] = {
    "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
    "README.md": "",
    "sd_xl_base_1.0.safetensors": "",
    "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
    "text_encoder/config.json": {"hidden_size": 768},
    "text_encoder/model.safetensors": weights("1.weight"),
    "text_encoder/model.fp16.safetensors": weights("2.weight"),
    "text_encoder/model.onnx": "",
    "text_encoder_2/config.json": {"hidden_size": 1280},
    "text_encoder_2/model.safetensors": weights("3.weight"),
    "text_encoder_2/model.fp16.safetensors": weights("4.weight"),
    "tokenizer/vocab.json": {},
    "tokenizer/merges.txt": "",
    "tokenizer/tokenizer_config.json": {},
    "tokenizer_2/vocab.json": {},
    "tokenizer_2/merges.txt": "",
    "unet/config.json": {"addition_embed_type": "text_time", "cross_attention_dim": 2048, "in_channels": 4},
    "unet/diffusion_pytorch_model.safetensors": weights("5.weight"),
    "unet/diffusion_pytorch_model.fp16.safetensors": weights("6.weight"),
    "vae/config.json": {},
    "vae/diffusion_pytorch_model.safetensors": weights("7.weight"),
    "vae/diffusion_pytorch_model.fp16.safetensors": weights("8.weight"),
}
"""The layout of stabilityai/stable-diffusion-xl-base-1.0, without its weights."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / "model"


def fetch(model: Path, parts: frozenset[str] = TRAINED | ENCODERS, *, half: bool = False, **source: str) -> Folder:
    means = Means(lambda _: pytest.fail("no bucket"), model.parent / "scratch")
    found = fetching.fetch(BaseModelSource(source=str(model), **source), parts, means, half=half)
    assert isinstance(found, Folder)
    return found


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


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def into_shards(model: Path, *lost: str) -> None:
    """Put two shards in the place of the UNet's weights, without those that are *lost*."""
    remove("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors")(model)
    shards = ["part-1.safetensors", "part-2.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for shard in set(shards) - set(lost):
        (model / "unet" / shard).write_bytes(weights("x"))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (
        remove("model_index.json"),
        r"no model_index\.json.*name the file sd_xl_base_1\.0\.safetensors itself",
    ),
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
    "weights that were cut short": (
        write("unet/diffusion_pytorch_model.safetensors", weights("x")[:-1]),
        r"unet/diffusion_pytorch_model\.safetensors is damaged \(it has \d+ bytes, its header promises \d+: it was cut",
    ),
    "a header beyond the file": (
        write("vae/diffusion_pytorch_model.safetensors", weights("x")[:20]),
        r"vae/diffusion_pytorch_model\.safetensors is damaged \(its header alone has \d+ bytes, the file 20",
    ),
    "an empty file": (write("text_encoder/model.safetensors", ""), r"text_encoder/model\.safetensors.*it has 0 bytes"),
    "quantized weights": (
        write("text_encoder_2/model.safetensors", weights("x.weight", "F8_E4M3")),
        r"text_encoder_2/model\.safetensors: x\.weight is of type F8_E4M3",
    ),
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
    write("vae/diffusion_pytorch_model.safetensors", weights("other"))(model)
    assert fetch(model).digest(TRAINED) == trained == fetch(model, TRAINED).digest(TRAINED)
    assert fetch(model).digest(ENCODERS) != encoders


@pytest.mark.parametrize("below", ["vae/", ""])
def test_a_separate_vae_lies_at_the_root_or_below(below: str, model: Path) -> None:
    folder = model if below else model / "vae"
    source = BaseModelSource(source="unused", vae=str(folder))
    means = Means(lambda _: pytest.fail("no bucket"), model.parent / "scratch")
    found = fetching.fetch_vae(source, means)
    assert isinstance(found.files, Folder)
    assert found.folder == folder / below
    assert found.files.names == (f"{below}config.json", f"{below}diffusion_pytorch_model.safetensors")
    remove(f"{below}config.json")(folder)
    with pytest.raises(Failure, match=r"baseModel\.vae"):
        fetching.fetch_vae(source, means)


VAES: dict[str, tuple[Callable[[Path], None], str]] = {
    "vae": (edit("vae/config.json", latent_channels=16), "it makes latents of 16 channels, and SDXL takes 4"),
    "unet": (edit("unet/config.json", _class_name="UNet2DConditionModel"), "it is a UNet2DConditionModel, not an "),
    "photographs": (
        write("photographs/dog.jpg", b""),
        "it has no config.json with diffusion_pytorch_model.safetensors",
    ),
}


@pytest.mark.parametrize("folder", VAES)
def test_a_separate_vae_that_is_none(folder: str, model: Path) -> None:
    change, words = VAES[folder]
    (model / folder).mkdir(exist_ok=True)
    change(model)
    source = BaseModelSource(source="unused", vae=str(model / folder))
    with pytest.raises(Failure) as caught:
        fetching.fetch_vae(source, Means(lambda _: pytest.fail("no bucket"), model.parent / "scratch"))
    message = caught.value.message
    assert message.startswith(f"baseModel.vae {model / folder} cannot be used: {words}")
    assert message.endswith(
        "It must be a VAE of SDXL: a folder with config.json and diffusion_pytorch_model.safetensors, or one "
        ".safetensors file"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://huggingface.example/owner/sdxl-1.0", "is a page of the hub: write hf://owner/sdxl-1.0"),
        ("huggingface.example/owner/name/tree/main", "is a page of the hub: write hf://owner/name"),
        (
            "https://hf.example/owner/name/blob/main/one.safetensors?download=true",
            "is a page of the hub: write hf://owner/name/one.safetensors",
        ),
        (
            "https://elsewhere.example/models/1",
            "is neither hf://owner/name, nor s3://bucket/prefix/, nor a path of this",
        ),
        ("owner/sdxl-1.0", "is no folder of this machine: for the model on the hub, write hf://owner/sdxl-1.0"),
        ("models/sdxl", "is not a folder of this machine, nor a .safetensors file ("),
    ],
)
def test_a_model_on_the_hub_in_other_words(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failure) as caught:
        open_local("baseModel.source", source)
    assert caught.value.message.startswith(f"baseModel.source {source} {words}")
    assert ("write hf://" in words) == caught.value.message.endswith(words), "nothing else is said"


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="HF_TOKEN"):
        hub.read_token(str(tmp_path))
    assert hub.read_token(None) is None
