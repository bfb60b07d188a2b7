"""Headers of the LoRA files: what A1111, ComfyUI, Civitai and people look for.

Functions of config, data set and base model only, so that two attempts write the same bytes: no name of the run, no
time, no place. Folders are named only where they are concepts (``3_sks dog``), and without those around them.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Final

from lorafinetune.contract.training import Prediction
from lorafinetune_trainer.product.product import Product

MAX_TAGS: Final = 500
"""Different tags that a header tells of, the most frequent ones."""
MAX_TAG: Final = 200
MAX_FOLDERS: Final = 100
"""Folders that a header tells of, those with the most images."""
_PLAIN: Final = "img"
"""Tools expect the name of a folder in front of the tags: that of images whose folder says nothing."""


def ours(product: Product) -> dict[str, str]:
    """Return the header of both files."""
    training, plan, dataset = product.config.training, product.plan, product.config.dataset
    lora = training.lora
    found = {
        "format": "pt",
        "lorafinetune.baseModelDigest": plan.base_model_digest,
        "lorafinetune.configDigest": plan.config_digest,
        "lorafinetune.datasetDigest": plan.dataset_digest,
        "lorafinetune.initialLoraDigest": plan.initial_lora_digest or "",
        "lorafinetune.images": str(product.images),
        "lorafinetune.instancePrompt": dataset.instance_prompt or "",
        "lorafinetune.rank": str(product.rank),
        "lorafinetune.alpha": f"{product.alpha:g}",
        "lorafinetune.targets": str(lora.targets),
        "lorafinetune.dora": _word(lora.dora),
        "lorafinetune.rsLora": _word(lora.rs_lora),
        "lorafinetune.textEncoder": _word(lora.text_encoder),
        "lorafinetune.prediction": product.prediction,
        "lorafinetune.zeroTerminalSnr": _word(product.zero_terminal_snr),
        "lorafinetune.resolution": str(training.resolution),
        "lorafinetune.steps": str(product.steps),
        "lorafinetune.seed": str(training.seed),
    }
    return {name: value for name, value in found.items() if value}


def kohya(product: Product) -> dict[str, str]:
    """Return the header of the kohya file: ours, and what kohya's scripts and Stability's ModelSpec call the same.

    What the first attempt's memory decided (its micro-batch, for one) is no part of it.
    """
    training = product.config.training
    trigger = ", ".join(product.triggers) or None
    velocity = product.prediction == Prediction.V_PREDICTION
    found: dict[str, object] = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "modelspec.resolution": f"{training.resolution}x{training.resolution}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": trigger or "SDXL LoRA",
        "modelspec.trigger_phrase": trigger,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_caption_dropout_rate": training.captions.dropout,
        "ss_dataset_dirs": _json(folders(product)),
        "ss_enable_bucket": training.aspect_buckets,
        "ss_flip_aug": training.random_flip,
        "ss_keep_tokens": training.captions.keep_tokens,
        "ss_learning_rate": training.peak_rate,
        "ss_lr_scheduler": training.schedule,
        "ss_lr_warmup_steps": training.warmup_steps,
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_max_train_steps": product.steps,
        "ss_min_snr_gamma": training.min_snr_gamma,
        "ss_mixed_precision": training.precision,
        "ss_network_alpha": f"{product.written_alpha:g}",
        "ss_network_args": _json({"dora_wd": "True", "wd_on_output": "True"}) if training.lora.dora else None,
        "ss_network_dim": product.rank,
        "ss_network_module": "networks.lora",
        "ss_noise_offset": training.noise_offset or None,
        "ss_num_reg_images": product.class_images,
        "ss_num_train_images": sum(one.repeats for one in product.captions) or product.images,
        "ss_optimizer": training.optimizer,
        "ss_prior_loss_weight": training.prior_loss_weight if product.class_images else None,
        "ss_random_crop": training.random_crop,
        "ss_resolution": f"({training.resolution}, {training.resolution})",
        "ss_seed": training.seed,
        "ss_shuffle_caption": training.captions.shuffle,
        "ss_steps": product.steps,
        "ss_tag_frequency": _json(tags(product)) if product.captions else None,
        "ss_total_batch_size": product.images_per_step,
        "ss_unet_lr": training.peak_rate,
        "ss_v2": False,
        "ss_v_parameterization": velocity,
        "ss_zero_terminal_snr": product.zero_terminal_snr,
    }
    if training.lora.text_encoder:
        found["ss_text_encoder_lr"] = training.text_encoder_learning_rate or training.peak_rate
    return ours(product) | {name: str(value) for name, value in found.items() if value is not None}


def folders(product: Product) -> dict[str, dict[str, int]]:
    """Return of each concept's folder how many images it has, and how often an epoch shows each."""
    if not product.captions:
        return {_PLAIN: {"n_repeats": 1, "img_count": product.images}}
    counted = Counter((one.folder or _PLAIN, one.repeats) for one in product.captions)
    most = sorted(counted.items(), key=lambda one: (-one[1], one[0]))[:MAX_FOLDERS]
    return {folder: {"n_repeats": repeats, "img_count": images} for (folder, repeats), images in sorted(most)}


def tags(product: Product) -> dict[str, dict[str, int]]:
    """Return of each folder how many images have each comma-separated part of a caption, the most frequent first.

    Each image counts once, whatever its folder's repeats are: who reads it has those in the folders' own entries.
    """
    told, counted = folders(product), Counter[tuple[str, str]]()
    for one in product.captions:
        if (folder := one.folder or _PLAIN) in told:
            counted.update((folder, part.strip()[:MAX_TAG]) for part in one.caption.split(",") if part.strip())
    found: dict[str, dict[str, int]] = {folder: {} for folder in told}
    for (folder, tag), times in sorted(counted.items(), key=lambda one: (-one[1], one[0]))[:MAX_TAGS]:
        found[folder][tag] = times
    return found


def _word(value: bool) -> str:
    return str(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
