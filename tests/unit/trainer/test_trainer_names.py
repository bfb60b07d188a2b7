"""The names of the LoRA's tensors on the real SDXL (without its weights), held by lists that are counted out here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
import torch

from lorafinetune_trainer.product import diffusers, kohya, names
from tests.unit.trainer.product import adapted, product

DEPTHS = {
    **{f"input_blocks_{block}_1": 2 for block in (4, 5)},
    **{f"input_blocks_{block}_1": 10 for block in (7, 8)},
    "middle_block_1": 10,
    **{f"output_blocks_{block}_1": 10 for block in (0, 1, 2)},
    **{f"output_blocks_{block}_1": 2 for block in (3, 4, 5)},
}
"""The transformers of the original SDXL UNet, and how many layers each has."""
DIGESTS = {
    "Attention, kohya": "ec76465876eb8fa7744bd673316d6e33d50427b66fae7161a3b2308dcd5f12b5",
    "All, kohya": "4541282f656f792afc7757c44c7952c669a54253849faccb9d20b0e4c6951619",
    "encoders, kohya": "a2707b85f77d9b99ed8a86afdeb92398cd7f088a9745ff7605effcbe7153e064",
    "Attention, diffusers": "24e1a650cb302438475122078d225889a8f054a626c12ea9fa377d708e44baff",
    "All, diffusers": "14cdbe34fbda63d5eb3879d81a216613b5387f4217ce54aaf0e6b19a240e8640",
    "encoders, diffusers": "ab629b2a9f041a34f98f4a312f91d06e1ef3e4b838dce82dd5f6d9fcf2d7424c",
}
"""SHA-256 over the sorted names, a line each: what was published once is loaded by somebody."""


def digest(found: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(found)).encode()).hexdigest()


def kohyas_unet(*, everything: bool) -> set[str]:
    """Kohya's modules of the UNet, counted out."""
    layers = [f"{a}_{one}" for a in ("attn1", "attn2") for one in ("to_q", "to_k", "to_v", "to_out_0")]
    layers += ["ff_net_0_proj", "ff_net_2"] if everything else []
    found = {
        f"lora_unet_{block}_transformer_blocks_{number}_{layer}"
        for block, depth in DEPTHS.items()
        for number in range(depth)
        for layer in layers
    }
    return found | {f"lora_unet_{block}_proj_{end}" for block in DEPTHS for end in ("in", "out") if everything}


def kohyas_encoders() -> set[str]:
    layers = ["mlp_fc1", "mlp_fc2", *(f"self_attn_{one}_proj" for one in ("q", "k", "v", "out"))]
    return {
        f"lora_te{number}_text_model_encoder_layers_{layer}_{one}"
        for number, depth in ((1, 12), (2, 32))
        for layer in range(depth)
        for one in layers
    }


def keys(modules: Iterable[str]) -> set[str]:
    return {f"{one}.{what}" for one in modules for what in ("lora_down.weight", "lora_up.weight", "alpha")}


@pytest.fixture(scope="module")
def unet() -> dict[str, dict[str, torch.Tensor]]:
    return {"Attention": adapted("unet", "Attention"), "All": adapted("unet", "All")}


@pytest.fixture(scope="module")
def encoders() -> dict[str, torch.Tensor]:
    return adapted("text_encoder", "All") | adapted("text_encoder_2", "All")


def test_the_real_sdxl_has_1120_matrices_in_attention(unet: dict[str, dict[str, torch.Tensor]]) -> None:
    assert len(unet["Attention"]) == 1120
    assert sum(one.numel() for one in unet["Attention"].values()) == 5_806_080
    assert len(unet["All"]) == 2 * 722


def test_kohyas_names_of_the_unet(unet: dict[str, dict[str, torch.Tensor]]) -> None:
    attention = kohya.tensors(unet["Attention"], product())
    assert set(attention) == keys(kohyas_unet(everything=False))
    assert len(attention) == 1680
    everything = kohya.tensors(unet["All"], product())
    assert set(everything) == keys(kohyas_unet(everything=True))
    assert len(everything) == 3 * 722
    assert digest(attention) == DIGESTS["Attention, kohya"]
    assert digest(everything) == DIGESTS["All, kohya"]


