"""Where base models come from: this machine, the object store, the hub; each knows its files and brings some of them.

The header of a single file comes first and alone. Of a single file in the object store only those bytes are fetched
that are wanted, to their own places in a sparse file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from lorafinetune.contract import layout
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import header
from lorafinetune_trainer.base.header import Header, Tensor
from lorafinetune_trainer.base.traffic import Traffic
from lorafinetune_trainer.failure import Failure, disk_full, explain, invalid, naming

SINGLE: Final = ".safetensors"
PICKLED: Final = (".ckpt", ".pt", ".pth", ".bin")
MODEL_WORDS: Final = f"an SDXL diffusers folder, or one SDXL {SINGLE} file"
VAE_WORDS: Final = f"a VAE of SDXL: a folder with config.json and diffusion_pytorch_model{SINGLE}, or one {SINGLE} file"
_OF_THE_HUB: Final = re.compile(
    r"^(?:https?://)?(?:[\w-]+\.)*(?:huggingface|hf)\.\w+/(?P<name>[\w.-]+/[\w.-]+)"
    rf"(?:/(?:blob|resolve)/[^/]+(?P<file>/[^?#]+\{SINGLE}))?(?:[/?#].*)?$"
)
"""The address of a model's page on the hub, or of a file of it, as a browser shows it."""
_HUB_NAME: Final = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_PARALLEL: Final = 8
_MAX_FILES: Final = 2000
_PIECE: Final = 16 * 1024 * 1024
_BEGINNING: Final = 512 * 1024
"""Bytes that are read of a file to find its header, which mostly is shorter."""


@dataclass(frozen=True, slots=True)
class Means:
    """How this machine gets at files."""

    bucket: Callable[[layout.Location], Bucket]
    """Opens a place in the object store."""
    scratch: Path
    """Where downloads from it go. The hub's go into its library's own cache."""
    traffic: Traffic = dataclasses.field(default_factory=Traffic)


class Place(Protocol):
    """Somewhere that holds models."""

    @property
    def field(self) -> str:
        """The field of the spec that names it."""

    @property
    def uri(self) -> str:
        """How the spec names it."""

    @property
    def single(self) -> str | None:
        """The one file that it names, where it names no folder."""

    @property
    def names(self) -> frozenset[str]:
        """The files that lie there; of a single file itself and its ``.config`` folder."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what the header of the single file says; ValueError where it is damaged."""

    def bring(self, names: Iterable[str]) -> Path:
        """Return a folder of this machine in which the files *names* lie."""

    def bring_spans(self, spans: Callable[[Header], list[tuple[int, int]]]) -> Path:
        """Return a folder in which the single file lies, with at least the bytes of these *spans*."""


def wrong(place: Place, why: str) -> Failure:
    """Return the failure of what lies at *place* and cannot be used."""
    return invalid(
        "WrongBaseModel",
        f"{place.field} {place.uri} cannot be used: {why}. It must be {_wanted(place.field)}",
    )


def _wanted(field: str) -> str:
    return VAE_WORDS if field == "baseModel.vae" else MODEL_WORDS


def single_name(uri: str) -> str | None:
    """Return the name of the file that *uri* ends with, or None where it is a folder's; raises Failure for pickles."""
    name = uri.rstrip("/").rpartition("/")[2]
    if name.endswith(PICKLED):
        raise invalid(
            "WrongBaseModel",
            f"{uri} is a pickle, which can run any code when it is loaded: take the model's {SINGLE} file",
        )
    return name if name.endswith(SINGLE) else None


@contextlib.contextmanager
def room(folder: Path, size: int, what: str) -> Iterator[None]:
    """Raise Failure (DiskFull) where *folder* has no room for *size* more bytes of *what*, or has none left meanwhile.

    *folder* is there.
    """
    needs = f"{what} needs {size / 1e6:,.0f} MB"
    if shutil.disk_usage(folder).free < size:
        raise disk_full(folder, needs)
    try:
        yield
    except (OSError, Failure) as error:
        if explain(error).code is ExitCode.DISK_FULL:
            raise disk_full(folder, needs) from error
        raise


@dataclass(frozen=True, slots=True)
class Local:
    """A folder of this machine, or one file in it."""

    field: str
    uri: str
    folder: Path
    single: str | None
    names: frozenset[str]

    def tensors(self) -> dict[str, Tensor]:
        """Return what the header of the single file says."""
        assert self.single is not None
        return dict(header.read(self.folder / self.single).tensors)

    def bring(self, names: Iterable[str]) -> Path:
        """Return the folder itself."""
        return self.folder

    def bring_spans(self, spans: Callable[[Header], list[tuple[int, int]]]) -> Path:
        """Return the folder itself."""
        return self.folder


def open_local(field: str, uri: str) -> Local:
    """Return a place of this machine; raises Failure (INVALID) where nothing lies there."""
    path, single = Path(uri), single_name(uri)
    if single is not None and path.is_file():
        beside = path.with_name(f"{single}.config")
        found = {one.relative_to(path.parent).as_posix() for one in beside.glob("*/*") if one.is_file()}
        return Local(field, uri, path.parent, single, frozenset({single, *found}))
    if not path.is_dir():
        if (page := _OF_THE_HUB.match(uri)) is not None:
            meant = f"hf://{page['name']}{page['file'] or ''}"
            raise invalid("WrongBaseModel", f"{field} {uri} is a page of the hub: write {meant}")
        if "://" in uri:
            raise invalid(
                "WrongBaseModel",
                f"{field} {uri} is neither hf://owner/name, nor s3://bucket/prefix/, nor a path of this machine: "
                "download it, and name the file or folder",
            )
        if single is None and _HUB_NAME.match(uri) and not path.parent.is_dir():
            raise invalid(
                "WrongBaseModel",
                f"{field} {uri} is no folder of this machine: for the model on the hub, write hf://{uri}",
            )
        raise invalid(
            "WrongBaseModel",
            f"{field} {uri} is not a folder of this machine, nor a {SINGLE} file ({path.absolute()}), nor "
            "s3://bucket/prefix/, nor hf://owner/name: correct the path",
        )
    names = {
        one.relative_to(path).as_posix() for pattern in ("*", "*/*") for one in path.glob(pattern) if one.is_file()
    }
    return Local(field, uri, path, None, frozenset(names))


