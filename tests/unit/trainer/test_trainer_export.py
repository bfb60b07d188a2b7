"""The names and scales of the exported LoRA, on the real SDXL's UNet (without its weights) and on made-up matrices."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Training
from lorafinetune_trainer.product import export
from lorafinetune_trainer.saving import state
from lorafinetune_trainer.training import model

SDXL: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""The config of stabilityai/stable-diffusion-xl-base-1.0's UNet."""


def product(*, name: str = "one", alpha: float = 8, **training: Any) -> export.Product:
    config = RunConfig.model_validate(
        {
            "run": {"name": name, "uid": f"uid-of-{name}"},
            "baseModel": {"source": f"/somewhere/{name}"},
            "dataset": {"source": "/photos", "instancePrompt": "a photo of | sks dog"},
            "training": {"lora": {"rank": 4, "alpha": alpha}, **training},
            "storage": {"uri": f"s3://{name}/"},
        }
    )
    plan = Plan(
        config_digest="c" * 64,
        dataset_digest="d" * 64,
        base_model_digest="b" * 64,
        micro_batch=1,
        precision="bf16",
        gradient_checkpointing=False,
        device=f"GPU of {name}",
        threads=3,
    )
    return export.Product(config=config, plan=plan, images=12, steps=500, updates=499, layers_per_block=2)


@pytest.fixture(scope="module")
def real_names() -> dict[str, torch.Size]:
    """Names and shapes of the adapter's matrices on the real SDXL."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
        weights = model.add_adapter(unet, Training.model_validate({"lora": {"rank": 4}}), initialise=False)
    return {name: weight.shape for name, weight in weights.items()}


def test_the_real_sdxl_has_1120_matrices(real_names: dict[str, torch.Size]) -> None:
    assert len(real_names) == 1120
    assert sum(shape.numel() for shape in real_names.values()) == 5_806_080


def test_kohyas_names_on_the_real_sdxl(real_names: dict[str, torch.Size]) -> None:
    weights = {name: torch.zeros(1) for name in real_names}
    names = set(export.kohya_weights(weights, product()))
    assert len(names) == 1680
    modules = {name.split(".")[0] for name in names}
    assert len(modules) == 560
    blocks = Counter("_".join(module.split("_")[2:6]) for module in modules if "middle" not in module)
    # Two transformer layers in the 640 wide blocks, ten in the 1280 wide ones, eight modules in each.
    assert blocks == {
        **{f"input_blocks_{block}_1": 16 for block in (4, 5)},
        **{f"input_blocks_{block}_1": 80 for block in (7, 8)},
        **{f"output_blocks_{block}_1": 80 for block in (0, 1, 2)},
        **{f"output_blocks_{block}_1": 16 for block in (3, 4, 5)},
    }
    assert sum(module.startswith("lora_unet_middle_block_1_transformer_blocks_") for module in modules) == 80
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in names
    assert "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0.lora_up.weight" in names
    assert "lora_unet_middle_block_1_transformer_blocks_9_attn1_to_v.alpha" in names


def test_diffusers_names_on_the_real_sdxl(real_names: dict[str, torch.Size]) -> None:
    names = set(export.diffusers_weights({name: torch.zeros(1) for name in real_names}, product()))
    assert len(names) == 1120
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight" in names
    assert "unet.up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0.lora_B.weight" in names


MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
WEIGHTS = {f"{MODULE}.lora_A.weight": torch.full((4, 8), 3.0), f"{MODULE}.lora_B.weight": torch.full((8, 4), 5.0)}


def test_alpha_is_folded_for_diffusers_and_written_for_kohya() -> None:
    folded = export.diffusers_weights(WEIGHTS, product(alpha=8))
    assert folded[f"{MODULE}.lora_A.weight"][0, 0] == 3.0
    assert folded[f"{MODULE}.lora_B.weight"][0, 0] == 10.0
    base = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    written = export.kohya_weights(WEIGHTS, product(alpha=8))
    assert set(written) == {f"{base}.lora_down.weight", f"{base}.lora_up.weight", f"{base}.alpha"}
    assert written[f"{base}.lora_up.weight"][0, 0] == 5.0
    assert written[f"{base}.alpha"] == 8.0


def test_files_depend_on_nothing_but_config_data_and_base_model() -> None:
    one, other = export.files(WEIGHTS, product()), export.files(WEIGHTS, product(name="other"), story="a story")
    assert one[export.DIFFUSERS] == other[export.DIFFUSERS]
    assert one[export.KOHYA] == other[export.KOHYA]
    assert one[export.CARD] != other[export.CARD]
    assert export.files(WEIGHTS, product(seed=5))[export.DIFFUSERS] != one[export.DIFFUSERS]


def test_the_headers_say_what_people_look_for() -> None:
    files = export.files(WEIGHTS, product())
    metadata = state.decode(files[export.DIFFUSERS]).metadata
    assert metadata["format"] == "pt"
    assert metadata["lorafinetune.instancePrompt"] == "a photo of | sks dog"
    kohya = state.decode(files[export.KOHYA]).metadata
    assert (kohya["ss_network_dim"], kohya["ss_network_alpha"]) == ("4", "8")
    assert kohya["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert "one" not in json.dumps({**metadata, **kohya}).replace("none", "").split('"')


def test_the_card_is_a_table_and_a_recipe() -> None:
    card = export.card(product(), "\nThe end.\n")
    assert "| instance prompt | a photo of / sks dog |" in card
    assert "pipeline('a photo of | sks dog')" in card
    assert card.endswith("The end.\n")


def test_a_module_without_a_kohya_name_is_refused() -> None:
    with pytest.raises(ValueError, match="conv_in"):
        export.kohya_module("conv_in", 2)
