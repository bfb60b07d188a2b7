"""What is wrong with a data set, all of it at once and by file name; and what is odd about it, as remarks.

Nothing here has cost GPU time, and nothing has been moved but the images themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from lorafinetune.contract.event import MAX_MESSAGE
from lorafinetune_trainer.data.buckets import Frame
from lorafinetune_trainer.failure import Failure, invalid

if TYPE_CHECKING:
    from lorafinetune_trainer.data.dataset import Dataset

NAMES: Final = 5
"""File names that one remark lists."""
MUCH: Final = 0.25
"""Share of an image's area that is worth a remark when it is cut away."""
MAX_SCALED: Final = 64 * 1024 * 1024
"""Pixels of an image that was scaled to cover its shape: narrower strips than that take gigabytes of memory."""
_ROOM: Final = MAX_MESSAGE - 64


def joined(problems: Mapping[str, Failure], missing: str, remedy: str) -> list[Failure]:
    """Return the *problems* of files, by name, in that order; images without a caption (*missing*) are one of them.

    *remedy* is the field that would give them one.
    """
    silent = [name for name in sorted(problems) if problems[name].reason == missing]
    if len(silent) < 2:
        return [problems[name] for name in sorted(problems)]
    file = PurePosixPath(silent[0]).with_suffix(".txt")
    one = invalid(
        missing,
        f"{len(silent)} images have no caption: set {remedy}, or put a file such as {file} beside each: {some(silent)}",
    )
    others = {name: problem for name, problem in problems.items() if problem.reason != missing}
    every = {**others, silent[0]: one}
    return [every[name] for name in sorted(every)]


def refuse(problems: Sequence[Failure], files: int | None = None) -> Failure:
    """Return one failure that tells of all *problems*, as many by name as a message holds; its reason is the first's.

    Problems come in the order of their files' names. *files*: how many they are about, where not one each.
    """
    if len(problems) == 1:
        return problems[0]
    words = f"{files or len(problems)} files cannot be used: "
    told = 0
    for problem in problems:
        if len(words) + len(problem.message) > _ROOM and told:
            break
        words += ("; " if told else "") + problem.message
        told += 1
    left = len(problems) - told
    return invalid(problems[0].reason, words[:_ROOM] + (f"; and {left} more" if left else ""))


def strips(frames: Mapping[str, Frame]) -> list[Failure]:
    """Return what is wrong with images, by name, that are so long and narrow that scaling them would fill the memory.

    Most of such an image would be cut away, too.
    """
    return [
        invalid(
            "LongImage",
            f"{name} has {frame.original.width} x {frame.original.height} pixels: so long and narrow an image would be "
            f"scaled to {frame.scaled.width} x {frame.scaled.height} and nearly all of it cut away; cut it to the part "
            "that you mean, or remove it",
        )
        for name, frame in sorted(frames.items())
        if frame.scaled.width * frame.scaled.height > MAX_SCALED
    ]


def some(names: Iterable[str]) -> str:
    """Return the first few *names*, and how many more there are."""
    every = list(names)
    left = len(every) - NAMES
    return ", ".join(every[:NAMES]) + (f", and {left} more" if left > 0 else "")


def duplicates(pixels: Mapping[str, str]) -> list[str]:
    """Return remarks on the names whose *pixels* (a digest of them) are equal."""
    groups: dict[str, list[str]] = {}
    for name in sorted(pixels):
        groups.setdefault(pixels[name], []).append(name)
    twins = [" = ".join(group) for group in groups.values() if len(group) > 1]
    return [f"the same picture lies there more than once, and is shown as often: {some(twins)}"] if twins else []


def odd_shapes(frames: Mapping[str, Frame]) -> list[str]:
    """Return remarks on images, by name, that are scaled up, and on those of which much is cut away; worst first."""
    found, every = [], counted(len(frames), "image")
    small = sorted((name for name in frames if frames[name].enlarged > 1), key=lambda name: -frames[name].enlarged)
    if small:
        each = some(f"{name} by {frames[name].enlarged:.1f}" for name in small)
        found.append(f"{len(small)} of {every} scaled up, because smaller than what it is trained at: {each}")
    if cut := sorted((name for name in frames if frames[name].lost > MUCH), key=lambda name: -frames[name].lost):
        each = some(f"{name} by {frames[name].lost:.0%}" for name in cut)
        found.append(f"{len(cut)} of {every} cut by more than {MUCH:.0%} of the area: {each}")
    return found


def summary(dataset: Dataset, frames: Mapping[str, Frame], what: str) -> str:
    """Return one sentence on the images that were found; *what* names one of them."""
    shapes = len({frame.target for frame in frames.values()})
    words = f"{counted(len(dataset.images), what)} in {counted(shapes, 'shape')}"
    return words + (f", shown {dataset.shown} times an epoch" if dataset.shown != len(dataset.images) else "")


def counted(number: int, what: str) -> str:
    """Return ``1 image``, ``2 images`` ..."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
