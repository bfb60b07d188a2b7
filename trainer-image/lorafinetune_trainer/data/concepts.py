"""Folders that say how often their images are shown, and what they show: ``10_sks dog``, as in kohya's scripts.

A folder of another form says nothing: its images are shown once.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final, NamedTuple

_NAMED: Final = re.compile(r"([1-9][0-9]{0,2})_(\S.*)")
"""At most 999 times: a folder such as ``2023_summer`` is a year's, not a concept's."""


class Concept(NamedTuple):
    """What a folder says of the images in it."""

    repeats: int = 1
    """How often an epoch shows each."""
    words: str = ""
    """The caption of those that have none of their own."""


def of(name: str) -> Concept:
    """Return the concept of the image of that *name*: of the innermost folder that is named like one."""
    for folder in reversed(PurePosixPath(name).parent.parts):
        if found := _NAMED.fullmatch(folder):
            return Concept(int(found[1]), found[2].strip())
    return Concept()
