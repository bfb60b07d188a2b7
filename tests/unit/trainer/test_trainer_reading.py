"""LoRA files of others and of our own, read for training.lora.initFrom: what they add, and why they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafinetune.contract import canonical
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.product import export, initial, reading
from lorafinetune_trainer.saving import state
from tests.unit.trainer.product import MODULE, product, weights

KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
FEED = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
ENCODER = "encoder.layers.0.self_attn.q_proj"
WEIGHTS = weights()
A, B = (WEIGHTS[f"unet.{MODULE}.{one}.weight"] for one in ("lora_A", "lora_B"))


def started(
    tensors: dict[str, Any],
    metadata: dict[str, str] | None = None,
    *,
    expected: dict[str, torch.Tensor] | None = None,
    **lora: Any,
) -> dict[str, torch.Tensor]:
    """The weights that a run of *lora* starts with, from a file of *tensors*."""
    training = product(lora=lora).config.training
    shapes = {name: tuple(tensor.shape) for name, tensor in (expected or WEIGHTS).items()}
    return initial.weights(initial.check(state.encode(tensors, metadata), training, 2), training, shapes)


def added(found: dict[str, torch.Tensor], **lora: Any) -> torch.Tensor:
    """What the run's adapter adds to the module's weight in its first step."""
    up, down = (found[f"unet.{MODULE}.{one}.weight"] for one in ("lora_B", "lora_A"))
    return up @ down * product(lora=lora).config.training.lora.scale


PLAIN = {f"unet.{MODULE}.lora_A.weight": A, f"unet.{MODULE}.lora_B.weight": B}
UNDERSCORES = "lora_unet_" + MODULE.replace(".", "_")
FORMS: dict[str, tuple[dict[str, Any], dict[str, str], float]] = {
    "peft": (PLAIN, {}, 1.0),
    "peft with the adapter's name": (
        {name.replace(".weight", ".default.weight"): one for name, one in PLAIN.items()}, {}, 1.0
    ),
    "diffusers": ({f"unet.{MODULE}.lora.down.weight": A, f"unet.{MODULE}.lora.up.weight": B}, {}, 1.0),
    "diffusers with alpha": (
        {
            f"unet.{MODULE}.lora.down.weight": A,
            f"unet.{MODULE}.lora.up.weight": B,
            f"unet.{MODULE}.alpha": torch.tensor(2.0),
        },
        {},
        0.5,
    ),
    "old diffusers": (
        {
            f"unet.{MODULE.replace('.to_q', '.processor.to_q_lora')}.down.weight": A,
            f"unet.{MODULE.replace('.to_q', '.processor.to_q_lora')}.up.weight": B,
        },
        {},
        1.0,
    ),
    "old diffusers without its part": (
        {
            f"{MODULE.replace('.to_q', '.processor.to_q_lora')}.down.weight": A,
            f"{MODULE.replace('.to_q', '.processor.to_q_lora')}.up.weight": B,
        },
        {},
        1.0,
    ),
    "alpha in the header": (PLAIN, {"unet.r": 4, "unet.lora_alpha": 6}, 1.5),  # type: ignore[dict-item]
    "rsLoRA in the header": (
        PLAIN, {"unet.lora_alpha": 6, "unet.use_rslora": True}, 3.0  # type: ignore[dict-item]
    ),
    "alpha of the module in the header": (
        PLAIN, {"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 2}}, 0.5  # type: ignore[dict-item]
    ),
    "kohya": (
        {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.alpha": torch.tensor(1.0)}, {}, 0.25
    ),
    "kohya without alpha": ({f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B}, {}, 1.0),
    "kohya with diffusers' modules": (
        {f"{UNDERSCORES}.lora_down.weight": A, f"{UNDERSCORES}.lora_up.weight": B}, {}, 1.0
    ),
    "kohya with 1 x 1 convolutions": (
        {f"{KOHYA}.lora_down.weight": A[:, :, None, None], f"{KOHYA}.lora_up.weight": B[:, :, None, None]}, {}, 1.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lora", [{"alpha": 8}, {"alpha": 4}, {"alpha": 6, "rsLora": True}])
def test_the_run_begins_with_what_the_file_adds(form: str, lora: dict[str, Any]) -> None:
    tensors, told, factor = FORMS[form]
    metadata = {"lora_adapter_metadata": json.dumps(told)} if told else None
    found = started(tensors, metadata, **lora)
    assert torch.allclose(added(found, **lora), B @ A * factor, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_32_bit(dtype: torch.dtype) -> None:
    found = started({name: one.to(dtype) for name, one in PLAIN.items()}, alpha=4)
    assert all(one.dtype is torch.float32 for one in found.values())
    assert torch.equal(found[f"unet.{MODULE}.lora_A.weight"], A.to(dtype).float())


def test_our_own_files_come_back_bit_by_bit() -> None:
    for make in (export.diffusers_file, export.kohya_file):
        found = started(state.decode(make(WEIGHTS, product())).tensors, alpha=8)
        assert found.keys() == WEIGHTS.keys()
        assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


ENCODERS = {
    f"{part}.{inside}{ENCODER}.{one}.weight": torch.ones(2, 2)
    for part, inside in (("text_encoder", ""), ("text_encoder_2", "text_model."))
    for one in ("lora_A", "lora_B")
}


@pytest.mark.parametrize(
    "keys",
    [
        ("text_encoder.text_model.{}.lora_A.weight", "text_encoder.text_model.{}.lora_B.weight"),
        ("text_encoder.{}.lora_linear_layer.down.weight", "text_encoder.{}.lora_linear_layer.up.weight"),
        ("text_encoder.text_model.{}.lora.down.weight", "text_encoder.text_model.{}.lora.up.weight"),
    ],
)
def test_text_encoders_are_found_by_both_of_their_names(keys: tuple[str, str]) -> None:
    down, up = torch.randn(4, 8), torch.randn(6, 4)
    expected = {f"text_encoder.{ENCODER}.lora_A.weight": down, f"text_encoder.{ENCODER}.lora_B.weight": up}
    tensors = {keys[0].format(ENCODER): down, keys[1].format(ENCODER): up}
    found = started(tensors, expected={**WEIGHTS, **expected}, textEncoder=True, alpha=4)
    assert found.keys() == expected.keys(), "modules that the file leaves out begin as they would without it"
    assert all(torch.equal(found[name], expected[name]) for name in expected)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another rank": (
        {f"unet.{MODULE}.lora_A.weight": torch.ones(2, 8), f"unet.{MODULE}.lora_B.weight": torch.ones(6, 2)},
        {},
        "its rank is 2, and training.lora.rank is 4; set training.lora.rank: 2",
    ),
    "other targets": (
        {**PLAIN, f"unet.{FEED}.lora_A.weight": torch.ones(4, 8), f"unet.{FEED}.lora_B.weight": torch.ones(6, 4)},
        {},
        "set training.lora.targets: All",
    ),
    "text encoders": (
        {**PLAIN, "text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 2),
         "text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight": torch.ones(2, 4)},
        {},
        "set training.lora.textEncoder: true",
    ),
    "a DoRA": (
        {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.dora_scale": torch.ones(6, 1)},
        {},
        "set training.lora.dora: true",
    ),
    "a DoRA by inputs": (
        {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.dora_scale": torch.ones(1, 8)},
        {},
        "a magnitude for each input",
    ),
    "Stable Diffusion 1": (
        {f"lora_te_text_model_{ENCODER.replace('.', '_')}.lora_down.weight": A}, {}, "another family of models"
    ),
    "Stable Diffusion 1's UNet": (
        {f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{one}.weight": torch.ones(4, 4)
         for one in "AB"},
        {},
        "the base model has no unet.down_blocks.0",
    ),
    "other widths": (
        {f"unet.{MODULE}.lora_A.weight": torch.ones(4, 9), f"unet.{MODULE}.lora_B.weight": B},
        {},
        "another family of models",
    ),
    "Flux": ({"transformer.blocks.0.attn.to_q.lora_A.weight": A}, {}, "no LoRA of SDXL"),
    "a LoHa": ({f"{KOHYA}.hada_w1_a": A}, {}, "is a LoHa"),
    "a convolution": (
        {f"{KOHYA}.lora_down.weight": torch.ones(4, 8, 3, 3), f"{KOHYA}.lora_up.weight": B}, {}, "a convolution"
    ),
    "a whole model": ({"conditioner.embedders.0.weight": A}, {}, "no LoRA of SDXL"),
    "half a module": ({f"{KOHYA}.lora_down.weight": A}, {}, "lacks its up matrix"),
    "two ranks in one": (
        {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": torch.ones(6, 3)}, {}, "matrices of two ranks"
    ),
    "not finite": (
        {f"{KOHYA}.lora_down.weight": A * float("nan"), f"{KOHYA}.lora_up.weight": B}, {}, "not finite"
    ),
    "alpha of nothing": (
        {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.alpha": torch.tensor(0.0)},
        {},
        "no positive number",
    ),
    "empty": ({}, {}, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_field_and_fix(kind: str) -> None:
    tensors, lora, words = REFUSED[kind]
    with pytest.raises(Failure) as caught:
        started(tensors, **lora)
    assert caught.value.reason == "InvalidLora"
    assert caught.value.code is ExitCode.INVALID
    assert caught.value.message.startswith("training.lora.initFrom: ")
    assert words in caught.value.message


def test_no_dora_where_one_is_trained() -> None:
    expected = {**WEIGHTS, f"unet.{MODULE}.lora_magnitude_vector.weight": torch.ones(6)}
    with pytest.raises(Failure, match=r"set training\.lora\.dora: false"):
        started(PLAIN, expected=expected, dora=True)
    kohya = {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B, f"{KOHYA}.dora_scale": torch.rand(6, 1)}
    found = started(kohya, expected=expected, dora=True)
    assert torch.equal(found[f"unet.{MODULE}.lora_magnitude_vector.weight"], kohya[f"{KOHYA}.dora_scale"].flatten())


def test_a_dora_of_a_text_encoder_is_refused() -> None:
    expected = {f"text_encoder.{ENCODER}.lora_A.weight": A, f"text_encoder.{ENCODER}.lora_B.weight": B}
    with pytest.raises(Failure, match="DoRA is for the UNet only"):
        started(
            {**expected, f"text_encoder.{ENCODER}.lora_magnitude_vector": torch.ones(6)},
            expected=expected,
            dora=True,
            textEncoder=True,
        )


@pytest.mark.parametrize("body", [b"", b"not a file", export.diffusers_file(WEIGHTS, product())[:-9]])
def test_what_is_no_whole_file(body: bytes) -> None:
    with pytest.raises(Failure, match=r"not a whole \.safetensors file"):
        reading.read(body, 2)


def loaded(tmp_path: Path, digest: str | None, *, source: str = "", body: bytes | None = None) -> dict[str, Any]:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(export.kohya_file(WEIGHTS, product()))
    lora = {} if source == "nothing" else {"initFrom": source or str(path)}
    return initial.load(
        product(lora=lora).config.training,
        digest,
        {name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()},
        lambda location: pytest.fail(f"{location} is asked"),
        layers_per_block=2,
        body=body,
    )


def test_the_run_begins_with_the_file_of_its_plan(tmp_path: Path) -> None:
    body = export.kohya_file(WEIGHTS, product())
    digest = canonical.sha256(body)
    assert loaded(tmp_path, digest).keys() == WEIGHTS.keys()
    assert loaded(tmp_path, digest, source="/gone", body=body).keys() == WEIGHTS.keys()
    assert loaded(tmp_path, None) == {}
    with pytest.raises(Failure, match="another file than the one that the run began with") as caught:
        loaded(tmp_path, "0" * 64)
    assert caught.value.reason == "PlanMismatch"
    with pytest.raises(Failure, match="put it back"):
        loaded(tmp_path, digest, source="nothing")
