"""The container images of a cluster whose containers are processes: a table from image name to what is run.

An image that is not in the table cannot be pulled (`ErrImagePull`), as with a registry that does not have it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localcluster.places import REPOSITORY

TRAINER = "localhost/lorafinetune-trainer:dev"
SHELL = "localhost/shell:dev"


@dataclass(frozen=True, slots=True)
class Image:
    """What an image brings: ENTRYPOINT, CMD and ENV. A container's `command` and `args` take their places."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command_line(self, command: list[str] | None, args: list[str] | None) -> list[str]:
        """Combine with a container's `command` and `args` as Kubernetes does: `command` alone drops CMD too."""
        if command:
            return [*command, *(args or [])]
        return [*self.entrypoint, *(args if args else self.command)]


def default_images() -> dict[str, Image]:
    """Return the images that every cluster has: the trainer of this checkout, and a plain shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    packages = os.pathsep.join(str(REPOSITORY / folder) for folder in ("trainer-image", "operator"))
    # One thread each: on a machine that is busy with a whole cluster, threads that wait for one another crawl.
    trainer = {"PATH": path, "PYTHONPATH": packages, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return {
        TRAINER: Image((sys.executable, "-m", "lorafinetune_trainer"), (), trainer),
        SHELL: Image((), ("sh",), {"PATH": path}),
    }


def write_images(path: Path, images: Mapping[str, Image]) -> None:
    """Write the table; nodes read it anew each time that they start a container."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({name: asdict(image) for name, image in images.items()}, indent=1))
    partial.replace(path)


def read_images(path: Path) -> dict[str, Image]:
    """Read the table."""
    return {
        name: Image(tuple(image["entrypoint"]), tuple(image["command"]), image["environment"])
        for name, image in json.loads(path.read_text()).items()
    }
