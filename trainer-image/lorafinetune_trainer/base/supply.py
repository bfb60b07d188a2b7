"""The base model for this attempt: from what the run keeps in its bucket, else from where the spec says."""

from __future__ import annotations

import time
from collections.abc import Callable

from lorafinetune.contract.runconfig import BaseModelSource
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import fetching, kept
from lorafinetune_trainer.base.files import TRAINED, Files
from lorafinetune_trainer.base.places import Means


def keeps(source: BaseModelSource) -> bool:
    """Whether the run keeps what a resume needs of this base model: only what comes from a hub would come from afar."""
    return source.cache and source.source.startswith("hf://")


def bring(
    source: BaseModelSource,
    parts: frozenset[str],
    means: Means,
    *,
    half: bool,
    bucket: Bucket,
    digest: str | None,
    note: Callable[[str], None],
) -> Files:
    """Return *parts* of the base model on this machine; raises Failure for what the user must mend.

    *bucket* stands on the run's prefix, *digest* is that of the base model in the run's plan, if it has one. What was
    fetched, and from where, is told by *note*.
    """
    if digest is not None and keeps(source):
        # A folder of their own: a file that is in use must not be written anew.
        folder = means.scratch / "kept" / "-".join(sorted(parts))
        found = kept.restore(bucket, digest, parts, folder, traffic=means.traffic, note=note)
        if found is not None:
            return found
    began, before = time.monotonic(), means.traffic.fetched
    files = fetching.fetch(source, parts, means, half=half)
    if count := means.traffic.fetched - before:
        note(f"base model: {count} bytes from {source.source} in {time.monotonic() - began:.1f} s")
    elif parts >= TRAINED:  # the pictures' VAE comes from there too
        note(f"base model: {source.source}, on this machine")
    return files
