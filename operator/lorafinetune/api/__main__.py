"""``python -m lorafinetune.api [ROOT]``: write the generated files below the repository's root (here by default)."""

from __future__ import annotations

import sys
from pathlib import Path

from lorafinetune.api.render import files


def main(root: Path) -> None:
    """Write every generated file that differs, and say which."""
    for name, text in files(root).items():
        path = root / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
