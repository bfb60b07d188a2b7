"""Where localcluster keeps things outside the repository."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = Path(__file__).resolve().parent / "tools"


def cache_directory() -> Path:
    """Return the cache (programs, port claims, clusters): `LORAFINETUNE_CACHE`, else `~/.cache/lorafinetune`."""
    return Path(os.environ.get("LORAFINETUNE_CACHE") or Path.home() / ".cache" / "lorafinetune").absolute()


def own_environment() -> dict[str, str]:
    """Return the environment for a program of this package: ours, in which this checkout is found first."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def cluster_directory(name: str) -> Path:
    """Return the state directory of the cluster of this name."""
    return cache_directory() / "clusters" / name
