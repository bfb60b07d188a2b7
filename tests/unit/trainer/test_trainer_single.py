"""One file with all parts of a model: what its header tells, what is refused by it, and that its weights are right."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import single_file, tiny_sdxl
from lorafinetune.contract.runconfig import BaseModelSource
from lorafinetune_trainer.base import family, fetching, header, parts, tokenizer
from lorafinetune_trainer.base.files import ENCODERS, PREFIXES, TRAINED, Files, Folder, Part, Single, read_json
from lorafinetune_trainer.base.header import Tensor
from lorafinetune_trainer.base.places import Means
from lorafinetune_trainer.failure import Failure

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "trainer-image/lorafinetune_trainer/base/sdxl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl.build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return single_file.write(folder, folder.parent / "tiny.safetensors")


def fetch(source: Path, wanted: frozenset[str] = TRAINED | ENCODERS, **members: str) -> Files:
    means = Means(lambda _: pytest.fail("no bucket"), source.parent / "scratch")
    return fetching.fetch(BaseModelSource(source=str(source), **members), wanted, means, half=False)


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_weights_are_those_of_the_folder(dtype: torch.dtype, folder: Path, file: Path) -> None:
    one, other = fetch(folder), fetch(file)
    assert isinstance(one, Folder)
    assert isinstance(other, Single)
    assert_equal(parts.load_unet(one, dtype), parts.load_unet(other, dtype))
    assert_equal(parts.load_vae(Part(one, "vae"), dtype), parts.load_vae(Part(other, "vae"), dtype))
    for first, second in zip(parts.load_text_encoders(one, dtype), parts.load_text_encoders(other, dtype), strict=True):
        assert_equal(first.model, second.model)
        words = "a photo of sks timber dog"
        assert first.tokenizer(words).input_ids == second.tokenizer(words).input_ids
    assert parts.scheduler_config(one) == parts.scheduler_config(other)


def test_a_single_vae(folder: Path, file: Path, tmp_path: Path) -> None:
    """As people have them: the VAE's tensors under original names, with and without the prefix, or diffusers'."""
    from safetensors.torch import load_file, save_file

    theirs = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    config = read_json(folder / "vae/config.json", "config.json")
    original = {name: tensor.contiguous() for name, tensor in single_file.vae(theirs, config).items()}
    bare = {name.removeprefix(PREFIXES["vae"]): tensor for name, tensor in original.items()}
    means = Means(lambda _: pytest.fail("no bucket"), tmp_path)
    expected = parts.load_vae(Part(fetch(folder), "vae"), torch.float32)
    for number, tensors in enumerate((original, bare, theirs)):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        (tmp_path / f"{path.name}.config").mkdir()
        (tmp_path / f"{path.name}.config/vae").symlink_to(folder / "vae")
        found = fetching.fetch_vae(BaseModelSource(source="unused", vae=str(path)), means)
        assert_equal(parts.load_vae(found, torch.float32), expected)
    save_file({"x.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(Failure, match=r"baseModel\.vae .*x\.safetensors cannot be used: it holds no VAE"):
        fetching.fetch_vae(BaseModelSource(source="unused", vae=str(tmp_path / "x.safetensors")), means)


def test_the_digest_is_of_the_wanted_parts_alone(folder: Path, file: Path, tmp_path: Path) -> None:
    found = fetch(file)
    trained = found.digest(TRAINED)
    assert trained == fetch(file, TRAINED).digest(TRAINED)
    assert trained != found.digest(ENCODERS)
    copy = tmp_path / file.name
    (tmp_path / f"{file.name}.config").symlink_to(file.with_name(f"{file.name}.config"))
    for part, changes in (("vae", False), ("unet", True)):
        body = bytearray(file.read_bytes())
        first, end = header.read(file).spans(found.tensors(part))[0]  # type: ignore[union-attr]
        body[(first + end) // 2] ^= 1
        copy.write_bytes(body)
        assert (fetch(copy).digest(TRAINED) != trained) is changes


def test_marks_of_v_prediction(folder: Path, tmp_path: Path) -> None:
    for marks, expected in (
        ((), ("epsilon", False)),
        (("v_pred",), ("v_prediction", False)),
        (
            ("v_pred", "ztsnr"),
            ("v_prediction", True),
        ),
    ):
        path = single_file.write(folder, tmp_path / f"{len(marks)}.safetensors", marks=marks)
        config = parts.scheduler_config(fetch(path))
        assert (config["prediction_type"], bool(config.get("rescale_betas_zero_snr"))) == expected


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """SDXL at its real size, without a byte of weights, under its original names."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    found: dict[str, Any] = {}
    with init_empty_weights():
        models = {
            "unet": UNet2DConditionModel.from_config(read_json(SHIPPED / "unet/config.json", "")),
            "vae": AutoencoderKL.from_config(read_json(SHIPPED / "vae/config.json", "")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(SHIPPED / "text_encoder")),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(SHIPPED / "text_encoder_2")),
        }
    for (part, model), convert in zip(
        models.items(),
        (single_file.unet, single_file.vae, single_file.text_encoder, single_file.open_clip),
        strict=True,
    ):
        found |= convert(model.state_dict(), dict(model.config.to_dict() if part.startswith("text") else model.config))
    return {"models": models, "tensors": found}


