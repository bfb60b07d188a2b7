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

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import ConditioningEntry
from lorafinetune.contract.manifest import MAX_FILES, MAX_MANIFEST_BYTES, File, Manifest
from lorafinetune.storage import errors, inventory
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.conditioning.samples import Latents, Prompt, Sample, Samples
from lorafinetune_trainer.data.dataset import Dataset, Image
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch

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
