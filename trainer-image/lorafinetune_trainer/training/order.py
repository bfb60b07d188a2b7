"""What is drawn when: order, noise, timesteps, cuts, flips, captions, initial weights; pure, of (seed, purpose, place).

Nothing here has state, so a resume at any step draws what the undisturbed run would have drawn, and nothing of it needs
saving. The generator is counter-based (Philox), keyed per purpose and drawn on the CPU, so neither the GPU nor the
number of images per pass changes a single draw. Integers come from the raw stream, normals in 64 bits, cast afterwards.
"""

from __future__ import annotations

import hashlib
import math
from enum import StrEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PERMUTATION: Final = "permutation"
_NOISE: Final = "noise"
_POSTERIOR: Final = "posterior"
_TIMESTEP: Final = "timestep"
_FLIP: Final = "flip"
_CUT: Final = "cut"
_CAPTION: Final = "caption"
_DROP: Final = "drop"
_OFFSET: Final = "offset"
_INITIAL: Final = "initial"
_PICTURE: Final = "picture"


class Kind(StrEnum):
    """What a slot shows. Each kind has an order and draws of its own: the first word of every purpose."""

    INSTANCE = ""
    """An image of what is learnt."""
    CLASS = "class/"
    """An image of its class, for prior preservation. Slots of class images are counted from 0, beside the others."""


def stream(seed: int, purpose: str, step: int = 0, slot: int = 0) -> np.random.Philox:
    """Return the stream of random words that belongs to one purpose at one place."""
    key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16]
    # The two low words of the counter count the words drawn; the two high ones say where.
    return np.random.Philox(
        key=np.frombuffer(key, dtype="<u8").astype(np.uint64), counter=np.array([0, 0, slot, step], dtype=np.uint64)
    )


@lru_cache(maxsize=8)
def permutation(seed: int, dataset_digest: str, epoch: int, images: int, kind: Kind = Kind.INSTANCE) -> tuple[int, ...]:
    """Return the order in which *epoch* shows the data set's *images*: each exactly once."""
    words = stream(seed, f"{kind}{_PERMUTATION}/{dataset_digest}", epoch).random_raw(images)
    return tuple(int(one) for one in np.argsort(words, kind="stable"))


def sample(
    seed: int, dataset_digest: str, images: int, *, step: int, slot: int, batch: int, kind: Kind = Kind.INSTANCE
) -> int:
    """Return the index of the image at *slot* (0 ... batch - 1) of *step* (0, 1 ...).

    A step takes the next *batch* images of the epochs laid end to end, so no group of images ends at an epoch's border.
    An image that an epoch shows several times counts as so many images: the caller lists its index as often.
    """
    epoch, place = divmod(step * batch + slot, images)
    return permutation(seed, dataset_digest, epoch, images, kind)[place]


def noise(seed: int, step: int, slot: int, shape: tuple[int, ...], kind: Kind = Kind.INSTANCE) -> NDArray[np.float64]:
    """Return the standard normal noise that is added to the latents at this place."""
    return _normal(seed, kind + _NOISE, step, slot, shape)


def offset(seed: int, step: int, slot: int, channels: int, kind: Kind = Kind.INSTANCE) -> NDArray[np.float64]:
    """Return the standard normal values, (channels, 1, 1), that shift the noise of a whole picture at this place."""
    return _normal(seed, kind + _OFFSET, step, slot, (channels, 1, 1))


def posterior(
    seed: int, step: int, slot: int, shape: tuple[int, ...], kind: Kind = Kind.INSTANCE
) -> NDArray[np.float64]:
    """Return the standard normal values that pick the latents out of the image's posterior at this place."""
    return _normal(seed, kind + _POSTERIOR, step, slot, shape)


def timestep(seed: int, step: int, slot: int, timesteps: int, kind: Kind = Kind.INSTANCE) -> int:
    """Return a timestep, 0 ... timesteps - 1, evenly distributed."""
    return _word(seed, kind + _TIMESTEP, step, slot) % timesteps


def flip(seed: int, step: int, slot: int, kind: Kind = Kind.INSTANCE) -> bool:
    """Whether the image at this place is mirrored: heads or tails."""
    return bool(_word(seed, kind + _FLIP, step, slot) >> 63)


def cut(seed: int, step: int, slot: int, cuts: int, kind: Kind = Kind.INSTANCE) -> int:
    """Return which of its *cuts*, 0 ... cuts - 1, the image at this place is shown in."""
    return _word(seed, kind + _CUT, step, slot) % cuts


def caption(seed: int, step: int, slot: int, orders: int, kind: Kind = Kind.INSTANCE) -> int:
    """Return which of its *orders*, 0 ... orders - 1, the caption at this place stands in."""
    return _word(seed, kind + _CAPTION, step, slot) % orders


def drops(seed: int, step: int, slot: int, share: float, kind: Kind = Kind.INSTANCE) -> bool:
    """Whether the caption at this place is left out: with probability *share*, 0 ... 1."""
    return (_word(seed, kind + _DROP, step, slot) >> 11) * 2.0**-53 < share


def picture(seed: int, number: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the standard normal noise that picture *number* begins with. It takes no part in the training."""
    return _normal(seed, _PICTURE, 0, number, shape)


def initial_weight(seed: int, name: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return a LoRA's initial down matrix, (rank, inputs): uniform within one over the root of the inputs."""
    words = np.asarray(stream(seed, f"{_INITIAL}/{name}").random_raw(math.prod(shape)))
    unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2.0 * unit - 1.0) / math.sqrt(shape[1])).reshape(shape)


def _normal(seed: int, purpose: str, step: int, slot: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.random.Generator(stream(seed, purpose, step, slot)).standard_normal(shape)


def _word(seed: int, purpose: str, step: int, slot: int) -> int:
    return int(stream(seed, purpose, step, slot).random_raw())
