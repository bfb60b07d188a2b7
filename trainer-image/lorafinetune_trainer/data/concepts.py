"""Folders that say how often their images are shown, and what they show: ``10_sks dog``, as in kohya's scripts.

A folder of another form says nothing: its images are shown once. Those of ``0_sks dog`` are left out, as there.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final, NamedTuple

_NAMED: Final = re.compile(r"(0|[1-9][0-9]{0,2})_(\S.*)")
"""At most 999 times: a folder such as ``2023_summer`` is a year's, not a concept's."""


class Concept(NamedTuple):
    """What a folder says of the images in it."""

    repeats: int = 1
    """How often an epoch shows each; those that are shown 0 times are left out."""
    words: str = ""
    """The caption of those that have none of their own."""


def of(name: str) -> Concept:
    """Return the concept of the image of that *name*: of the innermost folder that is named like one."""
    if found := _NAMED.fullmatch(folder(name)):
        return Concept(int(found[1]), found[2].strip())
    return Concept()


def folder(name: str) -> str:
    """Return the folder, without those around it, that says something of the image of that *name*; else nothing."""
    named = (one for one in reversed(PurePosixPath(name).parent.parts) if _NAMED.fullmatch(one))
    return next(named, "")
