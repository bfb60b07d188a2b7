"""Where a run's objects lie in its bucket. Keys are relative to the run's prefix unless a name says otherwise."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import urlsplit

UID_LENGTH: Final = 8
"""Characters of a run's uid that stand in its prefix."""
OWNER: Final = "owner.json"
HEAD: Final = "head.json"
CONDITIONING: Final = "conditioning/"
CHECKPOINTS: Final = "checkpoints/"
ARTIFACTS: Final = "artifacts/"
BASE: Final = "base/"
"""What a resume needs of a base model that came from a hub."""
INTERMEDIATE: Final = "intermediate/"
"""LoRAs of chosen steps, until they are published beside the artifact."""
SAMPLES: Final = "samples/"
"""Validation pictures."""
METRICS: Final = "metrics/"
"""JSON lines of the steps, and TensorBoard files."""
CLASS: Final = "class/"
"""In the artifact's folder: class images that the run made."""
MANIFEST: Final = "manifest.json"

LORA: Final = "pytorch_lora_weights.safetensors"
"""The LoRA in diffusers format, in the artifact's folder."""

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
"""Names of the files that are a data set's images, in lower case."""

MAX_PART_BYTES: Final = 64 * 1024 * 1024
"""No object is larger: a plain PUT is atomic and, unlike a multipart upload, cannot leak parts."""


class Location(NamedTuple):
    """A place in an object store: a bucket and a key or key prefix (without a leading slash)."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_uri(uri: str) -> Location:
    """Split ``s3://bucket/any/key``; ValueError names what is wrong with any other form."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{uri!r} is not of the form s3://bucket/prefix/")
    return Location(parts.netloc, parts.path.lstrip("/"))


def folder(uri: str) -> Location:
    """Like :func:`parse_uri`, for a prefix: a non-empty key ends with exactly one slash."""
    bucket, key = parse_uri(uri)
    key = key.rstrip("/")
    return Location(bucket, f"{key}/" if key else "")


def run_prefix(storage_uri: str, namespace: str, name: str, uid: str) -> Location:
    """Return the run's own prefix: ``<storage.uri>/<namespace>/<name>-<first 8 of uid>/``."""
    base = folder(storage_uri)
    return Location(base.bucket, f"{base.key}{namespace}/{name}-{uid[:UID_LENGTH]}/")


def checkpoint(attempt: int, step: int) -> str:
    """Return the folder of the checkpoint that *attempt* commits at *step*."""
    return f"{CHECKPOINTS}{attempt}-{step}/"


def artifact(attempt: int) -> str:
    """Return the folder of the artifact that *attempt* publishes."""
    return f"{ARTIFACTS}{attempt}/"


def conditioning(digest: str) -> str:
    """Return the key of one content-addressed conditioning object."""
    return f"{CONDITIONING}{digest}"
