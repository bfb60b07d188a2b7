"""Images and captions as they are found in a folder, and what is wrong or odd about them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from lorafinetune.contract.event import Termination
from lorafinetune.contract.runconfig import Dataset as Source
from lorafinetune_trainer.data import buckets, dataset, preflight
from lorafinetune_trainer.data.buckets import Size
from lorafinetune_trainer.ending import MAX_TERMINATION_BYTES, fitted
from lorafinetune_trainer.failure import Failure, invalid
from tests.unit.trainer.image_files import fill, picture


def scan(folder: Path, prompt: str | None = "a photo", **options: bool) -> dataset.Dataset:
    asked = dataset.instances(Source(source=str(folder), instance_prompt=prompt))
    return dataset.scan(asked, lambda _: pytest.fail("no bucket"), **options)


def refused(folder: Path, prompt: str | None = "a photo") -> Failure:
    with pytest.raises(Failure) as caught:
        scan(folder, prompt)
    assert caught.value.code == 78
    return caught.value


def test_captions_are_found_wherever_they_are(tmp_path: Path) -> None:
    lines = '{"file_name": "c.png", "text": "by metadata"}\n\n{"file_name": "b.png", "text": "not this one"}\n'
    folder = fill(
        tmp_path,
        {
            "b.png": picture("blue"),
            "a.JPG": picture(kind="JPEG"),
            "c.png": picture("green"),
            "sub/d.webp": picture(kind="WEBP"),
            "b.txt": "\ufeffby sidecar\n",
            "sub/d.caption": " by caption file ",
            "metadata.jsonl": lines,
            "notes.md": "ignored",
            ".hidden.png": b"ignored",
            "20_sks dog/e.png": picture("red"),
            "20_sks dog/f.png": picture("white"),
            "20_sks dog/f.txt": "its own",
        },
    )
    found = scan(folder)
    assert sorted((one.name, one.caption, one.repeats) for one in found.images) == [
        ("20_sks dog/e.png", "sks dog", 20),
        ("20_sks dog/f.png", "its own", 20),
        ("a.JPG", "a photo", 1),
        ("b.png", "by sidecar", 1),
        ("c.png", "by metadata", 1),
        ("sub/d.webp", "by caption file", 1),
    ]
    assert found.shown == 44
    assert {one.size for one in found.images} == {(40, 34)}


def test_the_nearest_metadata_counts(tmp_path: Path) -> None:
    folder = fill(
        tmp_path,
        {
            "metadata.jsonl": '{"file_name": "sub/a.png", "text": "far"}\n{"file_name": "sub/b.png", "text": "far"}',
            "sub/metadata.jsonl": '{"file_name": "./a.png", "caption": "near"}',
            "sub/a.png": picture(),
            "sub/b.png": picture("blue"),
        },
    )
    assert {one.name: one.caption for one in scan(folder).images} == {"sub/a.png": "near", "sub/b.png": "far"}


def test_the_digest_knows_contents_captions_and_repeats_and_nothing_else(tmp_path: Path) -> None:
    red, blue = picture(), picture("blue")
    first = fill(tmp_path / "1", {"a.png": red, "b.png": blue})
    same = fill(tmp_path / "2", {"z.png": red, "sub/y.png": blue, "notes.md": "other"})
    assert scan(first).digest == scan(same).digest == scan(same, decoded=False).digest
    contents = [[one.sha256 for one in scan(folder).images] for folder in (first, same)]
    assert contents[0] == contents[1], "a renamed file keeps its place"
    others = [
        fill(tmp_path / "3", {"a.png": red, "b.png": picture("green")}),
        fill(tmp_path / "4", {"a.png": red, "b.png": blue, "b.txt": "a caption"}),
        fill(tmp_path / "5", {"a.png": red}),
        fill(tmp_path / "6", {"2_x/a.png": red, "2_x/a.txt": "a photo", "b.png": blue}),
    ]
    assert len({scan(folder).digest for folder in [first, *others]}) == 5
    assert scan(first, "another prompt").digest != scan(first).digest


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ({}, "EmptyDataset", "nothing lies there"),
        ({"notes.md": "hello"}, "EmptyDataset", "only 1 other file"),
        ({"cat.txt": "hello"}, "EmptyDataset", "captions without images: cat.txt"),
        ({"cat.png": b"this is no picture"}, "UndecodableImage", "cat.png"),
        ({"cat.png": b""}, "UndecodableImage", "cat.png"),
        ({"a.png": picture(), "cat.heic": b"x"}, "UndecodableImage", "convert it to JPEG or PNG"),
        ({"cat.png": picture(), "cat.txt": b"\xff\xfe\x00\xd8"}, "InvalidCaption", "cat.txt is not UTF-8"),
        ({"cat.png": picture(), "metadata.jsonl": "[1]\n"}, "InvalidMetadata", "metadata.jsonl line 1"),
        ({"cat.png": picture(), "x/metadata.jsonl": "\n{}\n"}, "InvalidMetadata", "x/metadata.jsonl line 2"),
        ({"cat.png": picture(), "cat.txt": "x" * 5000}, "CaptionTooLong", "cat.png"),
    ],
)
def test_what_is_wrong_is_named(files: dict[str, bytes | str], reason: str, words: str, tmp_path: Path) -> None:
    failure = refused(fill(tmp_path, files))
    assert failure.reason == reason
    assert words in failure.message


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.png": picture(), "b.png": b"no", "c.gif": picture(kind="GIF", size=(8, 8))}
    failure = refused(fill(tmp_path / "few", {**files, "d.png": picture(), "d.txt": b"\xff"}))
    assert failure.reason == "UndecodableImage"
    assert failure.message.startswith("3 files cannot be used: b.png cannot be read")
    assert "c.gif has 8 x 8 pixels" in failure.message
    assert "d.txt is not UTF-8" in failure.message
    many = refused(fill(tmp_path / "many", {f"{number:03}.png": b"no" for number in range(40)}))
    told = many.message.count("cannot be read")
    assert 3 < told < 40
    assert many.message.endswith(f"; and {40 - told} more")
    assert len(many.message) <= 1024


def test_ten_thousand_bad_files_of_any_script_are_told_within_what_kubernetes_keeps() -> None:
    """The first by name, and how many there are; however many bytes a letter takes."""
    for letters in ("cat", "🐈" * 60, "猫" * 80, "é" * 120):
        names = [f"{number:05}-{letters}.png" for number in range(10_000)]
        failure = preflight.refuse([invalid("UndecodableImage", f"{name} cannot be read: no") for name in names])
        assert failure.message.startswith(f"10000 files cannot be used: {names[0]} cannot be read")
        told = failure.message.count("cannot be read")
        assert failure.message.endswith(f"; and {10_000 - told} more")
        body = fitted({"exitCode": 78, "step": 0, "reason": failure.reason, "message": failure.message})
        assert len(body) < MAX_TERMINATION_BYTES
        said = Termination.model_validate_json(body).message
        assert said.startswith(f"10000 files cannot be used: {names[0]} cannot be read")
    one = preflight.refuse([invalid("UndecodableImage", "x" * 5000)] * 3)
    assert one.message.startswith("3 files cannot be used: xxx")
    assert one.message.endswith("; and 2 more")


def test_an_image_without_any_caption(tmp_path: Path) -> None:
    failure = refused(fill(tmp_path, {"a.png": picture(), "a.txt": "  \n"}), None)
    assert failure.reason == "MissingCaption"
    assert "a.png has no caption: set dataset.instancePrompt, or put a.txt" in failure.message


def test_many_images_without_a_caption_are_told_with_one_advice(tmp_path: Path) -> None:
    files = {f"{number:02}.png": picture() for number in range(40)}
    told = (
        "40 images have no caption: set dataset.instancePrompt, or put a file such as 00.txt beside each: "
        "00.png, 01.png, 02.png, 03.png, 04.png, and 35 more"
    )
    failure = refused(fill(tmp_path, files), None)
    assert (failure.reason, failure.message) == ("MissingCaption", told)
    fill(tmp_path, {"0.png": b"no"})
    noted: list[str] = []
    asked = dataset.instances(Source(source=str(tmp_path)))
    with pytest.raises(Failure) as caught:
        dataset.scan(asked, lambda _: pytest.fail("no bucket"), note=noted.append)
    assert caught.value.reason == "UndecodableImage"
    assert caught.value.message.startswith("41 files cannot be used: 0.png cannot be read")
    assert caught.value.message.endswith(told)
    assert noted[1:] == [told]


def test_class_images_need_a_prompt(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": picture()})
    assert dataset.classes(Source(source="/")) is None
    asked = dataset.classes(Source(source="/", class_source=str(tmp_path)))
    assert asked is not None
    with pytest.raises(Failure, match=r"a\.png has no caption: set dataset\.classPrompt") as caught:
        dataset.scan(asked, lambda _: pytest.fail("no bucket"))
    assert caught.value.reason == "MissingClassPrompt"
    asked = dataset.classes(Source(source="/", class_source=str(tmp_path), class_prompt="a dog"))
    assert asked is not None
    assert dataset.scan(asked, lambda _: pytest.fail("no bucket")).images[0].caption == "a dog"


def test_no_folder(tmp_path: Path) -> None:
    failure = refused(tmp_path / "none")
    assert "is not a folder" in failure.message


def test_an_image_that_changes_or_vanishes_while_it_is_read(tmp_path: Path) -> None:
    found = scan(fill(tmp_path, {"a.png": picture()}))
    fill(tmp_path, {"a.png": picture("blue")})
    with pytest.raises(Failure, match=r"a\.png changed") as caught:
        found.decode(found.images[0], str)
    assert caught.value.reason == "DatasetChanged"
    (tmp_path / "a.png").unlink()
    with pytest.raises(Failure, match=r"a\.png vanished") as caught:
        found.decode(found.images[0], str)
    assert caught.value.reason == "DatasetChanged"


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(picture())
    failure = refused(tmp_path)
    assert failure.reason == "InvalidFileName"
    assert "rename it" in failure.message
    failure.message.encode()


def test_twins_and_captions_without_an_image_are_remarked(tmp_path: Path) -> None:
    again = picture(kind="PNG", compress_level=0)
    folder = fill(
        tmp_path,
        {
            "a.png": picture(),
            "b.png": again,
            "sub/a.png": picture(),
            "c.png": picture("blue"),
            "lost.txt": "words",
            "metadata.jsonl": '{"file_name": "gone.png", "text": "words"}',
        },
    )
    assert picture() != again
    assert scan(folder).remarks == (
        "the same picture lies there more than once, and is shown as often: a.png = b.png = sub/a.png",
        "captions without an image: gone.png (in metadata.jsonl), lost.txt",
    )
    assert scan(folder, decoded=False).remarks == ()
    assert scan(fill(tmp_path / "good", {"a.png": picture(), "b.png": picture("blue")})).remarks == ()


def test_images_of_other_shapes_are_each_named_once_the_worst_first() -> None:
    sizes = {"a.png": Size(1200, 800), "b.png": Size(1600, 800), "c.png": Size(40, 40), "d.png": Size(2000, 2000)}
    frames = {name: buckets.frame(size, 1024, square=True) for name, size in sizes.items()}
    assert preflight.odd_shapes(frames) == [
        "3 of 4 images scaled up, because smaller than what it is trained at: "
        "c.png by 25.6, a.png by 1.3, b.png by 1.3",
        "2 of 4 images cut by more than 25% of the area: b.png by 50%, a.png by 33%",
    ]


def test_a_folder_that_is_shown_no_times_is_left_out_and_that_is_remarked(tmp_path: Path) -> None:
    files = {
        "a.png": picture(),
        "0_sks dog/b.png": picture("blue"),
        "0_sks dog/b.txt": "its caption",
        "0_sks dog/broken.png": b"no",
        "0_old/2_sks cat/c.png": picture("green"),
        "2023_summer/d.png": picture("white"),
        "metadata.jsonl": '{"file_name": "0_sks dog/b.png", "text": "its words"}',
    }
    found = scan(fill(tmp_path, files))
    assert {one.name: one.repeats for one in found.images} == {
        "a.png": 1,
        "0_old/2_sks cat/c.png": 2,
        "2023_summer/d.png": 1,
    }
    assert found.remarks == ("2 images left out, for a folder's 0 says that none is shown: 0_sks dog",)
    assert scan(tmp_path, decoded=False).digest == found.digest
    failure = refused(fill(tmp_path / "empty", {"0_sks dog/b.png": picture()}))
    assert failure.reason == "EmptyDataset"
    assert "holds no image (1 image left out, for a folder's 0 says that none is shown: 0_sks dog)" in failure.message


def test_captions_as_other_tools_and_systems_name_them(tmp_path: Path) -> None:
    files = {
        "a.png": (picture("red"), "a.TXT", "in capitals"),
        "b.JPG": (picture("blue", kind="JPEG"), "b.Caption", "with a capital"),
        "c.png": (picture("green"), "c.png.txt", "behind the whole name"),
        "sub/d.webp": (picture(kind="WEBP"), "sub/d.webp.CAPTION", "both"),
    }
    folder = fill(tmp_path, {name: one[0] for name, one in files.items()} | {one[1]: one[2] for one in files.values()})
    found = scan(folder, None)
    assert {one.name: one.caption for one in found.images} == {name: one[2] for name, one in files.items()}
    assert found.remarks == ()


def test_of_two_captions_the_first_counts_and_that_is_remarked(tmp_path: Path) -> None:
    names = ("a.txt", "a.caption", "a.CAPTION", "a.png.txt")
    folder = fill(tmp_path, {"a.png": picture(), **{name: f"by {name}" for name in names}})
    for left in range(len(names)):
        found = scan(folder)
        assert [one.caption for one in found.images] == [f"by {names[left]}"]
        several = "images with more than one caption file, of which the first counts: a.png: "
        assert found.remarks == ((several + " before ".join(names[left:]),) if left < len(names) - 1 else ())
        (folder / names[left]).unlink()


def test_a_picture_that_is_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = picture(size=(12_000, 12_000), mode="1")
    assert len(bomb) < 200_000
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    failure = refused(fill(tmp_path, {"a.png": bomb}))
    assert failure.reason == "HugeImage"
    assert "a.png has 12000 x 12000 pixels" in failure.message
