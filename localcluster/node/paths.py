"""Where a container's mount paths really are, and how its process is told.

A process without a mount namespace sees the machine's own paths. So the values of environment variables and arguments
in which a mount path of the container stands are rewritten to the real path. What a program has built in, it does not
find: this is the one thing in which a pod here differs from a pod in a container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# A mount path is one where no other path runs into it: `/data` in `/data/x`, `--dir=/data`, `"file:///data"`,
# but not in `s3://bucket/data`, `/my/data` or `/database`.
_BEFORE = r"(?:(?<=file://)|(?<![\w./\-]))"
_AFTER = r"(?![\w\-]|\.\w)"


@dataclass(frozen=True, slots=True)
class PathMap:
    """The mount paths of one container, to where they really are; and addresses, to where the node forwards them."""

    mounts: Mapping[str, Path]
    routes: Mapping[str, str]

    def translate(self, text: str) -> str:
        """Rewrite every mount path and routed address in a value; the longest mount path that fits wins."""
        places = {path.rstrip("/") or "/": str(real) for path, real in self.mounts.items()}
        places.pop("/", None)
        if places:
            longest_first = sorted(places, key=len, reverse=True)
            pattern = _BEFORE + "(" + "|".join(map(re.escape, longest_first)) + ")" + _AFTER
            text = re.sub(pattern, lambda found: places[found[1]], text)
        for address, forwarded in self.routes.items():
            text = re.sub(rf"(?<![\w.]){re.escape(address)}(?!\d)", forwarded, text)
        return text
