"""What is really in the bucket: manifests and files, verified against the hashes that name them."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import ArtifactEntry
from lorafinetune.contract.manifest import MAX_MANIFEST_BYTES, Manifest
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket

PUT_ATTEMPTS: Final = 5
"""Tries to put a manifest whose answers were lost."""


def read_manifest(bucket: Bucket, folder: str, sha256: str) -> Manifest:
    """Return the manifest of *folder*, whose bytes must have the hash that the head names; raises NotVerified.

    One that another version of lorafinetune wrote raises OtherVersion.
    """
    key = folder + layout.MANIFEST
    try:
        body, _ = bucket.get(key, limit=MAX_MANIFEST_BYTES)
    except errors.ObjectMissing as error:
        raise errors.NotVerified(f"{bucket.uri(key)} is missing, though the head names it") from error
    found = canonical.sha256(body)
    if found != sha256:
        raise errors.NotVerified(f"{bucket.uri(key)} has SHA-256 {found}, the head names {sha256}")
    return parse_manifest(body, bucket.uri(key))


def parse_manifest(body: bytes, where: str) -> Manifest:
    """Return the manifest that *body* is, which lies at *where*; raises NotVerified, or OtherVersion, where it is none.

    Only for bytes whose hash is right: others say nothing about their version.
    """
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        if any(one["loc"] == ("version",) for one in error.errors()):
            raise errors.OtherVersion(
                f"{where} was written by another version of lorafinetune: use that one, or a newer one"
            ) from error
        raise errors.NotVerified(f"{where} is not a manifest: {error.errors()[0]['msg']}") from error


def read_file(bucket: Bucket, folder: str, *, name: str, size: int, sha256: str) -> bytes:
    """Return the bytes of one file of a manifest, size and hash verified; raises NotVerified."""
    key = folder + name
    try:
        body, _ = bucket.get(key, limit=size)
    except errors.ObjectMissing as error:
        raise errors.NotVerified(f"{bucket.uri(key)} is missing, though its manifest names it") from error
    if len(body) != size or canonical.sha256(body) != sha256:
        raise errors.NotVerified(f"{bucket.uri(key)} ({len(body)} bytes) is not what its manifest names ({size} bytes)")
    return body


def verify(bucket: Bucket, folder: str, sha256: str) -> Manifest:
    """Read and hash every file of *folder*, one at a time; return its manifest or raise NotVerified."""
    manifest = read_manifest(bucket, folder, sha256)
    for file in manifest.files:
        read_file(bucket, folder, name=file.name, size=file.size, sha256=file.sha256)
    return manifest


def put_folder(bucket: Bucket, folder: str, manifest: Manifest) -> str:
    """Put the manifest of a folder whose files are all there, once; return its hash, for the head.

    One that is there already stays, if it names the same files: the saver and the rescue at SIGTERM may save the same
    step at the same time, and a manifest that changed under the head's hash would be a checkpoint lost. Raises
    NotVerified if it names others, Unreachable if nobody can tell.
    """
    key = folder + layout.MANIFEST
    body = canonical.encode(manifest.model_dump(mode="json", by_alias=True, exclude_none=True))
    for _ in range(PUT_ATTEMPTS):
        try:
            bucket.create(key, body)
        except errors.Conflict:
            pass
        except errors.AnswerLost:
            continue
        there, _ = bucket.get(key, limit=MAX_MANIFEST_BYTES)
        try:
            same = Manifest.model_validate_json(there).files == manifest.files
        except ValidationError:
            same = False
        if not same:
            raise errors.NotVerified(f"{bucket.uri(key)} is there already, and names other files")
        return canonical.sha256(there)
    raise errors.Unreachable(f"{bucket.uri(key)} could not be written in {PUT_ATTEMPTS} tries")


def verified(bucket: Bucket, parent: str, run_uid: str) -> list[tuple[Manifest, str]]:
    """Return the folders below *parent* whose bytes are what their manifests name, newest step first."""
    found: list[tuple[Manifest, str, str]] = []
    for one in bucket.walk(parent):
        folder, slash, name = one.key.rpartition("/")
        if not slash or name != layout.MANIFEST:
            continue
        try:
            body, _ = bucket.get(one.key, limit=MAX_MANIFEST_BYTES)
            manifest = Manifest.model_validate_json(body)
        except (errors.ObjectMissing, errors.NotVerified, ValidationError):
            continue
        if manifest.run_uid == run_uid:
            found.append((manifest, canonical.sha256(body), f"{folder}/"))
    found.sort(key=lambda one: (one[0].step, one[0].attempt), reverse=True)
    whole: list[tuple[Manifest, str]] = []
    for manifest, sha256, folder in found:
        try:
            verify(bucket, folder, sha256)
        except errors.NotVerified:
            continue
        whole.append((manifest, sha256))
    return whole


def newest_artifact(bucket: Bucket, run_uid: str) -> ArtifactEntry | None:
    """Return the whole artifact of the highest step, found by its manifest: for when no head names one."""
    for manifest, sha256 in verified(bucket, layout.ARTIFACTS, run_uid):
        return ArtifactEntry(
            attempt=manifest.attempt, step=manifest.step, manifest_sha256=sha256, size=manifest.total_bytes
        )
    return None
