"""Shapes: what an image is scaled to, and where it is cut, so that the model sees as much of it as it can.

Pure. A bucket is a shape whose edges are multiples of 64 pixels and whose area is at most that of the square.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

from lorafinetune_trainer.training import order

STEP: Final = 64
"""Edges are multiples of so many pixels."""
MAX_ASPECT: Final = 2
"""No bucket is longer than so many times its width: what is longer is cut."""
CUTS: Final = 4
"""Places that an image is cut at, where crops are random."""


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


class Place(NamedTuple):
    """Where a cut begins in the scaled image."""

    left: int
    top: int


@dataclass(frozen=True, slots=True)
class Frame:
    """How one image becomes what the VAE sees."""

    original: Size
    scaled: Size
    target: Size
    cuts: tuple[Place, ...]
    """All different; one or more."""

    @property
    def enlarged(self) -> float:
        """By what factor the image is scaled up; below 1 where it is scaled down."""
        return max(self.scaled.width / self.original.width, self.scaled.height / self.original.height)

    @property
    def lost(self) -> float:
        """Share of the image's area that one cut leaves out."""
        return 1 - self.target.width * self.target.height / (self.scaled.width * self.scaled.height)

    def time_ids(self, cut: Place, *, mirrored: bool = False) -> tuple[int, int, int, int, int, int]:
        """Return what SDXL is told: original height and width, top and left of the cut, target height and width."""
        left = self.scaled.width - self.target.width - cut.left if mirrored else cut.left
        return (self.original.height, self.original.width, cut.top, left, self.target.height, self.target.width)


def frame(original: Size, resolution: int, *, square: bool, crop_key: str | None = None, seed: int = 0) -> Frame:
    """Return how an image of the size *original* is scaled and cut for *resolution*.

    It covers its bucket exactly along one edge. It is cut in the middle, or, with a *crop_key* (the image's digest), at
    up to four places that follow from *seed* and key.
    """
    target = Size(resolution, resolution) if square else nearest(original, resolution)
    scale = max(Fraction(target.width, original.width), Fraction(target.height, original.height))
    scaled = Size(max(target.width, round(original.width * scale)), max(target.height, round(original.height * scale)))
    spare = Place(scaled.width - target.width, scaled.height - target.height)
    if crop_key is None:
        cuts: tuple[Place, ...] = (Place(spare.left // 2, spare.top // 2),)
    else:
        words = [int(word) for word in order.stream(seed, f"crop/{crop_key}").random_raw(2 * CUTS)]
        pairs = zip(words[::2], words[1::2], strict=True)
        cuts = tuple(dict.fromkeys(Place(one % (spare.left + 1), two % (spare.top + 1)) for one, two in pairs))
    return Frame(original, scaled, target, cuts)


def nearest(original: Size, resolution: int) -> Size:
    """Return the bucket of *resolution* whose shape is nearest to that of *original*; of two, the larger, wider one."""
    width, height = original

    def distance(bucket: Size) -> tuple[Fraction, int, int]:
        shape = Fraction(bucket.width * height, bucket.height * width)
        return max(shape, 1 / shape), -bucket.width * bucket.height, -bucket.width

    return min(buckets(resolution), key=distance)


@lru_cache
def buckets(resolution: int) -> tuple[Size, ...]:
    """Return the shapes of *resolution*, widest last."""
    return tuple(sorted(frozenset(_shapes(resolution))))


def _shapes(resolution: int) -> Iterator[Size]:
    area = resolution * resolution
    for edge in range(STEP, resolution * MAX_ASPECT + 1, STEP):
        other = area // edge // STEP * STEP
        if other and max(edge, other) <= MAX_ASPECT * min(edge, other):
            yield Size(edge, other)
            yield Size(other, edge)
