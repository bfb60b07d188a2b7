"""The base model's files: from a folder, an S3 prefix or the hub; checked to be SDXL before any weight is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.runconfig import HUB_TOKEN, BaseModelSource
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import Failure, invalid

INDEX: Final = "model_index.json"
TRAINED: Final = frozenset({"unet", "scheduler"})
"""What a resumed attempt needs."""
ENCODERS: Final = frozenset({"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"})
"""What computes the conditioning, once in a run."""

_Answer = TypeVar("_Answer")

_WEIGHTS: Final = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_TOKENIZERS: Final = frozenset({"tokenizer", "tokenizer_2"})
_TOKENIZER_FILES: Final = frozenset(
    {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
)
_MAX_JSON: Final = 8 * 1024 * 1024
_PARALLEL: Final = 8
_MAX_FILES: Final = 2000
HUB_TIMEOUT: Final = 30.0
HALF: Final = "fp16"


@dataclass(frozen=True, slots=True)
class Files:
    """A folder with the wanted parts of a model, and which of its weight files to load."""

    folder: Path
    names: tuple[str, ...]
    """The files that count, relative to the folder, sorted."""

    def variant(self, part: str) -> str | None:
        """Return the name of the weights' variant of *part*, as diffusers and transformers call it."""
        return HALF if any(name.startswith(f"{part}/") and f".{HALF}." in name for name in self.names) else None

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the small JSON files."""
        return _json(self.folder / name, name)

    def digest(self, parts: Iterable[str]) -> str:
        """SHA-256 over names and contents of the files of *parts*."""
        wanted = [name for name in self.names if name.split("/")[0] in frozenset(parts)]
        with ThreadPoolExecutor(2, thread_name_prefix="hash") as pool:
            return canonical.digest(dict(zip(wanted, pool.map(self._sha256, wanted), strict=True)))

    def _sha256(self, name: str) -> str:
        with (self.folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model, in a folder of its own or at the root of its files."""

    files: Files
    name: str
    """The folder's name, or nothing."""

    @property
    def folder(self) -> Path:
        """Where its config lies."""
        return self.files.folder / self.name

    @property
    def variant(self) -> str | None:
        """Name of the variant of its weights."""
        return HALF if any(f".{HALF}." in name for name in self._names) else None

    def digest(self) -> str:
        """SHA-256 over names and contents of its files."""
        return self.files.digest({self.name} if self.name else self.files.names)

    @property
    def _names(self) -> list[str]:
        return [name for name in self.files.names if name.startswith(self.name)]


