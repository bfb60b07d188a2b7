"""The small immutable object that names a checkpoint's or artifact's files, sizes and hashes.

It is put after its files and named by the head afterwards: a checkpoint without it does not exist.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from lorafinetune.contract.model import OpenModel

MAX_FILES = 8192
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SaveReason(StrEnum):
    """Why a checkpoint was saved."""

    PERIODIC = "periodic"
    YIELD = "yield"
    FINAL = "final"


class File(OpenModel):
    """One object, by its name below the manifest's folder."""

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: Sha256


class Manifest(OpenModel):
    """What a folder holds and how it came about; equal folders may differ in it (times, attempts), files may not."""

    version: Literal[1] = 1
    kind: Literal["checkpoint", "artifact", "conditioning"]
    run_uid: str
    attempt: int
    step: int
    """Optimizer steps done."""
    updates: int
    """Steps that changed the weights (fp16 may skip some)."""
    reason: SaveReason | None = None
    files: Annotated[list[File], Field(max_length=MAX_FILES)]
    scalars: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """State that is no tensor: the scaler's scale, counters."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """For people: library versions, hardware, times."""

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files)
