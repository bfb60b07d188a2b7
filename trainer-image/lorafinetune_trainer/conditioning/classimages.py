"""Class images that the run makes itself, with the base model as it came: once per image, kept in the run's bucket.

An image's key is the digest of what it is made from, and it is put only where nothing lies. So an interrupted attempt
leaves what the next one needs, and all attempts see the same bytes whatever GPU made them. They are made before the
conditioning is pinned; an attempt that resumes needs neither them nor this module.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.manifest import File
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Files, Part
from lorafinetune_trainer.conditioning import prompts
from lorafinetune_trainer.data.buckets import Size
from lorafinetune_trainer.data.dataset import Dataset, Image
from lorafinetune_trainer.sampling import sampler
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch

STEPS: Final = 25
GUIDANCE: Final = 5.0
CREATE_ATTEMPTS: Final = 5
INTERVAL: Final = 1.0
"""Seconds between two events of progress."""
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_VERSION: Final = "1"
"""Enters every key: raise it when the computation changes."""

Paint = Callable[[int], bytes]
"""Returns image number 0, 1 ... as PNG."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What class images are made from."""

    prompt: str
    count: int
    edge: int
    seed: int
    digests: tuple[str, ...]
    """Of the base model's parts that take part, the first of what is trained."""

    def key(self, number: int) -> str:
        """Name of the object that holds image *number*."""
        recipe = [self.prompt, self.edge, STEPS, GUIDANCE, self.seed, *self.digests]
        return canonical.digest(["class image", _VERSION, *recipe, number])

    @property
    def digest(self) -> str:
        """Of the images as a data set: of what they are made from, so that none need be there."""
        known = replace(self, digests=self.digests[:1])  # a resume has what is trained, and no encoders
        return canonical.digest([known.key(number) for number in range(self.count)])


def origin(config: RunConfig, digests: Sequence[str]) -> Origin:
    """Return what the class images of *config* are made from."""
    training = config.training
    count, prompt = config.dataset.makes_class_images, config.dataset.class_prompt or ""
    return Origin(prompt, count, training.resolution, training.seed, tuple(digests))


def digest(config: RunConfig, base_model_digest: str) -> str | None:
    """Return the digest of the class images as a data set; None where the run makes none."""
    return origin(config, [base_model_digest]).digest if config.dataset.makes_class_images else None


def make(wires: Wires, files: Files, vae: Part, device: torch.device, *, digests: Sequence[str]) -> Dataset:
    """Make the class images that are not there yet and return all of them, with the class prompt as caption.

    *files* holds the whole base model, *digests* those of its parts, the first that of what is trained.
    """
    one = origin(wires.config, digests)
    wires.enter(Phase.GENERATING)
    return keep(wires, one, lambda: painter(wires.config, one, files, vae, device))


def keep(wires: Wires, one: Origin, load: Callable[[], Paint]) -> Dataset:
    """Take the images that are there, make the others with what *load* returns; see :func:`make`."""
    started = told = time.monotonic()
    there = {item.key for item in wires.bucket.walk(layout.CONDITIONING)}
    images: list[Image] = []
    paint: Paint | None = None
    made = 0
    for number in range(one.count):
        key = layout.conditioning(one.key(number))
        body = wires.bucket.get(key).body if key in there else b""
        if not _is_whole(body):
            paint = paint or load()
            body = paint(number)
            wires.checkpoints.before_put()
            body = _put_first(wires.bucket, key, body, damaged=key in there)
            made += 1
        file = File(name=one.key(number), size=len(body), sha256=canonical.sha256(body))
        size = Size(one.edge, one.edge)
        images.append(Image(f"class-{number:05}.png", file.sha256, one.prompt, size, made=file))
        if (now := time.monotonic()) - told >= INTERVAL or number + 1 == one.count:
            told = now
            _tell(wires, number + 1, one.count)
    seconds = time.monotonic() - started
    found = f", {one.count - made} were there" if made < one.count else ""
    _tell(wires, one.count, one.count, f"{made} class images made in {seconds:.0f} s{found}")

    numbers = {image.name: number for number, image in enumerate(images)}

    def read(name: str, most: int) -> bytes:
        return wires.bucket.get(layout.conditioning(one.key(numbers[name])), limit=most).body

    return Dataset(tuple(images), one.digest, read)


def painter(config: RunConfig, one: Origin, files: Files, vae: Part, device: torch.device) -> Paint:
    """Load the base model and return what makes an image with it. The text encoders leave the memory at once."""
    import torch

    from lorafinetune_trainer.sampling.decoder import Decoder
    from lorafinetune_trainer.training import model

    dtype = parts.dtype(config.training.precision)
    (prompt,) = prompts.kept(prompts.encoder(prompts.load(files, device))((one.prompt,)))
    decoder = Decoder(parts.load_vae(vae, torch.float32), device)
    unet = parts.load_unet(files, dtype).eval().to(device)
    schedule = sampler.make_schedule(parts.scheduler_config(files))
    recipe = sampler.Recipe(one.edge, STEPS, GUIDANCE, one.seed)

    def paint(number: int) -> bytes:
        latents = sampler.make_latents(
            model.asking(unet, dtype),
            schedule,
            prompt,
            sampler.wordless(prompt),
            recipe,
            number=number,
            shape=decoder.shape(one.edge),
            device=device,
        )
        return decoder.png(latents)

    return paint


def _is_whole(body: bytes) -> bool:
    """Whether *body* is a PNG to its end, and each of its chunks is what its checksum says."""
    place = len(_PNG)
    name = b""
    while body.startswith(_PNG) and place + 12 <= len(body):
        length = int.from_bytes(body[place : place + 4])
        end = place + 8 + length
        name = body[place + 4 : place + 8]
        if int.from_bytes(body[end : end + 4]) != zlib.crc32(body[place + 4 : end]):
            return False
        place = end + 4
    return name == b"IEND" and place == len(body)


def _put_first(bucket: Bucket, key: str, body: bytes, *, damaged: bool) -> bytes:
    """Put *body* where nothing lies, or what is *damaged*; return what lies there afterwards."""
    if damaged:  # nothing is pinned yet, and earlier attempts only create
        bucket.put(key, body)
        return body
    for again in reversed(range(CREATE_ATTEMPTS)):
        try:
            bucket.create(key, body)
        except errors.Conflict:
            return bucket.get(key).body  # an earlier attempt put it, or we did and the answer was lost
        except errors.Unreachable:
            if not again:
                raise
            time.sleep(0.5)
        else:
            return body
    raise AssertionError("the last attempt returns or raises")


def _tell(wires: Wires, done: int, total: int, message: str = "") -> None:
    step = wires.ending.standing.step
    wires.reporter.tell(EventType.PROGRESS, step, phase=Phase.GENERATING, done=done, total=total, message=message)
