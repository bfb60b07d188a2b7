"""Latents and prompt embeddings: computed once in a run, kept in its bucket, pinned by hash before step 1.

An object's key is the digest of what it was computed from (image, crop, VAE; caption, encoders), so an interrupted
attempt leaves what the next one needs. It is put only where nothing lies: the first to compute it wins, and the
manifest, pinned in the head, holds the hashes of what was put. A resumed attempt loads neither VAE nor text encoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import ConditioningEntry
from lorafinetune.contract.manifest import MAX_FILES, MAX_MANIFEST_BYTES, File, Manifest
from lorafinetune.storage import errors, inventory
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Files, Part
from lorafinetune_trainer.conditioning.samples import Latents, Prompt, Sample, Samples
from lorafinetune_trainer.data.dataset import Dataset, Image
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

PARALLEL: Final = 8
CREATE_ATTEMPTS: Final = 5
_Item = TypeVar("_Item")
_Encoder = Callable[[], Callable[[_Item], "dict[str, torch.Tensor]"]]
"""Loads its models and returns what computes the tensors of one item with them."""

_VERSION: Final = "1"
"""Enters every key: raise it when the computation changes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the objects are computed from, besides images and captions."""

    resolution: int
    flips: bool
    vae_digest: str
    encoders_digest: str

    def latents_key(self, image: Image) -> str:
        """Name of the object that holds the latents of *image*."""
        return canonical.digest(
            ["latents", _VERSION, image.sha256, self.resolution, self.flips, self.vae_digest],
        )

    def prompt_key(self, caption: str) -> str:
        """Name of the object that holds the embeddings of *caption*."""
        return canonical.digest(["prompt", _VERSION, caption, self.encoders_digest])


def prepare(
    bucket: Bucket,
    dataset: Dataset,
    recipe: Recipe,
    *,
    encode_image: _Encoder[Image],
    encode_prompt: _Encoder[str],
    run_uid: str,
    attempt: int,
    before_put: Callable[[], None],
    progress: Callable[[int, int], None],
) -> ConditioningEntry:
    """Compute and put what is not there yet, and put the manifest; return its entry for the head.

    *encode_image* and *encode_prompt* load their models when called, and are called only if something is missing.
    *before_put* raises where nothing may be put any more.
    """
    captions = sorted({image.caption for image in dataset.images})
    total = len(dataset.images) + len(captions)
    if total > MAX_FILES:
        raise invalid("TooManyImages", f"images and captions together are {total}, more than the {MAX_FILES} allowed")
    there = {one.key for one in bucket.walk(layout.CONDITIONING)}
    files: dict[str, File] = {}

    def keep_all(items: Sequence[_Item], key_of: Callable[[_Item], str], load: _Encoder[_Item]) -> None:
        compute = None  # its models leave the memory when this returns
        for item in items:
            key = key_of(item)
            if key not in files and layout.conditioning(key) in there:
                files[key] = _adopt(bucket, key)
            elif key not in files:
                compute = compute or load()
                body = state.encode(compute(item))
                before_put()
                files[key] = _create(bucket, key, body)
            progress(len(files), total)

    keep_all(captions, recipe.prompt_key, encode_prompt)
    keep_all(dataset.images, recipe.latents_key, encode_image)
    manifest = Manifest(
        kind="conditioning",
        run_uid=run_uid,
        attempt=attempt,
        step=0,
        updates=0,
        files=[files[key] for key in sorted(files)],
        # Which image goes with which objects, in the order of the data set.
        scalars={
            f"image.{number}": f"{recipe.latents_key(image)} {recipe.prompt_key(image.caption)}"
            for number, image in enumerate(dataset.images)
        },
    )
    body = canonical.encode(manifest.to_json())
    sha256 = canonical.sha256(body)
    key = layout.conditioning(f"{sha256}.json")
    before_put()
    bucket.put(key, body)
    return ConditioningEntry(manifest=key, manifest_sha256=sha256)


def load(bucket: Bucket, entry: ConditioningEntry) -> Samples:
    """Return the pinned samples in the order of the data set; raises NotVerified if anything is missing or changed."""
    body, _ = bucket.get(entry.manifest, limit=MAX_MANIFEST_BYTES)
    if canonical.sha256(body) != entry.manifest_sha256:
        raise errors.NotVerified(f"{bucket.uri(entry.manifest)} is not what the head names")
    manifest = Manifest.model_validate_json(body)

    def read(file: File) -> Mapping[str, torch.Tensor]:
        return state.decode(
            inventory.read_file(bucket, layout.CONDITIONING, name=file.name, size=file.size, sha256=file.sha256)
        ).tensors

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="load") as pool:
        objects = dict(zip((file.name for file in manifest.files), pool.map(read, manifest.files), strict=True))
    samples = []
    for number in range(len(manifest.scalars)):
        latents_key, prompt_key = str(manifest.scalars[f"image.{number}"]).split()
        latents, prompt = objects[latents_key], objects[prompt_key]
        flipped = (
            (Latents(latents["flipped_mean"], latents["flipped_std"], latents["flipped_time_ids"]),)
            if "flipped_mean" in latents
            else ()
        )
        samples.append(
            Sample(
                name=str(number),
                cuts=(Latents(latents["mean"], latents["std"], latents["time_ids"]),),
                flipped=flipped,
                captions=("",),
                prompts=(Prompt(prompt["embeddings"], prompt["pooled"]),),
            )
        )
    return Samples(tuple(samples))


def _create(bucket: Bucket, key: str, body: bytes) -> File:
    """Put an object where nothing lies; where something does, or may, that is what counts."""
    for again in reversed(range(CREATE_ATTEMPTS)):
        try:
            bucket.create(layout.conditioning(key), body)
        except errors.Conflict:
            return _adopt(bucket, key)  # an earlier attempt put it, or we did and the answer was lost
        except errors.Unreachable:
            if not again:
                raise
            time.sleep(0.5)
        else:
            return File(name=key, size=len(body), sha256=canonical.sha256(body))
    raise AssertionError("the last attempt returns or raises")


def _adopt(bucket: Bucket, key: str) -> File:
    """Return an object as it lies in the bucket."""
    body = bucket.get(layout.conditioning(key)).body
    try:
        state.decode(body)
    except ValueError as error:
        raise errors.NotVerified(f"{bucket.uri(layout.conditioning(key))} is damaged ({error}): delete it") from error
    return File(name=key, size=len(body), sha256=canonical.sha256(body))


def crop(picture: Picture, resolution: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Scale the shorter edge of *picture* to *resolution* pixels and cut the square out of the middle.

    Returns the pixels, (resolution, resolution, 3) in 0 ... 255, and (top, left) of the cut as it is and mirrored.
    """
    from PIL import Image as pillow  # noqa: N813

    scale = resolution / min(picture.size)
    width, height = (max(resolution, round(edge * scale)) for edge in picture.size)
    scaled = picture.resize((width, height), pillow.Resampling.LANCZOS)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    cut = scaled.crop((left, top, left + resolution, top + resolution))
    return np.asarray(cut, dtype=np.uint8), (top, left), (top, width - resolution - left)


