"""Small image files of all kinds, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def picture(
    color: Any = "red", size: tuple[int, int] = (40, 34), kind: str = "PNG", mode: str = "RGB", **save: Any
) -> bytes:
    """Return an image file of one colour."""
    target = io.BytesIO()
    Image.new(mode, size, 0 if mode == "1" else color).save(target, kind, **save)
    return target.getvalue()


def fill(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write *files* into *folder* and return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder
