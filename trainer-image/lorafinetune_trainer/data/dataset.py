"""The training images: found, read, decoded and digested before anything costs GPU time.

Their order is that of their contents, not of their names: a file that is renamed or moved changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.manifest import File
from lorafinetune.contract.runconfig import Dataset as Source
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.data import captions, concepts, pictures, place, preflight
from lorafinetune_trainer.data.buckets import Size
from lorafinetune_trainer.data.captions import Beside
from lorafinetune_trainer.data.place import Place, Read
from lorafinetune_trainer.failure import Failure, invalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DECODED: Final = frozenset(layout.IMAGE_SUFFIXES)
OTHER_IMAGES: Final = frozenset({".heic", ".heif", ".raw", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg", ".jxl"})
"""Images that people have and Pillow does not read."""
MAX_IMAGES: Final = 2000
MAX_IMAGE_BYTES: Final = 128 * 1024 * 1024
PARALLEL: Final = 8
MAX_NOTES: Final = 200
NOT_SEEN: Final = Size(0, 0)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Image:
    """One training image."""

    name: str
    """Of its file, for messages."""
    sha256: str
    """Of its file's bytes."""
    caption: str
    size: Size = NOT_SEEN
    """Upright; nothing where it was not decoded."""
    repeats: int = 1
    """How often an epoch shows it."""
    made: File | None = None
    """The object of the conditioning that it is, where the run has made it."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All images of one source, in the order of their contents."""

    images: tuple[Image, ...]
    digest: str
    """SHA-256 over contents, captions and repeats: what changes the mathematics, and no more."""
    read: Read
    remarks: tuple[str, ...] = ()
    """What is odd about it, for people; only where it was decoded."""

    @property
    def shown(self) -> int:
        """Images that an epoch shows, repeats counted."""
        return sum(image.repeats for image in self.images)

    def decode(self, image: Image, use: Callable[[Picture], _Result]) -> _Result:
        """Return what *use* makes of *image*, upright and RGB. Its bytes must be those that were scanned."""
        body = self.read(image.name, MAX_IMAGE_BYTES)
        if canonical.sha256(body) != image.sha256:
            raise invalid(
                "DatasetChanged", f"{image.name} changed while the data set was being read: leave the data set alone"
            )
        return pictures.decode(image.name, body, use)


def of(images: Iterable[Image], read: Read, remarks: Iterable[str] = ()) -> Dataset:
    """Return the data set of *images*, whose bytes *read* gives by name."""
    ordered = tuple(sorted(images, key=lambda one: (one.sha256, one.caption, one.repeats, one.name)))
    digest = canonical.digest([[one.sha256, one.caption, one.repeats] for one in ordered])
    return Dataset(ordered, digest, read, tuple(remarks))


class Asked(NamedTuple):
    """One source of images, in the words of the spec."""

    field: str
    source: str
    prompt: str
    """The caption of images without one; empty where there is none."""
    remedy: str
    """The field that gives one."""
    missing: str
    """The reason where an image has none."""


def instances(source: Source) -> Asked:
    """Return what the spec says of the images that are learnt from."""
    prompt = (source.instance_prompt or "").strip()
    return Asked("dataset.source", source.source, prompt, "dataset.instancePrompt", "MissingCaption")


def classes(source: Source) -> Asked | None:
    """Return what the spec says of images of the class; None where it names no place that holds some."""
    if source.class_source is None:
        return None
    prompt = (source.class_prompt or "").strip()
    return Asked("dataset.classSource", source.class_source, prompt, "dataset.classPrompt", "MissingClassPrompt")


class _Seen(NamedTuple):
    image: Image
    pixels: str
    """Digest of the decoded picture."""


