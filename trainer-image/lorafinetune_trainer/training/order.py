"""What is drawn when: order, noise, timesteps, flips and initial weights as pure functions of (seed, purpose, place).

Nothing here has state, so a resume at any step draws what the undisturbed run would have drawn, and nothing of it needs
saving. The generator is counter-based (Philox), keyed per purpose and drawn on the CPU, so neither the GPU nor the
number of images per pass changes a single draw. Integers come from the raw stream, normals in 64 bits, cast afterwards.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PERMUTATION: Final = "permutation"
_NOISE: Final = "noise"
_POSTERIOR: Final = "posterior"
_TIMESTEP: Final = "timestep"
_FLIP: Final = "flip"
_INITIAL: Final = "initial"
_PICTURE: Final = "picture"


def stream(seed: int, purpose: str, step: int = 0, slot: int = 0) -> np.random.Philox:
    """Return the stream of random words that belongs to one purpose at one place."""
    key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16]
    # The two low words of the counter count the words drawn; the two high ones say where.
    return np.random.Philox(
        key=np.frombuffer(key, dtype="<u8").astype(np.uint64), counter=np.array([0, 0, slot, step], dtype=np.uint64)
    )


@lru_cache(maxsize=4)
def permutation(seed: int, dataset_digest: str, epoch: int, images: int) -> tuple[int, ...]:
    """Return the order in which *epoch* shows the data set's *images*: each exactly once."""
    words = stream(seed, f"{_PERMUTATION}/{dataset_digest}", epoch).random_raw(images)
    return tuple(int(one) for one in np.argsort(words, kind="stable"))


def sample(seed: int, dataset_digest: str, images: int, *, step: int, slot: int, batch: int) -> int:
    """Return the index of the image at *slot* (0 ... batch - 1) of *step* (0, 1 ...).

    A step takes the next *batch* images of the epochs laid end to end, so no group of images ends at an epoch's border.
    """
    epoch, place = divmod(step * batch + slot, images)
    return permutation(seed, dataset_digest, epoch, images)[place]


def noise(seed: int, step: int, slot: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the standard normal noise that is added to the latents at this place."""
    return _normal(seed, _NOISE, step, slot, shape)


def posterior(seed: int, step: int, slot: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the standard normal values that pick the latents out of the image's posterior at this place."""
    return _normal(seed, _POSTERIOR, step, slot, shape)


def timestep(seed: int, step: int, slot: int, timesteps: int) -> int:
    """Return a timestep, 0 ... timesteps - 1, evenly distributed."""
    return int(stream(seed, _TIMESTEP, step, slot).random_raw()) % timesteps


def flip(seed: int, step: int, slot: int) -> bool:
    """Whether the image at this place is mirrored: heads or tails."""
    return bool(int(stream(seed, _FLIP, step, slot).random_raw()) >> 63)


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