def test_kohyas_names_of_the_text_encoders(encoders: dict[str, torch.Tensor]) -> None:
    found = kohya.tensors(encoders, product())
    assert set(found) == keys(kohyas_encoders())
    assert len(found) == 3 * 264
    assert digest(found) == DIGESTS["encoders, kohya"]
    attention = adapted("text_encoder", "Attention") | adapted("text_encoder_2", "Attention")
    assert len(kohya.tensors(attention, product())) == 3 * 4 * (12 + 32)


def test_diffusers_names(unet: dict[str, dict[str, torch.Tensor]], encoders: dict[str, torch.Tensor]) -> None:
    found = {one: set(diffusers.tensors(weights, product())) for one, weights in unet.items()}
    assert "unet.up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0.lora_B.weight" in found["Attention"]
    assert "unet.mid_block.attentions.0.proj_in.lora_A.weight" in found["All"] - found["Attention"]
    names_of_encoders = set(diffusers.tensors(encoders, product()))
    for part in ("text_encoder", "text_encoder_2"):
        assert f"{part}.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names_of_encoders
    assert digest(found["Attention"]) == DIGESTS["Attention, diffusers"]
    assert digest(found["All"]) == DIGESTS["All, diffusers"]
    assert digest(names_of_encoders) == DIGESTS["encoders, diffusers"]


def test_the_librarys_own_importer_gives_our_names_back(
    unet: dict[str, dict[str, torch.Tensor]], encoders: dict[str, torch.Tensor]
) -> None:
    from diffusers.loaders import lora_conversion_utils as importer
    from diffusers.utils import state_dict_utils

    class Config:
        layers_per_block = 2

    weights = unet["All"] | encoders
    mapped = importer._maybe_map_sgm_blocks_to_diffusers(kohya.tensors(weights, product()), Config())
    found, _ = importer._convert_non_diffusers_lora_to_diffusers(mapped)
    unet_keys = state_dict_utils.convert_unet_state_dict_to_peft(
        {name: one for name, one in found.items() if name.startswith("unet.")}
    )
    encoder_keys = state_dict_utils.convert_state_dict_to_peft(
        state_dict_utils.convert_state_dict_to_diffusers(
            {name: one for name, one in found.items() if name.startswith("text_")}
        )
    )
    assert {*unet_keys, *encoder_keys} == set(diffusers.tensors(weights, product()))


def test_every_name_comes_back_from_kohyas(
    unet: dict[str, dict[str, torch.Tensor]], encoders: dict[str, torch.Tensor]
) -> None:
    for name in [*unet["All"], *encoders]:
        part, module, _ = names.parse(name)
        assert names.from_kohya(names.to_kohya(part, module, 2), 2) == (part, module)
        if part == "unet":  # as other tools write it
            assert names.from_kohya("lora_unet_" + module.replace(".", "_"), 2) == (part, module)


def test_a_dora_has_a_magnitude_for_each_module() -> None:
    weights = adapted("unet", "Attention", dora=True)
    found = kohya.tensors(weights, product(lora={"dora": True}))
    assert len(found) == 4 * 560
    base = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert found[f"{base}.dora_scale"].shape == (640, 1)
    plain = diffusers.tensors(weights, product(lora={"dora": True}))
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_magnitude_vector" in plain


@pytest.mark.parametrize("name", ["unet.conv_in.lora_A.weight", "unet.down_blocks.1.resnets.0.conv1.lora_A.weight"])
def test_a_module_without_a_kohya_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        kohya.tensors({name: torch.zeros(1)}, product())


@pytest.mark.parametrize("name", ["down_blocks.1.to_q.lora_A.weight", "unet.to_q.weight", "unet.lora_A.weight"])
def test_a_name_that_is_none_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a trained weight"):
        names.parse(name)
