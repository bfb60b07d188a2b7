"""Shapes, cuts and what SDXL is told of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafinetune_trainer.data import buckets
from lorafinetune_trainer.data.buckets import Place, Size

EDGES = st.integers(32, 6000)


def test_buckets_of_1024() -> None:
    """A run that was begun with one release goes on with the next: these are part of the format."""
    wide = [(1408, 704), (1344, 768), (1280, 768), (1216, 832), (1152, 896), (1088, 960)]
    assert list(buckets.buckets(1024)) == sorted([(1024, 1024), *wide, *((two, one) for one, two in wide)])
    assert buckets.buckets(64) == ((64, 64),)


@pytest.mark.parametrize(
    ("original", "bucket"),
    [
        ((1024, 1024), (1024, 1024)),
        ((4000, 3000), (1152, 896)),
        ((3000, 4000), (896, 1152)),
        ((6000, 4000), (1216, 832)),
        ((1920, 1080), (1344, 768)),
        ((5000, 1000), (1408, 704)),
        ((100, 101), (1024, 1024)),
    ],
)
def test_the_nearest_shape(original: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert buckets.nearest(Size(*original), 1024) == bucket


@given(EDGES, EDGES, st.sampled_from([64, 256, 512, 1024]), st.booleans(), st.sampled_from([None, "a", "b"]))
@settings(max_examples=150, deadline=None)
def test_every_frame_covers_its_bucket_and_every_cut_lies_within(
    width: int, height: int, resolution: int, square: bool, crop_key: str | None
) -> None:
    original = Size(width, height)
    frame = buckets.frame(original, resolution, square=square, crop_key=crop_key)
    target, scaled = frame.target, frame.scaled
    assert all(edge % 64 == 0 for edge in target)
    assert target.width * target.height <= resolution**2
    assert max(target) <= 2 * min(target)
    assert not square or target == (resolution, resolution)
    assert scaled.width >= target.width
    assert scaled.height >= target.height
    assert scaled.width == target.width or scaled.height == target.height
    assert 1 <= len(frame.cuts) == len(set(frame.cuts)) <= (1 if crop_key is None else 4)
    for cut in frame.cuts:
        assert 0 <= cut.left <= scaled.width - target.width
        assert 0 <= cut.top <= scaled.height - target.height
        straight, mirrored = frame.time_ids(cut), frame.time_ids(cut, mirrored=True)
        assert straight[:2] == (height, width)
        assert straight[2:4] == (cut.top, cut.left)
        assert straight[4:] == (target.height, target.width) == mirrored[4:]
        assert straight[3] + mirrored[3] == scaled.width - target.width


def test_a_cut_in_the_middle_and_what_it_loses() -> None:
    frame = buckets.frame(Size(2000, 1000), 512, square=True)
    assert (frame.scaled, frame.cuts) == ((1024, 512), ((256, 0),))
    assert frame.lost == 0.5
    assert frame.enlarged == pytest.approx(0.512)
    assert frame.time_ids(frame.cuts[0]) == (1000, 2000, 0, 256, 512, 512)
    assert buckets.frame(Size(256, 300), 512, square=True).enlarged == 2.0


def test_cuts_that_must_never_change() -> None:
    def cuts(key: str | None, seed: int = 7) -> tuple[Place, ...]:
        return buckets.frame(Size(2000, 1000), 512, square=True, crop_key=key, seed=seed).cuts

    assert [cut.left for cut in cuts("a")] == [250, 199, 476, 178]
    assert len({cuts("a"), cuts("b"), cuts("a", seed=8), cuts(None)}) == 4
    assert buckets.frame(Size(512, 512), 512, square=True, crop_key="a").cuts == ((0, 0),)