def test_the_shipped_configs_are_those_of_sdxl(real: dict[str, Any]) -> None:
    """The figures are those of sd_xl_base_1.0.safetensors, whose 2515 tensors include two that nothing needs."""
    from diffusers.loaders import single_file_utils

    models, tensors = real["models"], real["tensors"]
    count = {part: sum(weight.numel() for weight in model.parameters()) for part, model in models.items()}
    assert count == {"unet": 2567463684, "vae": 83653863, "text_encoder": 123060480, "text_encoder_2": 694659840}
    assert len(tensors) == 2515 - 2
    assert single_file_utils.infer_diffusers_model_type(tensors) == "xl_base"
    converted = single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(models["unet"].config))
    expected = {name: weight.shape for name, weight in models["unet"].state_dict().items()}
    assert {name: weight.shape for name, weight in converted.items()} == expected
    assert len(expected) == family.UNET_TENSORS
    assert parts.scheduler_config(Single(Path(), "x", header.Header({}, 0, 0), TRAINED))["prediction_type"] == "epsilon"


def described(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: Tensor("F16", tuple(tensor.shape), 0, 0) for name, tensor in tensors.items()}


def without(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def shaped(name: str, *shape: int, dtype: str = "F16") -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: Tensor(dtype, shape, 0, 0)})


