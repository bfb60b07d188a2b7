"""Where images and captions lie: a folder of this machine or a place in the object store, listed and read by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from lorafinetune.contract import layout
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import invalid, naming

MAX_FILES: Final = 8000
"""Files that are listed, of whatever kind."""

Read = Callable[[str, int], bytes]
"""Returns the bytes of one file, by name, if there are at most so many; raises Failure (INVALID)."""


@dataclass(frozen=True, slots=True)
class Place:
    """The files below one source."""

    sizes: Mapping[str, int]
    """Bytes of each, by its name below the source."""
    read: Read


def enter(field: str, source: str, bucket: Callable[[layout.Location], Bucket]) -> Place:
    """List *source*, which *field* of the spec names; *bucket* opens a place in the object store."""
    if source.startswith("s3://"):
        try:
            place = bucket(layout.folder(source))
        except ValueError as error:
            raise invalid("InvalidDataset", f"{field}: {error}") from error
        with naming(f"{field} {source}"):
            listed = {one.key: one.size for one in place.walk(limit=MAX_FILES)}
        found = Place(
            {name: size for name, size in listed.items() if _visible(name)},
            lambda name, most: _get(place, name, most),
        )
    else:
        folder = Path(source)
        if not folder.is_dir():
            raise invalid(
                "EmptyDataset",
                f"{field} {source} is not a folder of this machine ({folder.absolute()}), nor s3://bucket/prefix/: "
                "correct the path",
            )
        listed = dict(_files(field, folder))
        found = Place(listed, lambda name, most: _load(folder, name, most))
    if len(listed) >= MAX_FILES:
        raise invalid("TooManyFiles", f"{field} {source} holds {MAX_FILES} files or more: name a place with fewer")
    return found


def _files(field: str, folder: Path) -> Iterator[tuple[str, int]]:
    count = 0
    for path in folder.rglob("*"):
        name = str(PurePosixPath(path.relative_to(folder)))
        if not _visible(name) or not path.is_file():
            continue
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = name.encode(errors="surrogateescape").decode(errors="replace")
            raise invalid("InvalidFileName", f"{field}: the name of {shown} is not UTF-8: rename it") from error
        try:
            yield name, path.stat().st_size
        except FileNotFoundError as error:
            raise _vanished(name) from error
        count += 1
        if count >= MAX_FILES:
            return


def _visible(name: str) -> bool:
    return bool(name) and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/"))


def _get(place: Bucket, name: str, most: int) -> bytes:
    try:
        return place.get(name, limit=most).body
    except errors.NotVerified as error:
        raise invalid("FileTooLarge", f"{error}: make {name} smaller or remove it") from error
    except errors.ObjectMissing as error:
        raise _vanished(name) from error


def _load(folder: Path, name: str, most: int) -> bytes:
    path = folder / name
    try:
        if (size := path.stat().st_size) > most:
            raise invalid(
                "FileTooLarge", f"{name} has {size} bytes, more than the {most} allowed: make it smaller or remove it"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _vanished(name) from error
    except OSError as error:
        raise invalid("UnreadableFile", f"{name} cannot be read ({error.strerror}): mend it or remove it") from error


def _vanished(name: str) -> Exception:
    return invalid("DatasetChanged", f"{name} vanished while the data set was being read: leave the data set alone")
