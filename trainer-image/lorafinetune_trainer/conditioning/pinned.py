"""Latents and prompt embeddings: computed once in a run, kept in its bucket, pinned by hash before step 1.

An object's key is the digest of what it was computed from (image, cuts, VAE; caption, encoders), so an interrupted
attempt leaves what the next one needs. It is put only where nothing lies: the first to compute it wins, and the
manifest, pinned in the head, holds the hashes of what was put. A resumed attempt loads neither VAE nor text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import ConditioningEntry
from lorafinetune.contract.manifest import MAX_FILES, MAX_MANIFEST_BYTES, File, Manifest
from lorafinetune.storage import errors, inventory
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.conditioning import latents, prompts
from lorafinetune_trainer.conditioning.index import Index, Item, Said
from lorafinetune_trainer.conditioning.objects import Compute, Objects
from lorafinetune_trainer.conditioning.recipe import Recipe
from lorafinetune_trainer.conditioning.samples import Sample, Samples
from lorafinetune_trainer.data.dataset import Dataset, Image
from lorafinetune_trainer.failure import Failure, invalid
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch

PARALLEL: Final = 8
_INDEX: Final = "index"


def prepare(
    bucket: Bucket,
    dataset: Dataset,
    recipe: Recipe,
    *,
    classes: Dataset | None = None,
    validation: Sequence[str] = (),
    encode_cuts: Callable[[], Compute[latents.Cuts]],
    encode_prompts: Callable[[], Compute[tuple[str, ...]]],
    run_uid: str,
    attempt: int,
    before_put: Callable[[], None],
    progress: Callable[[int, int], None],
) -> ConditioningEntry:
    """Compute and put what is not there yet, and put the manifest; return its entry for the head.

    *encode_cuts* and *encode_prompts* load their models when called, and are called only if something is missing.
    *before_put* raises where nothing may be put any more. Where the text encoders are trained no prompt is kept.
    """
    sources = [one for one in (dataset, classes) if one is not None]
    kept = not recipe.training.lora.text_encoder
    captions = sorted({image.caption for source in sources for image in source.images})
    orders = [recipe.orders(caption) for caption in captions] if kept else []
    empty = ("",) if kept and recipe.training.captions.dropout > 0 else None
    said = [*orders, *([empty] if empty else []), *((words,) for words in validation if kept)]
    by_key = {recipe.prompts_key(one): one for one in said}
    pictures = {
        recipe.latents_key(image): (source, image)
        for source in sources
        for image in sorted(source.images, key=lambda one: one.name)
    }
    total = len(by_key) + len(pictures)
    if total >= MAX_FILES:
        raise invalid("TooManyImages", f"images and captions together are {total}, more than the {MAX_FILES} allowed")

    objects = Objects(bucket, before_put=before_put, progress=lambda done: progress(done, total))
    objects.keep(by_key, ready=lambda one: one, load=encode_prompts)
    objects.keep(pictures, ready=lambda one: latents.cuts(*one, recipe.frame(one[1])), load=encode_cuts)

    def item(image: Image) -> Item:
        orders = recipe.orders(image.caption)
        return Item(
            name=image.name,
            latents=recipe.latents_key(image),
            prompts=recipe.prompts_key(orders) if kept else None,
            captions=list(orders),
            repeats=image.repeats,
            made=image.made,
        )

    index = Index(
        instances=[item(image) for image in dataset.images],
        classes=[item(image) for image in classes.images] if classes is not None else [],
        empty=Said(words="", prompts=recipe.prompts_key(empty)) if empty else None,
        validation=[Said(words=words, prompts=recipe.prompts_key((words,))) for words in validation if kept],
    )
    body = canonical.encode(index.model_dump(mode="json", by_alias=True, exclude_none=True))
    name = canonical.sha256(body)
    files = {**objects.files, name: objects.put(name, body)}
    return _put_manifest(bucket, files, name, run_uid=run_uid, attempt=attempt, before_put=before_put)


def _put_manifest(
    bucket: Bucket,
    files: Mapping[str, File],
    index: str,
    *,
    run_uid: str,
    attempt: int,
    before_put: Callable[[], None],
) -> ConditioningEntry:
    manifest = Manifest(
        kind="conditioning",
        run_uid=run_uid,
        attempt=attempt,
        step=0,
        updates=0,
        files=[files[name] for name in sorted(files)],
        scalars={_INDEX: index},
    )
    body = canonical.encode(manifest.to_json())
    sha256 = canonical.sha256(body)
    key = layout.conditioning(f"{sha256}.json")
    before_put()
    bucket.put(key, body)
    return ConditioningEntry(manifest=key, manifest_sha256=sha256)


def load(bucket: Bucket, entry: ConditioningEntry) -> Samples:
    """Return the pinned samples in the order of the data set; raises NotVerified if anything is missing or changed."""
    index, files = _contents(bucket, entry)

    def decode(file: File) -> Mapping[str, torch.Tensor]:
        return state.decode(_read(bucket, file)).tensors

    names = [file.name for file in files]
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="load") as pool:
        objects = dict(zip(names, pool.map(decode, files), strict=True))
    shown = {name: prompts.kept(tensors) for name, tensors in objects.items()}

    def sample(item: Item) -> Sample:
        straight, mirrored = latents.kept(objects[item.latents])
        said = shown[item.prompts] if item.prompts is not None else ()
        return Sample(item.name, straight, mirrored, tuple(item.captions), said, item.repeats)

    return Samples(
        instances=tuple(sample(item) for item in index.instances),
        classes=tuple(sample(item) for item in index.classes),
        empty=shown[index.empty.prompts][0] if index.empty is not None else None,
        validation=tuple(shown[one.prompts][0] for one in index.validation),
        validation_words=tuple(one.words for one in index.validation),
    )


def contents(bucket: Bucket, entry: ConditioningEntry) -> Index:
    """Return the table of contents alone; raises NotVerified where it is missing or changed."""
    return _contents(bucket, entry)[0]


def lost(error: Exception) -> Failure:
    """Return the failure of a run whose conditioning cannot be read."""
    return Failure(
        ExitCode.FAILED,
        "ConditioningLost",
        f"the run's pinned latents are damaged, so it cannot go on as it began: create it anew ({error})",
    )


def made(bucket: Bucket, entry: ConditioningEntry, note: Callable[[str], None]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each class image that the run made; one that cannot be had is told to *note*."""
    for item in _contents(bucket, entry)[0].classes:
        if item.made is not None:
            try:
                yield item.name, _read(bucket, item.made)
            except errors.NotVerified as error:
                note(f"{item.name} cannot be kept: {error}")


def _contents(bucket: Bucket, entry: ConditioningEntry) -> tuple[Index, list[File]]:
    """Return the table of contents, and the files of what it names; raises NotVerified if either is not the pinned."""
    body, _ = bucket.get(entry.manifest, limit=MAX_MANIFEST_BYTES)
    if canonical.sha256(body) != entry.manifest_sha256:
        raise errors.NotVerified(f"{bucket.uri(entry.manifest)} is not what the head names")
    manifest = inventory.parse_manifest(body, bucket.uri(entry.manifest))
    name = str(manifest.scalars[_INDEX])
    (index,) = (file for file in manifest.files if file.name == name)
    return Index.model_validate_json(_read(bucket, index)), [file for file in manifest.files if file is not index]


def _read(bucket: Bucket, file: File) -> bytes:
    return inventory.read_file(bucket, layout.CONDITIONING, name=file.name, size=file.size, sha256=file.sha256)
