"""Captions in their orders, and folders that say how often and what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lorafinetune_trainer.data import captions, concepts
from lorafinetune_trainer.data.concepts import Concept
from lorafinetune_trainer.data.place import Place

TAGS = "sks dog, standing, snow, blue sky, wood"


def test_orders_that_must_never_change() -> None:
    """A run that was begun with one release goes on with the next: these values are part of the format."""
    assert captions.orders(7, TAGS, 1) == (
        "sks dog, wood, blue sky, standing, snow",
        "sks dog, blue sky, snow, wood, standing",
        "sks dog, snow, standing, wood, blue sky",
        "sks dog, blue sky, standing, wood, snow",
        "sks dog, blue sky, wood, standing, snow",
        "sks dog, standing, snow, blue sky, wood",
        "sks dog, standing, wood, snow, blue sky",
        "sks dog, blue sky, standing, snow, wood",
    )


def test_a_line_of_metadata_ends_where_json_lines_end() -> None:
    """What Unicode takes for the end of a line, too, is a character like others in JSON."""
    words = "one\u2028two\u0085three"
    body = f'{{"file_name": "a.png", "text": "{words}"}}\r\n{{"file_name": "b.png", "text": "b"}}\r\n'.encode()
    place = Place({captions.METADATA: len(body)}, lambda _name, _most: body)
    assert captions.listed(place) == {"a.png": words, "b.png": "b"}


def test_seeds_and_captions_have_orders_of_their_own() -> None:
    assert captions.orders(7, TAGS, 1) != captions.orders(8, TAGS, 1)
    assert captions.orders(7, "a, b, c, d", 0) != captions.orders(7, "a, b, c, d ", 0)


@given(st.lists(st.sampled_from(["a", "b", "cat on a mat", "d d", "e", ""]), max_size=7), st.integers(0, 4))
def test_orders_are_unique_keep_their_beginning_and_lose_nothing(parts: list[str], keep: int) -> None:
    caption = ",".join(f" {part} " for part in parts)
    words = [part for part in parts if part]
    found = captions.orders(3, caption, keep)
    assert found == captions.orders(3, caption, keep)
    assert 1 <= len(found) == len(set(found)) <= captions.ORDERS
    for one in found:
        pieces = one.split(", ") if one else []
        assert sorted(pieces) == sorted(words)
        assert pieces[:keep] == words[:keep]
    if len(set(words[keep:])) == len(words[keep:]) > 3:
        assert len(found) == captions.ORDERS


def test_few_parts_have_few_orders() -> None:
    assert captions.orders(0, "a dog", 0) == ("a dog",)
    assert captions.orders(0, "", 0) == captions.orders(0, ", ,,", 2) == ("",)
    assert set(captions.orders(0, "a, b", 0)) == {"a, b", "b, a"}
    assert captions.orders(0, "a, b, c", 2) == ("a, b, c",)
    assert captions.orders(0, "a, a, a, a, a", 0) == ("a, a, a, a, a",)


def test_folders_named_as_concepts() -> None:
    assert concepts.of("10_sks dog/a.png") == Concept(10, "sks dog")
    assert concepts.of("10_sks dog/close/a.png") == Concept(10, "sks dog")
    assert concepts.of("10_sks dog/3_face/a.png") == Concept(3, "face")
    assert concepts.of("0_dog/a.png") == Concept(0, "dog")
    for plain in ("a.png", "dog/a.png", "10_dog.png", "2023_summer/a.png", "5_/a.png", "x10_dog/a.png"):
        assert concepts.of(plain) == Concept()