@dataclass(frozen=True, slots=True)
class Stored:
    """A prefix of the object store, or one object."""

    field: str
    uri: str
    bucket: Bucket
    scratch: Path
    single: str | None
    sizes: dict[str, int]
    traffic: Traffic
    headers: dict[str, Header] = dataclasses.field(default_factory=dict)
    """Those that have been read."""

    @property
    def names(self) -> frozenset[str]:
        """The objects below the prefix."""
        return frozenset(self.sizes)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the header of the single file says."""
        return dict(self._header().tensors)

    def bring(self, names: Iterable[str]) -> Path:
        """Download whole objects, once each."""
        wanted = {name: [(0, self.sizes[name])] for name in names if not self._is_there(name)}
        self._download(wanted)
        return self.scratch

    def bring_spans(self, spans: Callable[[Header], list[tuple[int, int]]]) -> Path:
        """Download the header and *spans* of the single file into a sparse one, as far as they are not there."""
        assert self.single is not None
        found = self._header()
        there = self._ranges()
        wanted = [(0, found.start), *spans(found)]
        missing = [
            (first, end) for first, end in wanted if not any(one <= first and end <= last for one, last in there)
        ]
        if missing:
            self._download({self.single: missing}, add=bool(there))
            self._ranges_file.write_text(json.dumps([*there, *missing]))
        return self.scratch

    @property
    def _ranges_file(self) -> Path:
        """Says which bytes of the sparse file have been fetched."""
        return self.scratch / f"{self.single}.ranges"

    def _ranges(self) -> list[tuple[int, int]]:
        try:
            return [(int(first), int(end)) for first, end in json.loads(self._ranges_file.read_text())]
        except (OSError, ValueError):
            return []

    def _header(self) -> Header:
        assert self.single is not None
        if self.single not in self.headers:
            size = self.sizes[self.single]
            beginning = self.bucket.get_range(self.single, 0, min(size, _BEGINNING))
            start = header.needed(beginning, size)
            if start > len(beginning):
                beginning += self.bucket.get_range(self.single, len(beginning), start)
            self.traffic.add(len(beginning))
            self.headers[self.single] = header.parse(beginning, size)
        return self.headers[self.single]

    def _is_there(self, name: str) -> bool:
        path = self.scratch / name
        return path.is_file() and path.stat().st_size == self.sizes[name]

    def _download(self, wanted: dict[str, list[tuple[int, int]]], *, add: bool = False) -> None:
        """Fetch ranges of objects in pieces, several at a time; a file has its name only once all are there.

        With *add* the file is there already, and gets more of its bytes.
        """
        pieces = [
            (name, one, min(one + _PIECE, end))
            for name, ranges in wanted.items()
            for first, end in ranges
            for one in range(first, end, _PIECE)
        ]
        self.scratch.mkdir(parents=True, exist_ok=True)
        size = sum(end - first for _, first, end in pieces)
        parts = {name: self.scratch / (name if add else f"{name}.part") for name in wanted}

        def fetch(piece: tuple[str, int, int]) -> None:
            name, first, end = piece
            body = memoryview(self.bucket.get_range(name, first, end))
            with parts[name].open("r+b", buffering=0) as file:
                while body:
                    done = os.pwrite(file.fileno(), body, end - len(body))
                    body = body[done:]
            self.traffic.add(end - first)

        with (
            room(self.scratch, size, f"{self.field} {self.uri}"),
            ThreadPoolExecutor(_PARALLEL, thread_name_prefix="download") as pool,
        ):
            for name, path in parts.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.truncate(self.sizes[name])
            waiting = [pool.submit(fetch, piece) for piece in pieces]
            try:
                for one in waiting:
                    one.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for name, path in parts.items():
            path.replace(self.scratch / name)


def open_stored(field: str, uri: str, means: Means) -> Stored:
    """Return a place of the object store; raises Failure (INVALID) where nothing lies there."""
    single = single_name(uri)
    try:
        location = layout.parse_uri(uri) if single is not None else layout.folder(uri)
    except ValueError as error:
        raise invalid("WrongBaseModel", f"{field}: {error}") from error
    if single is not None:
        location = layout.Location(location.bucket, location.key[: -len(single)])
    bucket = means.bucket(location)
    with naming(f"{field} {uri}"):
        found = list(bucket.walk(single or "", limit=_MAX_FILES))
    sizes = {one.key: one.size for one in found if one.key and not one.key.endswith("/")}
    if single is not None:
        sizes = {name: size for name, size in sizes.items() if name == single or name.startswith(f"{single}.config/")}
    if not sizes or (single is not None and single not in sizes):
        raise invalid(
            "WrongBaseModel",
            f"nothing lies at {field} {uri}: it must be {_wanted(field)}",
        )
    return Stored(field, uri, bucket, means.scratch / field, single, sizes, means.traffic)
