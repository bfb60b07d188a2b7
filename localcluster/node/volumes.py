"""A pod's volumes: ConfigMap, Secret, projected (with service account tokens), downward API, emptyDir, hostPath."""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from localcluster.node.environment import Fetch, binary_content, field, resource_field

Json = dict[str, Any]
RequestToken = Callable[[Json], Awaitable[Json]]
"""Sends a TokenRequest spec (audiences, expirationSeconds) for the pod's service account, returns its status."""


class VolumeError(Exception):
    """A volume cannot be set up now (`FailedMount`); the message is a kubelet's."""


class Volumes:
    """The volumes of one pod, rendered below one directory and kept fresh while it runs."""

    def __init__(
        self, pod: Json, directory: Path, fetch: Fetch, request_token: RequestToken, *,
        capacity: Mapping[str, str], refresh_fraction: float,
    ) -> None:  # fmt: skip
        self.pod = pod
        self.directory = directory
        self.fetch = fetch
        self.request_token = request_token
        self.capacity = capacity
        self.refresh_fraction = refresh_fraction
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}

    async def render(self) -> None:
        """Set up every volume, or bring it up to date. Raises VolumeError."""
        for volume in self.pod["spec"].get("volumes") or []:
            await self._render(volume)

    def seconds_to_refresh(self) -> float | None:
        """Return how long the oldest token may still be used before it must be renewed; None without tokens."""
        times = [due for _, due in self._tokens.values()]
        return max(0.0, min(times) - time.time()) if times else None

    def path(self, name: str) -> Path:
        """Return where a volume really is."""
        for volume in self.pod["spec"].get("volumes") or []:
            if volume["name"] == name and "hostPath" in volume:
                return Path(volume["hostPath"]["path"])
        return self.directory / name

    def mounts(self, container: Json) -> dict[str, Path]:
        """Return a container's mount paths to where they really are."""
        found: dict[str, Path] = {}
        for mount in container.get("volumeMounts") or []:
            real = self.path(mount["name"]) / mount.get("subPath", "")
            if not real.exists():
                real.mkdir(parents=True, exist_ok=True)
            found[mount["mountPath"]] = real
        return found

    async def _render(self, volume: Json) -> None:
        name = volume["name"]
        target = self.directory / name
        if "emptyDir" in volume:
            target.mkdir(parents=True, exist_ok=True)
        elif "hostPath" in volume:
            if not await asyncio.to_thread(Path(volume["hostPath"]["path"]).exists):
                raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : hostPath type check failed')
        elif "projected" in volume:
            files: dict[str, bytes] = {}
            for source in volume["projected"].get("sources") or []:
                files |= await self._source(name, source)
            write_files(target, files, volume["projected"].get("defaultMode", 0o644))
        elif any(kind in volume for kind in ("configMap", "secret", "downwardAPI")):
            kind = next(kind for kind in ("configMap", "secret", "downwardAPI") if kind in volume)
            content = volume[kind]
            files = await self._source(name, {kind: {"name": content.get("secretName"), **content}})
            write_files(target, files, content.get("defaultMode", 0o644))
        else:
            kinds = ", ".join(sorted(set(volume) - {"name"}))
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {kinds} volumes do not exist here')

    async def _source(self, volume: str, source: Json) -> dict[str, bytes]:
        """Return the files of one source of a projected volume; plain volumes are the same with one source."""
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: await self._token(volume, source["serviceAccountToken"])}
        if "downwardAPI" in source:
            return self._downward(source["downwardAPI"])
        kind = "configmaps" if "configMap" in source else "secrets"
        reference = source.get("configMap") or source.get("secret")
        if not reference:
            raise VolumeError(
                f'MountVolume.SetUp failed for volume "{volume}" : {sorted(source)} is not supported here'
            )
        content = await self.fetch(kind, reference["name"])
        if content is None:
            if reference.get("optional"):
                return {}
            what = f'{kind.removesuffix("s")} "{reference["name"]}" not found'
            raise VolumeError(f'MountVolume.SetUp failed for volume "{volume}" : {what}')
        files = binary_content(kind, content)
        items = reference.get("items")
        if not items:
            return files
        absent = [item["key"] for item in items if item["key"] not in files]
        if absent and not reference.get("optional"):
            what = f"references non-existent {kind.removesuffix('s')} key: {absent[0]}"
            raise VolumeError(f'MountVolume.SetUp failed for volume "{volume}" : {what}')
        return {item["path"]: files[item["key"]] for item in items if item["key"] in files}

    def _downward(self, source: Json) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for item in source.get("items") or []:
            if "fieldRef" in item:
                files[item["path"]] = field(self.pod, item["fieldRef"]["fieldPath"]).encode()
            else:
                reference = item["resourceFieldRef"]
                files[item["path"]] = resource_field(self.pod, {"name": ""}, reference, self.capacity).encode()
        return files

    async def _token(self, volume: str, source: Json) -> bytes:
        """Return a token bound to the pod; the one at hand until it has used up its share of its life."""
        key = (volume, source["path"])
        if key in self._tokens and time.time() < self._tokens[key][1]:
            return self._tokens[key][0].encode()
        spec: Json = {"expirationSeconds": source.get("expirationSeconds", 3600)}
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        asked = time.time()
        status = await self.request_token(spec)
        expires = datetime.datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00")).timestamp()
        self._tokens[key] = (status["token"], asked + (expires - asked) * self.refresh_fraction)
        return str(status["token"]).encode()


def write_files(directory: Path, files: Mapping[str, bytes], mode: int) -> None:
    """Make a folder hold exactly these files (relative paths), each replaced as a whole, unchanged ones untouched."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        if path.is_file() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        partial.chmod(mode)
        partial.replace(path)
    for path in [found for found in directory.rglob("*") if found.is_file()]:
        if str(path.relative_to(directory)) not in files:
            path.unlink()
