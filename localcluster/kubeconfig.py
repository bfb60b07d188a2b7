"""Kubeconfig files: how clients, people's and ours, find and enter a cluster."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from localcluster.pki import Certificate, write_private


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def write_kubeconfig(
    path: Path,
    *,
    name: str,
    server: str,
    authority: Path,
    client: Certificate | None = None,
    token: str | None = None,
    namespace: str = "default",
) -> Path:
    """Write a kubeconfig that holds all it needs (no references to other files), readable by its owner only."""
    user: dict[str, Any] = {}
    if client:
        user = {
            "client-certificate-data": _inline(client.certificate),
            "client-key-data": _inline(client.key),
        }
    if token:
        user = {"token": token}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": server, "certificate-authority-data": _inline(authority)}},
        ],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
    return path
