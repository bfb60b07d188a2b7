"""The LoRA that a run starts from: fetched, compared with what the run trains, and given our scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.training import Targets, Training
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.product import names, reading
from lorafinetune_trainer.product.reading import Lora, Module, refuse

if TYPE_CHECKING:
    import torch

MAX_BYTES: Final = 4 * 1024**3


def fetch(source: str | None, open_: Callable[[layout.Location], Bucket]) -> bytes | None:
    """Return the bytes of ``training.lora.initFrom``: ``s3://bucket/key`` at the run's store, or a file."""
    if source is None:
        return None
    if source.startswith("s3://"):
        try:
            bucket, key = layout.parse_uri(source)
            return open_(layout.Location(bucket, "")).get(key, limit=MAX_BYTES).body
        except ValueError as error:
            refuse(str(error), "write s3://bucket/key.safetensors")
        except errors.ObjectMissing:
            refuse(f"there is no {source}", "correct it, or put the file there")
        except errors.NotVerified as error:
            refuse(str(error), "name a LoRA")
    try:
        path = Path(source)
        if path.stat().st_size > MAX_BYTES:
            refuse(f"{source} has more than {MAX_BYTES} bytes", "name a LoRA")
        return path.read_bytes()
    except OSError as error:
        refuse(f"{source} cannot be read ({error.strerror})", "correct the path, or write s3://bucket/key.safetensors")


def load(
    training: Training,
    digest: str | None,
    expected: Mapping[str, tuple[int, ...]],
    open_: Callable[[layout.Location], Bucket],
    *,
    layers_per_block: int,
    body: bytes | None = None,
) -> dict[str, torch.Tensor]:
    """Return the weights that the run begins with, by the names of *expected*; none where it starts from nothing.

    *body* is the file, where it has been fetched already; *digest* is the plan's. Raises Failure: InvalidLora, or
    PlanMismatch where the file is another than the one that the run began with.
    """
    source = training.lora.init_from
    if digest is None:
        return {}
    if source is None:
        raise invalid("PlanMismatch", f"the run began with a LoRA in {reading.FIELD}, which is absent now: put it back")
    body = body or fetch(source, open_) or b""
    if canonical.sha256(body) != digest:
        raise invalid(
            "PlanMismatch",
            f"{reading.FIELD}: {source} is another file than the one that the run began with. Put that back, or delete "
            "the run and create it anew",
        )
    return weights(check(body, training, layers_per_block), training, expected)


def check(body: bytes, training: Training, layers_per_block: int) -> Lora:
    """Read the file; refuse it (InvalidLora) for what can be told before any model has been loaded."""
    lora = reading.read(body, layers_per_block)
    encoder = next((place for place in lora.modules if place.startswith(names.ENCODERS)), None)
    if encoder is not None and not training.lora.text_encoder:
        refuse(f"the file adapts the text encoders ({encoder})", "set training.lora.textEncoder: true")
    rank = training.lora.rank
    if other := sorted(lora.ranks - {rank}):
        refuse(
            f"its rank is {' and '.join(map(str, other))}, and training.lora.rank is {rank}",
            f"set training.lora.rank: {other[0]}" if len(lora.ranks) == 1 else "only one rank for all is supported",
        )
    if lora.is_dora and not training.lora.dora:
        refuse("the file is a DoRA", "set training.lora.dora: true")
    return lora


def weights(lora: Lora, training: Training, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return the weights with which the adapter computes what *lora* does, by the names of *expected*.

    *expected* are the shapes of all trained weights, by our names. Modules that the file leaves out are absent: they
    begin as they would without it. Raises Failure (InvalidLora) where the file has what the run does not train.
    *lora* has passed :func:`check`.
    """
    wanted = {names.parse(name).place for name in expected}
    for place in lora.modules:
        if place not in wanted:
            _refuse_place(place, wanted, training)
    magnitudes = {taken.place for name in expected if (taken := names.parse(name)).matrix == names.MAGNITUDE}
    found: dict[str, torch.Tensor] = {}
    for name, shape in expected.items():
        taken = names.parse(name)
        module = lora.modules.get(taken.place)
        if module is None:
            continue
        tensor = _matrix(module, taken.matrix, training.lora.scale)
        if tensor is None:
            refuse(f"{taken.place} has no magnitude: the file is no DoRA", "set training.lora.dora: false")
        if tuple(tensor.shape) != shape:
            refuse(
                f"{taken.place} has the shape {tuple(tensor.shape)} where the base model wants {shape}",
                "it belongs to another family of models: name one for SDXL",
            )
        found[name] = tensor
    lost = (place for place, module in lora.modules.items() if module.magnitude is not None and place not in magnitudes)
    if (first := next(lost, None)) is not None:
        refuse(f"{first} has magnitudes, and DoRA is for the UNet only", "name another file")
    return found


def _matrix(module: Module, matrix: str, own: float) -> torch.Tensor | None:
    if matrix == names.MAGNITUDE:
        return module.magnitude
    if matrix == names.DOWN:
        return module.down
    assert module.up is not None
    # Equal scales leave the bits alone.
    return module.up if module.scale == own else module.up * (module.scale / own)


def _refuse_place(place: str, wanted: set[str], training: Training) -> None:
    _, _, module = place.partition(".")
    if training.lora.targets is Targets.ATTENTION and not names.is_attention(module):
        beside = names.beside(place)
        if any(one.startswith(beside) for one in wanted):
            refuse(f"the file adapts more than attention ({place})", "set training.lora.targets: All")
    refuse(f"the base model has no {place}", "it belongs to another family of models: name one for SDXL")
