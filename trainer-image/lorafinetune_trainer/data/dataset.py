"""The training images: found, read, decoded and digested before anything costs GPU time.

An image's caption is its ``.txt`` or ``.caption`` file, else its line in ``metadata.jsonl``, else the instance prompt.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.runconfig import Dataset as Source
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import invalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DECODED: Final = frozenset(layout.IMAGE_SUFFIXES)
OTHER_IMAGES: Final = frozenset({".heic", ".heif", ".raw", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg", ".jxl"})
"""Images that people have and Pillow does not read."""
CAPTIONS: Final = (".txt", ".caption")
METADATA: Final = "metadata.jsonl"
MAX_IMAGES: Final = 2000
MAX_IMAGE_BYTES: Final = 128 * 1024 * 1024
MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
MAX_CAPTION: Final = 4096
PARALLEL: Final = 8

Read = Callable[[str, int], bytes]
"""Returns the bytes of one file of the data set, by name, if there are at most so many."""


@dataclass(frozen=True, slots=True)
class Image:
    """One training image."""

    name: str
    sha256: str
    caption: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """All training images, sorted by name."""

    images: tuple[Image, ...]
    digest: str
    """SHA-256 over names, contents and captions."""
    read: Read

    def picture(self, image: Image) -> Picture:
        """Return *image* decoded: upright, RGB. Its bytes must be those that were scanned."""
        body = self.read(image.name, MAX_IMAGE_BYTES)
        if canonical.sha256(body) != image.sha256:
            raise invalid("DatasetChanged", f"{image.name} changed while it was being read: leave the data set alone")
        return decode(image.name, body)


def scan(source: Source, bucket: Callable[[layout.Location], Bucket], *, decoded: bool = True) -> Dataset:
    """Find, read and digest the images of *source*; raises Failure (INVALID) for what the user must mend.

    *bucket* opens a place in the object store. Without *decoded* the images are hashed and not decoded, which is
    enough to compare the data set with one that was scanned before.
    """
    sizes, read = _open(source.source, bucket)
    names = sorted(name for name in sizes if _suffix(name) in DECODED)
    if foreign := sorted(name for name in sizes if _suffix(name) in OTHER_IMAGES):
        raise invalid(
            "UndecodableImage",
            f"{foreign[0]} is of a kind that cannot be read: convert it to JPEG or PNG, or remove it",
        )
    if not names:
        found = f"{len(sizes)} other files lie there" if sizes else "nothing lies there"
        raise invalid(
            "EmptyDataset",
            f"dataset.source {source.source} holds no image ({found}): put JPEG, PNG or WebP files there, "
            "or correct the place",
        )
    if len(names) > MAX_IMAGES:
        raise invalid("TooManyImages", f"dataset.source holds {len(names)} images, more than the {MAX_IMAGES} allowed")
    captions = _captions(names, sizes, read, source)

    def look(name: str) -> str:
        body = read(name, MAX_IMAGE_BYTES)
        if decoded:
            decode(name, body)
        return canonical.sha256(body)

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="scan") as pool:
        hashes = list(pool.map(look, names))
    images = tuple(Image(name, sha256, captions[name]) for name, sha256 in zip(names, hashes, strict=True))
    return Dataset(images, canonical.digest([[one.name, one.sha256, one.caption] for one in images]), read)


def decode(name: str, body: bytes) -> Picture:
    """Return the image upright (as its EXIF says) and in RGB, on white where it is transparent."""
    from PIL import Image as pillow  # noqa: N813
    from PIL import ImageOps

    try:
        with pillow.open(io.BytesIO(body)) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened) or opened
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                white = pillow.new("RGBA", layer.size, (255, 255, 255, 255))
                return pillow.alpha_composite(white, layer).convert("RGB")
            return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise invalid(
            "UndecodableImage",
            f"{name} cannot be read as an image: replace or remove it ({type(error).__name__}: {error})",
        ) from error


def _open(source: str, bucket: Callable[[layout.Location], Bucket]) -> tuple[Mapping[str, int], Read]:
    """Return name and size of each file of *source*, and how to read one."""
    if source.startswith("s3://"):
        try:
            place = bucket(layout.folder(source))
        except ValueError as error:
            raise invalid("InvalidDataset", f"dataset.source: {error}") from error
        limit = 4 * MAX_IMAGES
        sizes = {one.key: one.size for one in place.walk(limit=limit) if _visible(one.key)}
        if len(sizes) == limit:
            raise invalid(
                "TooManyFiles", f"dataset.source {source} holds {limit} files or more: name a place with fewer"
            )
        return sizes, lambda name, most: _get(place, name, most)
    folder = Path(source)
    if not folder.is_dir():
        raise invalid("EmptyDataset", f"dataset.source {source} is not a folder (nor s3://bucket/prefix/)")
    sizes = {str(PurePosixPath(path.relative_to(folder))): size for path, size in _files(folder)}
    return sizes, lambda name, most: _load(folder, name, most)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.rglob("*"):
        if path.is_file() and _visible(path.relative_to(folder).as_posix()):
            yield path, path.stat().st_size


def _visible(name: str) -> bool:
    return bool(name) and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/"))


def _get(place: Bucket, name: str, most: int) -> bytes:
    try:
        return place.get(name, limit=most).body
    except errors.NotVerified as error:
        raise invalid("FileTooLarge", str(error)) from error
    except errors.ObjectMissing as error:
        raise invalid("DatasetChanged", f"{name} vanished while it was being read: leave the data set alone") from error


def _load(folder: Path, name: str, most: int) -> bytes:
    path = folder / name
    if path.stat().st_size > most:
        raise invalid("FileTooLarge", f"{name} has {path.stat().st_size} bytes, more than the {most} allowed")
    return path.read_bytes()


def _captions(names: list[str], sizes: Mapping[str, int], read: Read, source: Source) -> dict[str, str]:
    """Return each image's caption."""
    listed = _metadata(read) if METADATA in sizes else {}
    found: dict[str, str] = {}
    for name in names:
        stem = name[: -len(_suffix(name))]
        beside = next((stem + suffix for suffix in CAPTIONS if stem + suffix in sizes), None)
        own = _text(beside, read(beside, MAX_TEXT_BYTES)).strip() if beside is not None else ""
        caption = own or listed.get(name, "") or (source.instance_prompt or "").strip()
        if not caption:
            raise invalid(
                "MissingCaption",
                f"{name} has no caption: set dataset.instancePrompt, or put {stem}.txt beside the image",
            )
        if len(caption) > MAX_CAPTION:
            raise invalid("CaptionTooLong", f"the caption of {name} has more than {MAX_CAPTION} characters: shorten it")
        found[name] = caption
    return found


def _metadata(read: Read) -> dict[str, str]:
    """Return the captions of ``metadata.jsonl``: one JSON object a line, with file_name and text."""
    found: dict[str, str] = {}
    for number, line in enumerate(_text(METADATA, read(METADATA, MAX_TEXT_BYTES)).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found[str(entry["file_name"])] = str(entry.get("text", entry.get("caption", ""))).strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise invalid(
                "InvalidMetadata", f'{METADATA} line {number} is not of the form {{"file_name": ..., "text": ...}}'
            ) from error
    return found


def _text(name: str, body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid("InvalidCaption", f"{name} is not UTF-8 text: save it as UTF-8") from error


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
