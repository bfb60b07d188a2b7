"""Folders as trainers put them: files, and a manifest that names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafinetune.contract import canonical
from lorafinetune.contract.manifest import File, Manifest
from lorafinetune.storage import inventory
from lorafinetune.storage.bucket import Bucket


def put_files(bucket: Bucket, folder: str, files: Mapping[str, bytes], **manifest: Any) -> str:
    """Put *files* with a manifest of that run, attempt and step; return the manifest's hash."""
    for name, body in files.items():
        bucket.put(folder + name, body)
    named = [File(name=name, size=len(body), sha256=canonical.sha256(body)) for name, body in files.items()]
    return inventory.put_folder(bucket, folder, Manifest(files=named, **manifest))