@dataclass(frozen=True, slots=True)
class Means:
    """How this machine gets at files."""

    bucket: Callable[[layout.Location], Bucket]
    """Opens a place in the object store."""
    scratch: Path
    """Where downloads from it go. The hub's go into its library's own cache."""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere that holds models: which files lie there, and how to bring some of them to a folder."""

    uri: str
    names: frozenset[str]
    bring: Callable[[Iterable[str]], Path]


def fetch(source: BaseModelSource, parts: frozenset[str], means: Means, *, half: bool) -> Files:
    """Bring the wanted *parts* of the base model to this machine; raises Failure (INVALID) where it is not SDXL.

    With *half*, 16-bit weights are preferred where the source has both. A separate VAE comes by :func:`fetch_vae`.
    """
    place = _open("baseModel.source", source.source, source, means)
    if INDEX not in place.names:
        single = next((name for name in sorted(place.names) if name.endswith((".safetensors", ".ckpt"))), None)
        hint = f" ({single} looks like a single-file checkpoint: convert it to the diffusers layout)" if single else ""
        raise _wrong(place, f"it has no {INDEX}, so it is not a diffusers folder{hint}")
    # The small files first: they tell what it is before gigabytes are moved.
    configs = [name for name in place.names if name == INDEX or (name.count("/") == 1 and name.endswith("config.json"))]
    _check_kind(place, place.bring(configs))
    names = {INDEX}
    for part in sorted(parts):
        names |= _files_of(place, part, half)
    folder = place.bring(names)
    found = Files(folder, tuple(sorted(names)))
    for name in sorted(names):
        if ".safetensors.index." in name:
            shards = {f"{name.split('/')[0]}/{one}" for one in set(found.json(name).get("weight_map", {}).values())}
            if missing := shards - place.names:
                raise _wrong(place, f"{min(missing)} is missing")
            folder = place.bring(shards)
            names |= shards
    return Files(folder, tuple(sorted(names)))


def fetch_vae(source: BaseModelSource, means: Means) -> Files:
    """Bring the separate VAE that ``baseModel.vae`` names; its folder then holds ``vae/`` or the files themselves."""
    assert source.vae is not None
    one = source.model_copy(update={"revision": None})
    place = _open("baseModel.vae", source.vae, one, means)
    prefix = "" if "config.json" in place.names else "vae/"
    stem = f"{prefix}{_WEIGHTS['vae']}"
    weights = next(
        (name for name in (f"{stem}.safetensors", f"{stem}.{HALF}.safetensors") if name in place.names), None
    )
    if f"{prefix}config.json" not in place.names or weights is None:
        raise _wrong(place, "it has no config.json with diffusion_pytorch_model.safetensors beside it", "baseModel.vae")
    names = (f"{prefix}config.json", weights)
    return Files(place.bring(names), tuple(sorted(names)))


def _files_of(place: Place, part: str, half: bool) -> set[str]:
    """Return the files of one part, or raise the failure that says which is missing."""
    if part == "scheduler":
        return {_needed(place, "scheduler/scheduler_config.json")}
    if part in _TOKENIZERS:
        found = {f"{part}/{name}" for name in _TOKENIZER_FILES} & place.names
        if f"{part}/tokenizer.json" not in found:
            _needed(place, f"{part}/vocab.json")
            _needed(place, f"{part}/merges.txt")
        return found
    stem = f"{part}/{_WEIGHTS[part]}"
    plain = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    halves = [f"{stem}.{HALF}.safetensors", f"{stem}.safetensors.index.{HALF}.json"]
    for name in [*halves, *plain] if half else [*plain, *halves]:
        if name in place.names:
            return {_needed(place, f"{part}/config.json"), name}
    raise _wrong(place, f"{stem}.safetensors is missing")


def _needed(place: Place, name: str) -> str:
    if name not in place.names:
        raise _wrong(place, f"{name} is missing")
    return name


def _check_kind(place: Place, folder: Path) -> None:
    """Refuse what is no SDXL base model, by what its configs say."""
    kind = str(_json(folder / INDEX, INDEX).get("_class_name", "nothing"))
    if "XL" not in kind:
        raise _wrong(place, f"it is a {kind}, not a StableDiffusionXLPipeline")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        _needed(place, f"{part}/config.json")
    unet = _json(folder / "unet/config.json", "unet/config.json")
    if unet.get("addition_embed_type") != "text_time":
        raise _wrong(place, "its UNet takes no text and size conditioning (addition_embed_type is not text_time)")
    if unet.get("in_channels", 4) != 4:
        raise _wrong(
            place, f"its UNet takes {unet['in_channels']} channels, not 4: inpainting models cannot be trained"
        )
    widths = [
        int(_json(folder / f"{part}/config.json", f"{part}/config.json").get("hidden_size", 0))
        for part in ("text_encoder", "text_encoder_2")
    ]
    if unet.get("cross_attention_dim") != sum(widths):
        raise _wrong(
            place,
            f"its UNet expects text embeddings {unet.get('cross_attention_dim')} wide, its two encoders make "
            f"{' + '.join(map(str, widths))}",
        )


def _wrong(place: Place, why: str, field: str = "baseModel.source") -> Failure:
    return invalid(
        "WrongBaseModel", f"{field} {place.uri} cannot be used: {why}. It must hold an SDXL diffusers folder"
    )


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes()[:_MAX_JSON])
    except (OSError, ValueError) as error:
        raise invalid("WrongBaseModel", f"{name} of the base model cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _open(field: str, uri: str, source: BaseModelSource, means: Means) -> Place:
    if uri.startswith("hf://"):
        return _open_hub(field, uri, source)
    if uri.startswith("s3://"):
        return _open_bucket(field, uri, means)
    folder = Path(uri)
    if not folder.is_dir():
        raise invalid(
            "WrongBaseModel",
            f"{field} {uri} is not a folder of this machine (nor s3://bucket/prefix/, nor hf://owner/name)",
        )
    names = frozenset(path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file()) | frozenset(
        path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()
    )
    return Place(uri, names, lambda wanted: folder)


def _open_bucket(field: str, uri: str, means: Means) -> Place:
    scratch = means.scratch / field
    try:
        place = means.bucket(layout.folder(uri))
    except ValueError as error:
        raise invalid("WrongBaseModel", f"{field}: {error}") from error
    sizes = {one.key: one.size for one in place.walk(limit=_MAX_FILES) if one.key and not one.key.endswith("/")}
    if not sizes:
        raise invalid("WrongBaseModel", f"nothing lies at {field} {uri}: it must hold an SDXL diffusers folder")

    def bring(wanted: Iterable[str]) -> Path:
        def one(name: str) -> None:
            path = scratch / name
            if path.is_file() and path.stat().st_size == sizes[name]:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            place.download(name, part)
            part.replace(path)

        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="download") as pool:
            list(pool.map(one, sorted(wanted)))
        return scratch

    return Place(uri, frozenset(sizes), bring)


def _open_hub(field: str, uri: str, source: BaseModelSource) -> Place:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = uri.removeprefix("hf://").strip("/")
    token = read_token(source.hub_credentials)

    def translate(error: Exception) -> Failure:
        if isinstance(error, GatedRepoError):
            return invalid(
                "BaseModelDenied", f"{field} {uri} is gated: accept its terms and set baseModel.credentialsSecret"
            )
        if isinstance(error, RevisionNotFoundError):
            return invalid("WrongBaseModel", f"{field} {uri} has no revision {source.revision!r}")
        if isinstance(error, RepositoryNotFoundError | HFValidationError | EntryNotFoundError):
            return invalid("WrongBaseModel", f"{field} {uri} does not exist on the hub, or needs a token")
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Failure(ExitCode.STORAGE_UNREACHABLE, "HubUnreachable", f"the hub does not give {uri}: {why}")

    def ask(call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except Exception as error:  # its HTTP library raises errors of its own kinds
            raise translate(error) from error

    info = ask(lambda: HfApi(token=token).model_info(repository, revision=source.revision, timeout=HUB_TIMEOUT))
    names = frozenset(one.rfilename for one in info.siblings or ())

    def bring(wanted: Iterable[str]) -> Path:
        # The commit, not the branch: all parts then come from one state of the repository.
        patterns = sorted(wanted)
        found = ask(lambda: snapshot_download(repository, revision=info.sha, allow_patterns=patterns, token=token))
        return Path(found)

    return Place(uri, names, bring)


def read_token(folder: str | None) -> str | None:
    """Return the hub token that lies in the mounted Secret, or None."""
    if folder is None:
        return None
    try:
        return (Path(folder) / HUB_TOKEN).read_text().strip() or None
    except OSError as error:
        raise invalid(
            "BaseModelDenied", f"baseModel.credentialsSecret has no key {HUB_TOKEN}: put the hub token under that name"
        ) from error
