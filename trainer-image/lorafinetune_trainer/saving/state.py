"""Tensors to bytes and back, without pickle and without chance: safetensors files whose bytes depend on content only.

The safetensors library writes its ``__metadata__`` in random order, so the writing is ours; what is read was hashed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from lorafinetune.contract import canonical
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune_trainer.failure import Failure

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES: Final = 100 * 1024 * 1024
"""The format's own limit."""
PART_BYTES: Final = 16 * 1024 * 1024
"""Size of a state's files, less than what the layout allows: the next ones are made and hashed, and their answers
awaited, while others are on the link. Few large ones end together, and then the link stands idle."""
_TYPES: Final = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "uint8": "U8",
}
_NAMES: Final = {short: name for name, short in _TYPES.items()}
_SIZES: Final = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U8": 1}


class Tensors(NamedTuple):
    """What a file holds."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


class Part(NamedTuple):
    """One file of a state that was split: its name and its bytes."""

    name: str
    body: memoryview


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the safetensors file of *tensors*, sorted by name, with a canonical header. Tensors lie on the CPU."""
    return bytes(_write(tensors, metadata))


def _write(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> memoryview:
    import torch

    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    place = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Tensor by tensor, by torch, into memory that nothing has filled before: to join 64 MiB of bytes would stop all
    # threads of Python, the one that waits for SIGTERM too.
    whole = torch.empty(8 + len(text) + place, dtype=torch.uint8)
    body = memoryview(whole.numpy())  # type: ignore[arg-type]  # an array is a buffer
    body[: 8 + len(text)] = struct.pack("<Q", len(text)) + text
    place = 8 + len(text)
    for name in sorted(tensors):
        flat = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
        whole[place : place + len(flat)].copy_(flat)
        place += len(flat)
    return body


def decode(body: bytes | memoryview) -> Tensors:
    """Return what :func:`encode` was given; ValueError where *body* is no such file."""
    import torch

    try:
        (length,) = struct.unpack_from("<Q", body)
        if length > min(MAX_HEADER_BYTES, len(body) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(body)}")
        header = json.loads(bytes(body[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        found: dict[str, torch.Tensor] = {}
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            kind, shape = entry["dtype"], entry["shape"]
            if not 0 <= first <= end <= len(body) - 8 - length or math.prod(shape) * _SIZES[kind] != end - first:
                raise ValueError(f"{name} does not fit into the file")
            # A writable copy of its own: a view would hold the whole file, and torch warns about read-only memory.
            data = bytearray(memoryview(body)[8 + length + first : 8 + length + end])
            dtype = getattr(torch, _NAMES[kind])
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            found[name] = flat.reshape(shape)
    except (KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"not a safetensors file: {error!r}") from error
    return Tensors(found, metadata)


def split(tensors: Mapping[str, torch.Tensor], limit: int = PART_BYTES) -> Iterator[Part]:
    """Yield *tensors* as files of at most *limit* bytes, in the order of their names, made one at a time."""
    margin = 64 * 1024  # room for the header of a part, on top of 256 bytes for each of its names
    batch: dict[str, torch.Tensor] = {}
    number = size = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        cost = tensor.numel() * tensor.element_size() + 256 + len(name)
        if batch and size + cost > limit - margin:
            yield Part(_part_name(number), _write(batch))
            batch, size, number = {}, 0, number + 1
        batch[name] = tensor
        size += cost
    if batch or not number:
        yield Part(_part_name(number), _write(batch))


def join(parts: Iterable[bytes | memoryview]) -> dict[str, torch.Tensor]:
    """Return the tensors of all *parts*; ValueError where one stands in two of them."""
    found: dict[str, torch.Tensor] = {}
    for body in parts:
        tensors = decode(body).tensors
        if twice := found.keys() & tensors.keys():
            raise ValueError(f"{min(twice)} stands in two files")
        found.update(tensors)
    return found


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over names, shapes and bytes of *tensors*: equal weights, equal digest."""
    return canonical.sha256(encode({name: tensor.detach().cpu() for name, tensor in tensors.items()}))


def check_finite(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Refuse (NaNLoss) tensors of *step* that hold NaN or an infinity: they are nobody's work, and may not be kept."""
    for name, one in tensors.items():
        if not _is_finite(one):
            raise Failure(
                ExitCode.NOT_FINITE,
                "NaNLoss",
                f"{name} of step {step} is not finite, so that step is not saved: lower training.learningRate; the "
                "checkpoints before it are kept",
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    # NaN goes into both, infinities into one. A mask of all elements takes ten times as long, within the notice.
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _part_name(number: int) -> str:
    return f"state-{number:05}.safetensors"
