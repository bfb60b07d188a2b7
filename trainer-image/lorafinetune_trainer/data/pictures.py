"""One image file to a picture that can be trained on: upright, 8-bit RGB in sRGB, on white where it is transparent.

What cannot be one is refused, by name and with what to do; nothing is decoded before its size is known to be sane.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from lorafinetune_trainer.failure import Failure, invalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS: Final = 128 * 1024 * 1024
"""More would take gigabytes of memory; the largest cameras make 100 million."""
LARGE_PIXELS: Final = 16 * 1024 * 1024
"""Of larger ones there is one in memory at a time, so that several threads together stay below some gigabytes."""
MIN_EDGE: Final = 32
"""Anything smaller is an icon."""
_FULL: Final = 65535
_STILLS: Final = frozenset({"MPO"})
"""Formats whose further frames are no animation: previews and depths, which phones put into a photograph."""

_Result = TypeVar("_Result")

_large = threading.Lock()


def decode(name: str, body: bytes, use: Callable[[Picture], _Result]) -> _Result:
    """Return what *use* makes of the picture in the file *name*, upright and RGB.

    Raises Failure (INVALID) where there is none that can be trained on. Large pictures are used one at a time.
    """
    from PIL import Image as pillow  # noqa: N813
    from PIL import ImageOps

    pillow.MAX_IMAGE_PIXELS = None  # ours is below, and no mere warning
    try:
        opened = pillow.open(io.BytesIO(body))
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise invalid(
            "UndecodableImage", f"{name} cannot be read as an image ({_why(error)}): replace or remove it"
        ) from error
    with opened:
        _check_size(name, *opened.size)
        with _large if opened.width * opened.height > LARGE_PIXELS else contextlib.nullcontext():
            try:
                frames = int(getattr(opened, "n_frames", 1))
                if frames > 1 and opened.format not in _STILLS:
                    raise invalid(
                        "AnimatedImage",
                        f"{name} has {frames} frames: save the one that you mean as a PNG, and remove this file",
                    )
                opened.load()
                picture = _rgb(name, ImageOps.exif_transpose(opened) or opened)
            except (Failure, MemoryError):
                raise
            except Exception as error:
                raise invalid(
                    "TruncatedImage",
                    f"{name} is cut off or damaged ({_why(error)}): upload it again, or remove it",
                ) from error
            return use(picture)


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise invalid(
            "HugeImage",
            f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million: scale it down",
        )
    if min(width, height) < MIN_EDGE:
        raise invalid(
            "TinyImage",
            f"{name} has {width} x {height} pixels, less than {MIN_EDGE} along an edge: put a larger version there, or "
            "remove it",
        )


def _rgb(name: str, picture: Picture) -> Picture:
    from PIL import Image as pillow  # noqa: N813

    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        return _eight_bits(name, picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        colors, mask = layer.convert("RGB"), layer.getchannel("A")
        white = pillow.new("RGB", layer.size, (255, 255, 255))
        white.paste(_srgb(colors, profile), mask=mask)
        return white
    return _srgb(picture, profile)


def _eight_bits(name: str, picture: Picture) -> Picture:
    """Return a grey picture of 16 bits with 8: a plain conversion would make all of it white."""
    from PIL import Image as pillow  # noqa: N813

    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > _FULL:
        raise invalid(
            "DeepImage", f"{name} has pixels of 32 bits, whose white is anyone's guess: save it with 8 or 16 bits"
        )
    grey = (values.astype(np.uint32) * 255 + _FULL // 2) // _FULL
    return pillow.fromarray(grey.astype(np.uint8), "L").convert("RGB")


def _srgb(picture: Picture, profile: bytes | None) -> Picture:
    """Return *picture* in sRGB, by its colour profile where it has one that fits its pixels."""
    from PIL import ImageCms

    if picture.mode not in ("RGB", "CMYK", "L"):
        picture = picture.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(picture, source, target, outputMode="RGB") or picture
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one of other pixels: the plain conversion is what viewers show
    return picture.convert("RGB")


def _why(error: Exception) -> str:
    return re.sub(r" ?<_io\.BytesIO object at \w+>", "", f"{type(error).__name__}: {error}".splitlines()[0][:160])
