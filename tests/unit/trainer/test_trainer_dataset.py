"""Images and captions as they are found in a folder."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from lorafinetune.contract.runconfig import Dataset as Source
from lorafinetune_trainer.data import dataset
from lorafinetune_trainer.failure import Failure


def picture(color: str = "red", size: tuple[int, int] = (8, 6), kind: str = "PNG", **save: object) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, color).save(target, kind, **save)
    return target.getvalue()


def fill(folder: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_S_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def scan(folder: Path, prompt: str | None = "a photo", **options: bool) -> dataset.Dataset:
    return dataset.scan(
        Source(source=str(folder), instance_prompt=prompt), lambda _: pytest.fail("no bucket"), **options
    )


def test_sorted_by_name_with_captions_from_wherever_they_are(tmp_path: Path) -> None:
    lines = '{"file_name": "c.png", "text": "by metadata"}\n\n{"file_name": "b.png", "text": "not this one"}\n'
    folder = fill(
        tmp_path,
        b__png=picture(),
        a__JPG=picture(kind="JPEG"),
        c__png=picture("blue"),
        sub_S_d__webp=picture(kind="WEBP"),
        b__txt="\ufeffby sidecar\n",
        sub_S_d__caption=" by caption file ",
        metadata__jsonl=lines,
        notes__md="ignored",
    )
    fill(tmp_path, **{".hidden.png": b"ignored"})
    found = scan(folder)
    assert [(one.name, one.caption) for one in found.images] == [
        ("a.JPG", "a photo"),
        ("b.png", "by sidecar"),
        ("c.png", "by metadata"),
        ("sub/d.webp", "by caption file"),
    ]


def test_the_digest_knows_names_contents_and_captions_and_nothing_else(tmp_path: Path) -> None:
    first = fill(tmp_path / "1", a__png=picture(), b__png=picture("blue"))
    same = fill(tmp_path / "2", b__png=picture("blue"), a__png=picture(), notes__md="other")
    assert scan(first).digest == scan(same).digest == scan(same, decoded=False).digest
    others = [
        fill(tmp_path / "3", a__png=picture(), c__png=picture("blue")),
        fill(tmp_path / "4", a__png=picture(), b__png=picture("green")),
        fill(tmp_path / "5", a__png=picture(), b__png=picture("blue"), b__txt="a caption"),
        fill(tmp_path / "6", a__png=picture()),
    ]
    assert len({scan(folder).digest for folder in [first, *others]}) == 5
    assert scan(first, "another prompt").digest != scan(first).digest


def test_pictures_are_upright_and_rgb_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    grey = io.BytesIO()
    Image.new("L", (4, 4), 7).save(grey, "PNG")
    folder = fill(
        tmp_path, turned__jpg=picture(kind="JPEG", exif=exif), clear__png=clear.getvalue(), grey__png=grey.getvalue()
    )
    found = scan(folder)
    pictures = {image.name: found.picture(image) for image in found.images}
    assert pictures["turned.jpg"].size == (6, 8)
    assert {one.mode for one in pictures.values()} == {"RGB"}
    assert pictures["clear.png"].getpixel((0, 0)) == (255, 255, 255)
    assert pictures["grey.png"].getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ({}, "EmptyDataset", "nothing lies there"),
        ({"notes__txt": "hello"}, "EmptyDataset", "1 other files"),
        ({"cat__png": b"this is no picture"}, "UndecodableImage", "cat.png"),
        ({"cat__png": picture()[:45]}, "UndecodableImage", "cat.png"),
        ({"cat__png": b""}, "UndecodableImage", "cat.png"),
        ({"a__png": picture(), "cat__heic": b"x"}, "UndecodableImage", "convert it to JPEG or PNG"),
        ({"cat__png": picture(), "cat__txt": b"\xff\xfe\x00\xd8"}, "InvalidCaption", "cat.txt is not UTF-8"),
        ({"cat__png": picture(), "metadata__jsonl": "[1]\n"}, "InvalidMetadata", "metadata.jsonl line 1"),
        ({"cat__png": picture(), "cat__txt": "x" * 5000}, "CaptionTooLong", "cat.png"),
    ],
)
def test_what_is_wrong_is_named(files: dict[str, bytes], reason: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        scan(fill(tmp_path, **files))
    assert caught.value.reason == reason
    assert caught.value.code == 78
    assert words in caught.value.message


def test_an_image_without_any_caption(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"a\.png has no caption: set dataset\.instancePrompt, or put a\.txt") as caught:
        scan(fill(tmp_path, a__png=picture(), a__txt="  \n"), None)
    assert caught.value.reason == "MissingCaption"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is not a folder"):
        scan(tmp_path / "none")


def test_an_image_that_changes_while_it_is_read(tmp_path: Path) -> None:
    found = scan(fill(tmp_path, a__png=picture()))
    fill(tmp_path, a__png=picture("blue"))
    with pytest.raises(Failure, match=r"a\.png changed") as caught:
        found.picture(found.images[0])
    assert caught.value.reason == "DatasetChanged"


def test_a_picture_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Failure, match="DecompressionBomb"):
        scan(fill(tmp_path, a__png=picture(size=(8, 8))))
