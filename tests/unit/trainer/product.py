"""What the tests of the product share: a finished LoRA's facts, the real SDXL's adapters, and small weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer.product.product import Product, Shown

if TYPE_CHECKING:
    import torch

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
ENCODERS: dict[str, dict[str, int]] = {
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
}
"""What its text encoders' configs say besides the defaults."""
MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def real_sdxl(part: str) -> Any:
    """A part of the real SDXL without its weights."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel(**SDXL)
        kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        return kind(CLIPTextConfig(**ENCODERS[part]))


def adapted(part: str, targets: str, *, dora: bool = False) -> dict[str, torch.Tensor]:
    """The tensors, of the meta device, that the trainer puts into *part*, by our names."""
    import torch

    from lorafinetune_trainer.training import model

    training = product(lora={"targets": targets, "dora": dora}).config.training
    whole = real_sdxl(part)
    with torch.device("meta"):
        if part == "unet":
            found = model.add_adapter(whole, training, initialise=False)
        else:
            found = model.add_encoder_adapter(whole, part, training, initialise=False)
    return {name: one.detach() for name, one in found.items()}


def product(*, name: str = "one", lora: dict[str, Any] | None = None, source: str = "", **changes: Any) -> Product:
    """A product; *changes* with names of its fields change those, others the training."""
    own = {key: changes.pop(key) for key in list(changes) if key in Product.__dataclass_fields__}
    own |= {"captions": tuple(Shown(*one) for one in own["captions"])} if "captions" in own else {}
    config = RunConfig.model_validate(
        {
            "run": {"name": name, "uid": f"uid-of-{name}"},
            "baseModel": {"source": source or f"/somewhere/{name}"},
            "dataset": {"source": "/photos", "instancePrompt": "a photo of | sks dog"},
            "training": {"lora": {"rank": 4, "alpha": 8, **(lora or {})}, **changes},
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
    return Product(config=config, plan=plan, **{"images": 12, "steps": 500, "updates": 499, **own})


def weights(**modules: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Random matrices of rank 4 for modules of the UNet, given as outputs and inputs; by default one query."""
    import torch

    found = {}
    chance = torch.Generator().manual_seed(3)
    for module, (outputs, inputs) in (modules or {MODULE: (6, 8)}).items():
        found[f"unet.{module}.lora_A.weight"] = torch.randn(4, inputs, generator=chance)
        found[f"unet.{module}.lora_B.weight"] = torch.randn(outputs, 4, generator=chance)
    return found
