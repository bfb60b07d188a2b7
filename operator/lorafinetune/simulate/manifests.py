"""The manifests that a simulation is given: the same files that go to kubectl apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec


class OptionError(ValueError):
    """An option, or a file that it names, that cannot be used: the message names it and the fix."""


@dataclass(slots=True)
class Manifests:
    """What was in them; other kinds are let pass."""

    run: dict[str, Any] | None = None
    """The spec of the LoRAFineTune, if there is one."""
    pools: dict[str, GPUPoolSpec] = field(default_factory=dict)


def read(paths: Sequence[Path]) -> Manifests:
    """Read all documents of *paths*. Raises OptionError."""
    found = Manifests()
    for path in paths:
        for document in _documents(path):
            if not isinstance(document, dict):
                continue
            kind, spec = document.get("kind"), document.get("spec") or {}
            name = (document.get("metadata") or {}).get("name", "")
            try:
                if kind == "GPUPool":
                    found.pools[name] = GPUPoolSpec.model_validate(spec)
                elif kind == "LoRAFineTune":
                    if found.run is not None:
                        raise OptionError(f"-f {path}: a second LoRAFineTune: give one, and --runs for how many")
                    LoRAFineTuneSpec.model_validate(spec)
                    found.run = spec
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise OptionError(f"-f {path}: {kind} {name}: spec.{where}: {first['msg']}") from error
    return found


def _documents(path: Path) -> list[Any]:
    try:
        import yaml  # only here, so that simulations without manifests need nothing but the package itself
    except ImportError as error:
        raise OptionError("-f: PyYAML is missing: pip install pyyaml") from error
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"-f {path}: cannot be read ({reason}): name a YAML file with manifests") from error
