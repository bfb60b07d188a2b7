"""Real image files of every kind that people have."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from lorafinetune_trainer.data import pictures
from lorafinetune_trainer.failure import Failure
from tests.unit.trainer.image_files import picture


def saved(image: Image.Image, kind: str, **save: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **save)
    return target.getvalue()


def noisy(size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def decode(name: str, body: bytes) -> Image.Image:
    return pictures.decode(name, body, Image.Image.copy)


def first_pixel(body: bytes) -> Any:
    found = decode("a", body)
    assert found.mode == "RGB"
    return found.getpixel((0, 0))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_every_kind_is_read(kind: str) -> None:
    assert np.allclose(first_pixel(picture((200, 40, 90), kind=kind)), (200, 40, 90), atol=4)


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert decode("a", picture(kind="JPEG", exif=exif)).size == (34, 40)


def test_transparent_is_white() -> None:
    assert first_pixel(saved(Image.new("RGBA", (40, 40), (9, 9, 9, 0)), "PNG")) == (255, 255, 255)
    assert first_pixel(saved(Image.new("LA", (40, 40), (9, 0)), "PNG")) == (255, 255, 255)
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert first_pixel(saved(palette, "PNG")) == (10, 20, 30)
    assert first_pixel(saved(palette, "PNG", transparency=0)) == (255, 255, 255)
    half = first_pixel(saved(Image.new("RGBA", (40, 40), (0, 0, 0, 128)), "PNG"))
    assert half == (127, 127, 127)


@pytest.mark.parametrize(("value", "seen"), [(0, 0), (32768, 128), (65535, 255), (257, 1)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str, value: int, seen: int) -> None:
    deep = Image.fromarray(np.full((40, 40), value, dtype=np.uint16))
    assert deep.mode == "I;16"
    assert first_pixel(saved(deep, kind)) == (seen, seen, seen)


def test_32_bits_are_refused() -> None:
    for values in (np.full((40, 40), 0.5, dtype=np.float32), np.full((40, 40), 70_000, dtype=np.int32)):
        with pytest.raises(Failure, match="save it with 8 or 16 bits") as caught:
            decode("a.tif", saved(Image.fromarray(values), "TIFF"))
        assert caught.value.reason == "DeepImage"


def test_cmyk_is_converted() -> None:
    red = saved(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.allclose(first_pixel(red), (255, 0, 0), atol=4)


def test_colour_profiles_are_obeyed() -> None:
    """A profile with red and blue exchanged, made of sRGB's own."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be")).replace(b"sRGB", b"odd!")
    assert np.allclose(first_pixel(picture((200, 40, 90), icc_profile=srgb)), (200, 40, 90), atol=1)
    assert np.allclose(first_pixel(picture((200, 40, 90), icc_profile=swapped)), (90, 40, 200), atol=3)
    assert first_pixel(picture((200, 40, 90), icc_profile=b"no profile")) == (200, 40, 90)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    body = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(Failure, match="a has 2 frames: save the one that you mean") as caught:
        decode("a", body)
    assert caught.value.reason == "AnimatedImage"


def test_what_a_phone_adds_to_a_photograph_is_no_animation() -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    body = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.allclose(first_pixel(body), (255, 0, 0), atol=4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    body = saved(noisy(), kind)
    for share in (0.5, 0.98):
        with pytest.raises(Failure, match="photo") as caught:
            decode("photo", body[: int(len(body) * share)])
        assert caught.value.reason in ("TruncatedImage", "UndecodableImage")
    if kind in ("PNG", "JPEG", "BMP"):
        assert caught.value.reason == "TruncatedImage"
        assert "upload it again" in caught.value.message


def test_icons_are_refused() -> None:
    with pytest.raises(Failure, match="a has 200 x 31 pixels, less than 32 along an edge") as caught:
        decode("a", picture(size=(200, 31)))
    assert caught.value.reason == "TinyImage"
    assert decode("a", picture(size=(200, 32))).size == (200, 32)


def test_of_large_pictures_there_is_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 40 * 34 - 1)
    meeting = threading.Barrier(2)

    def use(_: Image.Image) -> bool:
        try:
            meeting.wait(0.3)
        except threading.BrokenBarrierError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        met = list(pool.map(lambda _: pictures.decode("a", picture(), use), range(2)))
    assert met == [False, False]