def scan(
    asked: Asked,
    bucket: Callable[[layout.Location], Bucket],
    *,
    decoded: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Find, read and digest the images of a source; raises Failure (INVALID) for all that the user must mend.

    *bucket* opens a place in the object store. Without *decoded* the images are hashed and not decoded, which is
    enough to compare the data set with one that was scanned before. *note* is told each problem where there are
    several, since a failure's message may not hold them all.
    """
    files = place.enter(asked.field, asked.source, bucket)
    left_out = sorted(name for name in files.sizes if _suffix(name) in DECODED and not concepts.of(name).repeats)
    files = replace(files, sizes={name: size for name, size in files.sizes.items() if concepts.of(name).repeats})
    names = sorted(name for name in files.sizes if _suffix(name) in DECODED)
    foreign = sorted(name for name in files.sizes if _suffix(name) in OTHER_IMAGES)
    if not names and not foreign:
        raise _empty(asked, files, left_out)
    if len(names) > MAX_IMAGES:
        raise invalid(
            "TooManyImages",
            f"{asked.field} holds {len(names)} images, more than the {MAX_IMAGES} allowed: name a place with fewer",
        )
    problems = {
        name: invalid(
            "UndecodableImage", f"{name} is of a kind that cannot be read: convert it to JPEG or PNG, or remove it"
        )
        for name in foreign
    }

    listed: dict[str, str] | None = None
    beside = captions.beside(files)
    try:
        listed = captions.listed(files)
    except Failure as failure:
        problems[captions.METADATA] = failure

    def look(name: str) -> _Seen | Failure:
        try:
            return _look(name, files, beside, listed, asked, decoded=decoded)
        except Failure as failure:
            return failure

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="scan") as pool:
        looks = dict(zip(names, pool.map(look, names), strict=True))
    problems |= {name: found for name, found in looks.items() if isinstance(found, Failure)}
    if problems:
        every = preflight.joined(problems, asked.missing, asked.remedy)
        if len(every) > 1:
            for problem in every[:MAX_NOTES]:
                note(problem.message)
        raise preflight.refuse(every, len(problems))
    seen = [found for found in looks.values() if isinstance(found, _Seen)]
    if not decoded:
        return of((one.image for one in seen), files.read)
    known = {name: words for name, words in (listed or {}).items() if name not in left_out}
    remarks = [*_left_out(left_out), *_remarks(seen, beside, known)]
    return of((one.image for one in seen), files.read, remarks)


def _look(
    name: str, files: Place, beside: Beside, listed: dict[str, str] | None, asked: Asked, *, decoded: bool
) -> _Seen:
    body = files.read(name, MAX_IMAGE_BYTES)
    size, pixels = NOT_SEEN, ""
    if decoded:
        size, pixels = pictures.decode(
            name, body, lambda picture: (Size(*picture.size), canonical.sha256(picture.tobytes()))
        )
    concept = concepts.of(name)
    caption = captions.own(name, files, beside, listed or {}) or concept.words or asked.prompt
    if not caption and listed is not None:  # else it may stand where it could not be read
        file = PurePosixPath(name).with_suffix(".txt")
        raise invalid(asked.missing, f"{name} has no caption: set {asked.remedy}, or put {file} beside the image")
    return _Seen(Image(name, canonical.sha256(body), caption, size, concept.repeats), pixels)


def _left_out(names: list[str]) -> list[str]:
    if not names:
        return []
    where = preflight.some(dict.fromkeys(concepts.folder(name) for name in names))
    return [f"{preflight.counted(len(names), 'image')} left out, for a folder's 0 says that none is shown: {where}"]


def _empty(asked: Asked, files: Place, left_out: list[str]) -> Failure:
    lonely = captions.without_image((), captions.beside(files), {})
    words = f"only {preflight.counted(len(files.sizes), 'other file')}" if files.sizes else "nothing lies there"
    if lonely:
        words = f"there are captions without images: {preflight.some(lonely)}"
    if left_out:
        words = _left_out(left_out)[0]
    return invalid(
        "EmptyDataset",
        f"{asked.field} {asked.source} holds no image ({words}): put JPEG, PNG or WebP files there, "
        "or correct the place",
    )


def _remarks(seen: list[_Seen], files: Beside, listed: dict[str, str]) -> list[str]:
    names = [one.image.name for one in seen]
    found = preflight.duplicates({one.image.name: f"{one.image.size}{one.pixels}" for one in seen})
    if lonely := captions.without_image(names, files, listed):
        found.append(f"captions without an image: {preflight.some(lonely)}")
    if several := captions.several(names, files):
        found.append(f"images with more than one caption file, of which the first counts: {preflight.some(several)}")
    return found


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