def image_encoder(
    dataset: Dataset, part: Part, recipe: Recipe, device: torch.device
) -> Callable[[Image], dict[str, torch.Tensor]]:
    """Load the VAE, in float32, and return the function that computes the latents of an image.

    One image at a time: a batch rounds differently from single images.
    """
    import torch

    vae = parts.load_vae(part, torch.float32)
    vae.to(device)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def posterior(name: str, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.from_numpy(np.array(pixels)).to(device, torch.float32).permute(2, 0, 1)
        found = vae.encode((values / 127.5 - 1.0).unsqueeze(0)).latent_dist
        mean, std = ((found.mean - shift) * scale)[0].cpu(), (found.std * scale)[0].cpu()
        if not (bool(mean.isfinite().all()) and bool(std.isfinite().all())):
            raise invalid(
                "NaNLatents",
                f"the VAE makes NaN of {name}: its weights overflow; name a fixed one in baseModel.vae, "
                "e.g. hf://madebyollin/sdxl-vae-fp16-fix",
            )
        return mean.contiguous(), std.contiguous()

    def encode(image: Image) -> dict[str, torch.Tensor]:
        picture = dataset.picture(image)
        pixels, place, mirrored = crop(picture, recipe.resolution)
        size = (picture.height, picture.width)
        target = (recipe.resolution, recipe.resolution)
        mean, std = posterior(image.name, pixels)
        found = {"mean": mean, "std": std, "time_ids": torch.tensor([*size, *place, *target], dtype=torch.float32)}
        if recipe.flips:
            found["flipped_mean"], found["flipped_std"] = posterior(image.name, pixels[:, ::-1])
            found["flipped_time_ids"] = torch.tensor([*size, *mirrored, *target], dtype=torch.float32)
        return found

    return encode


def prompt_encoder(
    files: Files, device: torch.device, warn: Callable[[str], None]
) -> Callable[[str], dict[str, torch.Tensor]]:
    """Load both text encoders, in float32, and return the function that computes the embeddings of a prompt."""
    import torch

    pairs = parts.load_text_encoders(files, torch.float32)
    for one in pairs:
        one.model.to(device)

    @torch.no_grad()
    def encode(caption: str) -> dict[str, torch.Tensor]:
        widths, pooled = [], None
        for one in pairs:
            tokenizer, encoder = one.tokenizer, one.model
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            if len(tokenizer(caption).input_ids) > length:
                warn(f"only the first {length} tokens of this caption are used: {caption[:80]}...")
            ids = tokenizer(
                caption, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            answer = encoder(ids.to(device), output_hidden_states=True)
            widths.append(answer.hidden_states[-2][0].cpu())
            pooled = answer[0]
        assert pooled is not None
        embeddings = torch.cat(widths, dim=-1)
        if not bool(embeddings.isfinite().all()):
            raise invalid("WrongBaseModel", f"the text encoders make NaN of the caption {caption[:80]!r}")
        return {"embeddings": embeddings.contiguous(), "pooled": pooled[0].cpu().contiguous()}

    return encode