_IN = "model.diffusion_model.input_blocks."
OTHERS: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "Stable Diffusion 1.5": (renamed("conditioner.embedders.0.", "cond_stage_model."), "Stable Diffusion 1 model"),
    "Stable Diffusion 2": (renamed("conditioner.embedders.1.", "cond_stage_model."), "Stable Diffusion 2 model"),
    "a refiner": (renamed("conditioner.embedders.1.", "conditioner.embedders.0."), "refiner"),
    "inpainting": (shaped(f"{_IN}0.0.weight", 320, 9, 3, 3), "takes 9 channels, not 4"),
    "Stable Diffusion 3": (shaped("model.diffusion_model.joint_blocks.0.x", 1), "Stable Diffusion 3"),
    "Flux": (renamed(_IN, "double_blocks."), "Flux"),
    "a LoRA": (shaped("lora_unet_down.lora_up.weight", 1), r"training\.lora\.initFrom"),
    "Playground": (shaped("edm_mean", 4), "Playground"),
    "a UNet alone": (without("conditioner."), "no first text encoder"),
    "no VAE": (without("first_stage_model."), r"no VAE .*name one in baseModel\.vae"),
    "no UNet": (without("model."), "no UNet"),
    "a distilled relative": (without(f"{_IN}8.1.transformer_blocks.9."), "its UNet has 1660 tensors"),
    "quantized": (shaped(f"{_IN}4.1.proj_in.weight", 640, 640, dtype="F8_E4M3"), "of type F8_E4M3"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_family_is_known_by_its_header(what: str, real: dict[str, Any]) -> None:
    tensors = described(real["tensors"])
    assert family.of_single(tensors, TRAINED | ENCODERS, shipped=True) is None
    change, words = OTHERS[what]
    change(tensors)
    why = family.of_single(tensors, TRAINED | ENCODERS, shipped=True)
    assert why is not None
    assert re.search(words, why)


def test_the_vae_may_be_another(real: dict[str, Any]) -> None:
    tensors = described(real["tensors"])
    without("first_stage_model.")(tensors)
    assert family.of_single(tensors, TRAINED | ENCODERS - {"vae"}, shipped=True) is None


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in its weights": (lambda body: body[:-1], "its header promises"),
    "cut in its header": (lambda body: body[:1000], "its header alone has"),
    "empty": (lambda body: b"", "it has 0 bytes"),
    "a web page": (lambda body: b"<!DOCTYPE html><html>" * 10, "does not begin as a safetensors file does"),
    "no JSON": (lambda body: struct.pack("<Q", 8) + b"{{{{{{{{", "its header is damaged"),
    "a tensor that is too small": (
        lambda body: header_of({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}) + b"1234",
        "x does not fit its place",
    ),
}


def header_of(members: dict[str, Any]) -> bytes:
    text = json.dumps(members).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file(what: str, file: Path, tmp_path: Path) -> None:
    damage, words = DAMAGED[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(file.read_bytes()))
    with pytest.raises(Failure, match=words) as caught:
        fetch(path)
    assert (caught.value.code, caught.value.reason) == (78, "WrongBaseModel")
    assert f"baseModel.source {path}" in caught.value.message


def test_a_tensor_is_missing(folder: Path, file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name in (
        f"{PREFIXES['unet']}out.2.bias",
        f"{PREFIXES['text_encoder']}transformer.text_model.final_layer_norm.bias",
    ):
        del tensors[name]
    path = tmp_path / file.name
    save_file(tensors, path)
    (tmp_path / f"{file.name}.config").symlink_to(file.with_name(f"{file.name}.config"))
    found = fetch(path)
    with pytest.raises(Failure, match=r"the UNet of the base model lacks 1 weights, first conv_out\.bias"):
        parts.load_unet(found, torch.float32)
    with pytest.raises(
        Failure, match=r"text_encoder of the base model lacks 1 weights, first .*final_layer_norm\.bias"
    ):
        parts.load_text_encoders(found, torch.float32)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80")
    with pytest.raises(Failure, match=r"is a pickle, which can run any code.*\.safetensors"):
        fetch(tmp_path / "model.ckpt")


def test_the_shipped_tokenizer_is_clips() -> None:
    first, second = (tokenizer.shipped(SHIPPED, name) for name in ("tokenizer", "tokenizer_2"))
    assert len(first.get_vocab()) == 49408
    words = [49406, 320, 1125, 539, 320, 2368, 49407]
    for one, pad in ((first, 49407), (second, 0)):
        assert one("a photo of a cat").input_ids == words
        padded = one("a photo of a cat", padding="max_length", max_length=77, truncation=True).input_ids
        assert padded == words + [pad] * 70


def test_the_wheel_holds_the_configs_and_the_merges(tmp_path: Path) -> None:
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = set(zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).namelist())
    shipped = {
        f"lorafinetune_trainer/base/sdxl/{one.relative_to(SHIPPED)}" for one in SHIPPED.rglob("*") if one.is_file()
    }
    assert len(shipped) == 9
    assert shipped <= names
