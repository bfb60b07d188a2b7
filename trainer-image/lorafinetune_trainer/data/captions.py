"""Captions: where each image's words come from, and the orders in which they are shown.

An image's caption is its ``.txt`` or ``.caption`` file (``a.txt`` or ``a.png.txt`` of ``a.png``), else its line in
``metadata.jsonl`` (of its folder, else of one above), else the words of its concept's folder, else the prompt for all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import numpy as np

from lorafinetune_trainer.data.place import Place
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.training import order

BESIDE: Final = (".txt", ".caption")
METADATA: Final = "metadata.jsonl"
MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
MAX_CHARACTERS: Final = 4096
ORDERS: Final = 8
"""Orders that a caption is shown in, where captions are shuffled."""
_DRAWS: Final = 64
"""How often another order is looked for, before those that were found are enough."""


class Beside(NamedTuple):
    """The caption files that lie beside images, by what their names say before the suffix."""

    files: Mapping[str, tuple[str, ...]]

    def of(self, image: str) -> tuple[str, ...]:
        """Return those of *image*: of ``a.txt`` and ``a.caption``, in capitals too, then of ``a.png.txt``.

        The first one counts; there should be no more.
        """
        stem = str(PurePosixPath(image).with_suffix(""))
        return (*self.files.get(stem, ()), *(self.files.get(image, ()) if image != stem else ()))


def beside(place: Place) -> Beside:
    """Return the caption files of *place*."""
    found: dict[str, list[str]] = {}
    for name in place.sizes:
        if PurePosixPath(name).suffix.lower() in BESIDE:
            found.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)

    def rank(name: str) -> tuple[bool, int, str]:
        suffix = PurePosixPath(name).suffix
        return suffix not in BESIDE, BESIDE.index(suffix.lower()), name

    return Beside({stem: tuple(sorted(names, key=rank)) for stem, names in found.items()})


def own(name: str, place: Place, files: Beside, listed: Mapping[str, str]) -> str:
    """Return the caption that the image *name* has for itself, from its file or *listed*; empty where it has none."""
    file = next(iter(files.of(name)), None)
    words = text(file, place.read(file, MAX_TEXT_BYTES)).strip() if file is not None else ""
    words = words or listed.get(name, "")
    if len(words) > MAX_CHARACTERS:
        raise invalid("CaptionTooLong", f"the caption of {name} has more than {MAX_CHARACTERS} characters: shorten it")
    return words


def listed(place: Place) -> dict[str, str]:
    """Return the captions of all ``metadata.jsonl``, by the names of their images; the nearest file's counts."""
    found: dict[str, str] = {}
    files = [name for name in place.sizes if PurePosixPath(name).name == METADATA]
    for file in sorted(files, key=lambda name: (name.count("/"), name)):  # the deeper, the later: it replaces
        folder = PurePosixPath(file).parent
        # Not splitlines: JSON's strings may hold what Unicode, too, takes for the end of a line.
        lines = text(file, place.read(file, MAX_TEXT_BYTES)).split("\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name, words = str(entry["file_name"]), str(entry.get("text") or entry.get("caption") or "")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise invalid(
                    "InvalidMetadata",
                    f'{file} line {number} is not of the form {{"file_name": "a.png", "text": "..."}}: correct it',
                ) from error
            found[str(folder / name)] = words.strip()
    return found


def without_image(names: Iterable[str], files: Beside, listed: Mapping[str, str]) -> list[str]:
    """Return the caption files, and the images that ``metadata.jsonl`` names, for which there is no image."""
    images = frozenset(names)
    known = images | {str(PurePosixPath(name).with_suffix("")) for name in images}
    lonely = [name for stem, some in files.files.items() if stem not in known for name in some]
    return sorted([*lonely, *(f"{name} (in {METADATA})" for name in listed if name not in images)])


def several(names: Iterable[str], files: Beside) -> list[str]:
    """Return the images that have more than one caption file, and those files: the first of them counts."""
    return [f"{name}: {' before '.join(every)}" for name in sorted(names) if len(every := files.of(name)) > 1]


def orders(seed: int, caption: str, keep: int) -> tuple[str, ...]:
    """Return the orders of the comma-separated parts of *caption*: at most 8, all different, fewer where there are few.

    The first *keep* parts stay where they are. A pure function: equal captions have equal orders in every run of that
    seed, whatever else is in the data set.
    """
    parts = [part for part in (piece.strip() for piece in caption.split(",")) if part]
    first, rest = parts[:keep], parts[keep:]
    found: dict[str, None] = {}
    for draw in range(_DRAWS):
        words = order.stream(seed, f"order/{caption}", draw).random_raw(len(rest))
        found[", ".join([*first, *(rest[int(place)] for place in np.argsort(words, kind="stable"))])] = None
        if len(found) == ORDERS:
            break
    return tuple(found)


def text(name: str, body: bytes) -> str:
    """Return *body* as text, without a byte order mark; raises Failure where it is not UTF-8."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid("InvalidCaption", f"{name} is not UTF-8 text: save it as UTF-8") from error
