"""The object that says which image goes with which latents and prompts: the table of contents of the conditioning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorafinetune.contract.manifest import File
from lorafinetune.contract.model import OpenModel


class Item(OpenModel):
    """One image, and the names of its objects."""

    name: str
    latents: str
    prompts: str | None = None
    """Absent where the text encoders are trained."""
    captions: list[str]
    repeats: int = 1
    made: File | None = None
    """The object that is the image itself, where the run has made it."""


class Said(OpenModel):
    """One prompt that goes with no image."""

    words: str
    prompts: str


class Index(OpenModel):
    """Everything that the run draws from."""

    version: Literal[1] = 1
    instances: list[Item]
    classes: list[Item] = Field(default_factory=list)
    empty: Said | None = None
    """Where captions are dropped."""
    validation: list[Said] = Field(default_factory=list)
    """The prompts of the validation pictures; the negative one last."""
