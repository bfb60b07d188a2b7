"""Helm on our chart: rendering values to objects, and running helm against a cluster."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from localcluster import binaries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lorafinetune"


class HelmError(RuntimeError):
    """Helm refused; the text is what it said."""


@functools.cache
def _program() -> Path:
    return binaries.find("helm")


def helm(*arguments: str | Path, kubeconfig: Path | None = None, values: Mapping[str, Any] | None = None) -> str:
    """Run helm with these values and return its output. Raises HelmError."""
    with tempfile.TemporaryDirectory() as home:
        own = {name: str(Path(home) / name) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
        given = ["--values", _written(Path(home), values)] if values is not None else []
        answer = subprocess.run(
            [_program(), *arguments, *given], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, **own, "KUBECONFIG": str(kubeconfig or Path(home) / "none")},
        )  # fmt: skip
    if answer.returncode != 0:
        raise HelmError(answer.stderr.strip() or answer.stdout)
    return answer.stdout


def _written(home: Path, values: Mapping[str, Any]) -> Path:
    path = home / "values.json"
    path.write_text(json.dumps(values))
    return path


def render(values: Mapping[str, Any] | None = None, *arguments: str, namespace: str = "ml") -> list[dict[str, Any]]:
    """Return the objects of a release named ``test``. Raises HelmError."""
    text = helm("template", "test", CHART, "--namespace", namespace, *arguments, values=values or {})
    return [one for one in yaml.safe_load_all(text) if one]


def only(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the one object of that kind (and name)."""
    [found] = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return found
