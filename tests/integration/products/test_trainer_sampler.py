"""Our denoising loop against diffusers' own pipeline, on the tiny SDXL: the same noise becomes the same latents."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainer.process import in_preloaded

EDGE, STEPS, SEED = 64, 6, 3


def _ours(pipeline: Any, guidance: float, changes: dict[str, Any], texts: tuple[str, str]) -> Any:
    import torch

    from lorafinetune_trainer.conditioning.samples import Prompt
    from lorafinetune_trainer.sampling import sampler

    def predict(noisy: Any, timesteps: Any, embeddings: Any, pooled: Any, time_ids: Any) -> Any:
        added = {"text_embeds": pooled, "time_ids": time_ids}
        answer = pipeline.unet(noisy, timesteps, encoder_hidden_states=embeddings, added_cond_kwargs=added)
        return answer.sample

    with torch.no_grad():
        positive, _, pooled, _ = pipeline.encode_prompt(texts[0], do_classifier_free_guidance=False)
        negative, _, negative_pooled, _ = pipeline.encode_prompt(texts[1], do_classifier_free_guidance=False)
    return sampler.make_latents(
        predict,
        sampler.make_schedule(dict(pipeline.scheduler.config), **changes),
        Prompt(positive[0], pooled[0]),
        Prompt(negative[0], negative_pooled[0]),
        sampler.Recipe(EDGE, STEPS, guidance, SEED),
        number=1,
        shape=(4, 32, 32),
        device=torch.device("cpu"),
    )


def _compare(model: str, guidance: float, changes: dict[str, Any]) -> dict[str, Any]:
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    from lorafinetune_trainer.sampling.decoder import Decoder
    from lorafinetune_trainer.training import order

    pipeline = StableDiffusionXLPipeline.from_pretrained(model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    texts = ("a photo of a dog", "a cup in the style of a cat")
    before = torch.get_rng_state()
    ours = _ours(pipeline, guidance, changes, texts)
    again = _ours(pipeline, guidance, changes, texts)
    untouched = bool(torch.equal(before, torch.get_rng_state()))
    words = {"prediction": "prediction_type", "zero_snr": "rescale_betas_zero_snr"}
    theirs = {words[name]: value for name, value in changes.items()}
    if changes.get("zero_snr"):
        theirs["timestep_spacing"] = "trailing"
    pipeline.scheduler = EulerDiscreteScheduler.from_config({**pipeline.scheduler.config, **theirs})
    noise = torch.from_numpy(order.picture(SEED, 1, (1, 4, 32, 32))).float()
    wanted = {"height": EDGE, "width": EDGE, "num_inference_steps": STEPS, "guidance_scale": guidance}
    latents = pipeline(texts[0], negative_prompt=texts[1], latents=noise, output_type="latent", **wanted).images[0]
    picture = pipeline(texts[0], negative_prompt=texts[1], latents=noise, output_type="np", **wanted).images[0]
    decoder = Decoder(pipeline.vae, torch.device("cpu"))
    body, body_again = decoder.png(ours), decoder.png(again)
    import io

    import numpy as np

    from lorafinetune_trainer.sampling import decoder as decoders
    from lorafinetune_trainer.sampling import sampler

    both, sampler._passes = (
        sampler._passes,
        lambda prompts, device: [one for prompt in prompts for one in both([prompt], device)],
    )
    apart = _ours(pipeline, guidance, changes, texts)
    sampler._passes = both
    decoders.TILED_FROM, decoders.TILE = EDGE, EDGE // 2
    tiled = decoder.png(ours)
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(body)), dtype=np.float32) / 255
    in_tiles = np.asarray(Image.open(io.BytesIO(tiled)), dtype=np.float32) / 255
    return {
        "apart": float((ours - apart).abs().max() / latents.abs().max()),
        "tiles": float(np.abs(in_tiles - pixels).mean()),
        "tiled": pipeline.vae.use_tiling,
        "distance": float((ours - latents).abs().max() / latents.abs().max()),
        "picture": float(np.abs(pixels - picture).max()),
        "spread": float(latents.std()),
        "equal": bool(torch.equal(ours, again)),
        "untouched": untouched,
        "sha": hashlib.sha256(body).hexdigest(),
        "sha again": hashlib.sha256(body_again).hexdigest(),
        "size": pixels.shape,
    }


@pytest.mark.parametrize(
    ("guidance", "changes"),
    [(5.0, {}), (1.0, {}), (3.0, {"prediction": "v_prediction", "zero_snr": True})],
    ids=["guided", "unguided", "v-prediction with zero-terminal SNR"],
)
def test_latents_and_pictures_are_those_of_the_pipeline(
    tiny_model: Path, guidance: float, changes: dict[str, Any]
) -> None:
    found = in_preloaded(_compare, str(tiny_model), guidance, changes)
    assert found["spread"] > 0.1
    assert found["distance"] < 1e-4
    assert found["picture"] < 0.01  # one of 255 levels and a little
    assert found["size"] == (EDGE, EDGE, 3)
    assert found["apart"] < 1e-4, "prompts of different lengths go through the UNet one by one"
    assert found["tiled"]
    assert 0 < found["tiles"] < 0.1
    assert found["equal"]
    assert found["sha"] == found["sha again"]
    assert found["untouched"], "the global generator was drawn from"
