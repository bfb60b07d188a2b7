"""Bring the wanted parts of a base model to this machine; what is no SDXL is refused before its gigabytes are moved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lorafinetune.contract.runconfig import BaseModelSource
from lorafinetune_trainer.base import family, header, hub, places
from lorafinetune_trainer.base.files import HALF, INDEX, SCHEDULER, Files, Folder, Part, Single, read_json
from lorafinetune_trainer.base.places import Means, Place, wrong

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


def fetch(source: BaseModelSource, parts: frozenset[str], means: Means, *, half: bool) -> Files:
    """Bring the wanted *parts* of the base model to this machine; raises Failure (INVALID) where it is not SDXL.

    With *half*, 16-bit weights are preferred where the source has both. A separate VAE comes by :func:`fetch_vae`
    instead of the model's own.
    """
    place = _open("baseModel.source", source.source, source, means)
    if source.vae is not None:
        parts -= {"vae"}
    if place.single is not None:
        return _fetch_single(place, place.single, parts)
    if INDEX not in place.names:
        single = next((name for name in sorted(place.names) if name.endswith(places.SINGLE)), None)
        hint = f" (name the file {single} itself, if that is the model)" if single else ""
        raise wrong(place, f"it has no {INDEX}, so it is not a diffusers folder{hint}")
    # The small files first: they tell what it is before gigabytes are moved.
    configs = [name for name in place.names if name == INDEX or (name.count("/") == 1 and name.endswith("config.json"))]
    _check_kind(place, place.bring(configs))
    names = {INDEX}
    for part in sorted(parts):
        names |= _files_of(place, part, half)
    folder = place.bring(names)
    for name in sorted(names):
        if ".safetensors.index." in name:
            shards = {f"{name.split('/')[0]}/{one}" for one in set(_index(folder, name).values())}
            if missing := shards - place.names:
                raise wrong(place, f"{min(missing)} is missing")
            folder = place.bring(shards)
            names |= shards
    _check_weights(place, folder, names)
    return Folder(folder, tuple(sorted(names)), parts)


def fetch_vae(source: BaseModelSource, means: Means) -> Part:
    """Bring the separate VAE that ``baseModel.vae`` names: a folder (its files, or ``vae/`` with them), or one file."""
    assert source.vae is not None
    one = source.model_copy(update={"revision": None})
    place = _open("baseModel.vae", source.vae, one, means)
    if place.single is not None:
        return _fetch_single_vae(place, place.single)
    prefix = "" if "config.json" in place.names else "vae/"
    stem = f"{prefix}{_WEIGHTS['vae']}"
    weights = next(
        (name for name in (f"{stem}.safetensors", f"{stem}.{HALF}.safetensors") if name in place.names), None
    )
    if f"{prefix}config.json" not in place.names or weights is None:
        raise wrong(place, "it has no config.json with diffusion_pytorch_model.safetensors beside it")
    names = (f"{prefix}config.json", weights)
    if why := family.of_vae(read_json(place.bring(names[:1]) / names[0], f"{place.field} {place.uri}: {names[0]}")):
        raise wrong(place, why)
    folder = place.bring(names)
    _check_weights(place, folder, names)
    name = prefix.rstrip("/")
    return Part(Folder(folder, tuple(sorted(names)), frozenset({name})), name)


def _fetch_single(place: Place, name: str, parts: frozenset[str]) -> Single:
    configs = _beside(place, name)
    shipped = not any(one.startswith(f"{name}.config/unet/") for one in configs)
    try:
        if why := family.of_single(place.tensors(), parts, shipped=shipped):
            raise wrong(place, why)
        if configs:
            place.bring(configs)

        def spans(found: header.Header) -> list[tuple[int, int]]:
            return Single(Path(), name, found, parts, configs).spans(parts)

        folder = place.bring_spans(spans)
        return Single(folder, name, header.read(folder / name), parts, configs)
    except ValueError as error:
        raise wrong(place, f"it is damaged ({error}): fetch or upload it again") from error


def _fetch_single_vae(place: Place, name: str) -> Part:
    try:
        tensors = place.tensors()
        if not any("decoder.conv_in" in one for one in tensors):
            raise wrong(place, "it holds no VAE")
        if why := family.of_types(tensors):
            raise wrong(place, why)
        configs = _beside(place, name)
        if configs:
            place.bring(configs)
        folder = place.bring_spans(lambda found: found.spans(found.tensors))
        vae = Single(folder, name, header.read(folder / name), frozenset({"vae"}), configs, whole="vae")
        return Part(vae, "vae")
    except ValueError as error:
        raise wrong(place, f"it is damaged ({error}): fetch or upload it again") from error


def _beside(place: Place, name: str) -> tuple[str, ...]:
    """Return the files of the ``.config`` folder of a single file."""
    return tuple(sorted(one for one in place.names if one.startswith(f"{name}.config/")))


def _files_of(place: Place, part: str, half: bool) -> set[str]:
    """Return the files of one part, or raise the failure that says which is missing."""
    if part == "scheduler":
        return {_needed(place, SCHEDULER)}
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
    raise wrong(place, f"{stem}.safetensors is missing")


def _needed(place: Place, name: str) -> str:
    if name not in place.names:
        raise wrong(place, f"{name} is missing")
    return name


def _check_kind(place: Place, folder: Path) -> None:
    """Refuse what is no SDXL base model, by what its configs say."""
    if why := family.of_index(read_json(folder / INDEX, INDEX)):
        raise wrong(place, why)
    parts = ("unet", "text_encoder", "text_encoder_2")
    configs = [read_json(folder / _needed(place, f"{one}/config.json"), f"{one}/config.json") for one in parts]
    if why := family.of_configs(*configs):
        raise wrong(place, why)


def _check_weights(place: Place, folder: Path, names: Iterable[str]) -> None:
    """Refuse files that were cut short, and types that cannot be trained on."""
    for name in sorted(names):
        if name.endswith(places.SINGLE):
            try:
                why = family.of_types(header.read(folder / name).tensors)
            except ValueError as error:
                raise wrong(place, f"{name} is damaged ({error}): fetch or upload it again") from error
            if why:
                raise wrong(place, f"{name}: {why}")


def _index(folder: Path, name: str) -> dict[str, str]:
    found = read_json(folder / name, name).get("weight_map")
    return found if isinstance(found, dict) else {}


def _open(field: str, uri: str, source: BaseModelSource, means: Means) -> Place:
    if uri.startswith("hf://"):
        return hub.open_repository(field, uri, source, means)
    if uri.startswith("s3://"):
        return places.open_stored(field, uri, means)
    return places.open_local(field, uri)
