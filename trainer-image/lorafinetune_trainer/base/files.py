"""A base model on this machine: a diffusers folder, or one file with all parts, as far as its parts are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from lorafinetune.contract import canonical
from lorafinetune_trainer.base import blocks
from lorafinetune_trainer.base.blocks import Block
from lorafinetune_trainer.base.header import Header
from lorafinetune_trainer.failure import invalid

INDEX: Final = "model_index.json"
SCHEDULER: Final = "scheduler/scheduler_config.json"
TRAINED: Final = frozenset({"unet", "scheduler"})
"""What a resumed attempt needs."""
ENCODERS: Final = frozenset({"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
"""What computes the conditioning, once in a run."""
HALF: Final = "fp16"
"""The variant of 16-bit weights, in diffusers' words."""
PREFIXES: Final = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}
"""How the names of a part's tensors begin in a single file."""
_SHIPPED: Final = Path(__file__).parent / "sdxl"
_MAX_JSON: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Folder:
    """A diffusers folder with the wanted parts of a model, and which of its weight files to load."""

    folder: Path
    names: tuple[str, ...]
    """The files that count, relative to the folder, sorted."""
    parts: frozenset[str] = TRAINED | ENCODERS
    """Those that lie there; ``""`` is the one part whose files lie at the root."""
    hashes: dict[Block, str] = field(default_factory=dict, compare=False, repr=False)
    """SHA-256 of the blocks that have been hashed."""

    def variant(self, part: str) -> str | None:
        """Return the name of the weights' variant of *part*, as diffusers and transformers call it."""
        return HALF if any(name.startswith(f"{part}/") and f".{HALF}." in name for name in self.names) else None

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the small JSON files."""
        return read_json(self.folder / name, name)

    def blocks(self, parts: Iterable[str]) -> list[Block]:
        """Return the blocks of the files of *parts*."""
        wanted = frozenset(parts)
        assert wanted <= self.parts, f"{sorted(wanted - self.parts)} has not been fetched"
        names = [name for name in self.names if "" in wanted or name.split("/")[0] in wanted]
        return [one for name in names for one in blocks.cut(name, 0, (self.folder / name).stat().st_size)]

    def digest(self, parts: Iterable[str]) -> str:
        """SHA-256 over names and contents of the files of *parts*."""
        found: dict[str, list[str]] = {}
        for block, sha256 in _hashed(self, parts).items():
            found.setdefault(block.name, []).append(sha256)
        return canonical.digest(found)


@dataclass(frozen=True, slots=True)
class Single:
    """One safetensors file with all parts of a model, in the layout of the original code.

    The file may be sparse: as long as the whole, and with holes where parts lie that are not wanted.
    """

    folder: Path
    name: str
    """The file, relative to the folder."""
    header: Header
    parts: frozenset[str]
    """Those whose bytes are there."""
    configs: tuple[str, ...] = ()
    """Configs and tokenizers that lie in the folder ``<name>.config`` beside it, relative to the folder: they stand in
    for those of SDXL that are shipped."""
    whole: str = ""
    """The part that the file is, where it holds no other: ``vae``."""
    hashes: dict[Block, str] = field(default_factory=dict, compare=False, repr=False)
    """SHA-256 of the blocks that have been hashed."""

    def config_folder(self, part: str) -> Path:
        """Return the folder that holds the folder with the config of *part*."""
        beside = f"{self.name}.config"
        own = any(name.startswith(f"{beside}/{part}/") for name in self.configs)
        return self.folder / beside if own else _SHIPPED

    def is_shipped(self, part: str) -> bool:
        """Whether the config of *part* is the one of SDXL."""
        return self.config_folder(part) == _SHIPPED

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the small JSON files by its name in a diffusers folder."""
        found = read_json(self.config_folder(name.split("/", maxsplit=1)[0]) / name, name)
        if name == SCHEDULER and "v_pred" in self.header.tensors:
            found["prediction_type"] = "v_prediction"
            found["rescale_betas_zero_snr"] = "ztsnr" in self.header.tensors
        return found

    def tensors(self, part: str) -> list[str]:
        """Return the names of the tensors of *part*."""
        if part == self.whole:
            return sorted(self.header.tensors)
        prefix = PREFIXES.get(part)
        return sorted(name for name in self.header.tensors if prefix is not None and name.startswith(prefix))

    def spans(self, parts: Iterable[str]) -> list[tuple[int, int]]:
        """Return the byte ranges (first, end) of *parts* in the file."""
        return self.header.spans(name for part in frozenset(parts) for name in self.tensors(part))

    def blocks(self, parts: Iterable[str]) -> list[Block]:
        """Return the blocks of the tensors of *parts*."""
        wanted = frozenset(parts)
        assert wanted <= self.parts, f"{sorted(wanted - self.parts)} has not been fetched"
        return [one for first, end in self.spans(wanted) for one in blocks.cut(self.name, first, end)]

    def digest(self, parts: Iterable[str]) -> str:
        """SHA-256 over names, types, shapes and contents of the tensors of *parts*, and their configs."""
        wanted = sorted(parts)
        tensors = self.header.tensors
        return canonical.digest(
            {
                "tensors": [
                    [name, tensors[name].dtype, *tensors[name].shape] for part in wanted for name in self.tensors(part)
                ],
                "blocks": list(_hashed(self, wanted).values()),
                "configs": [self._config(part) for part in wanted],
            }
        )

    def _config(self, part: str) -> object:
        if part == "scheduler":
            return self.json(SCHEDULER)
        if not part.startswith("tokenizer"):
            return self.json(f"{part}/config.json")
        if self.is_shipped(part):
            return self.json(f"{part}/tokenizer_config.json")
        names = [name for name in self.configs if name.startswith(f"{self.name}.config/{part}/")]
        return {name: canonical.sha256((self.folder / name).read_bytes()) for name in names}


Files: TypeAlias = Folder | Single
"""A base model, or some of its parts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model."""

    files: Files
    name: str
    """Its folder's name; nothing where its files lie at the root of *files*."""

    @property
    def folder(self) -> Path:
        """Where its config lies, in a diffusers folder."""
        return self.files.folder / self.name

    @property
    def variant(self) -> str | None:
        """Name of the variant of its weights, in a diffusers folder."""
        if not isinstance(self.files, Folder):
            return None
        names = [name for name in self.files.names if name.startswith(self.name)]
        return HALF if any(f".{HALF}." in name for name in names) else None

    def digest(self) -> str:
        """SHA-256 over what it is made of."""
        return self.files.digest({self.name})


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return a small JSON file of a model; raises Failure (INVALID) naming it."""
    try:
        value = json.loads(path.read_bytes()[:_MAX_JSON])
    except (OSError, ValueError) as error:
        raise invalid("WrongBaseModel", f"{name} of the base model cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _hashed(files: Files, parts: Iterable[str]) -> Mapping[Block, str]:
    """Return the SHA-256 of each block of *parts*, in order; what has been hashed before is not read again."""
    wanted = files.blocks(parts)
    files.hashes.update(blocks.hashes(files.folder, [one for one in wanted if one not in files.hashes]))
    return {one: files.hashes[one] for one in wanted}
