"""The header of a safetensors file: which tensors lie where. Read before any of its gigabytes are."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

MAX_HEADER_BYTES: Final = 100 * 1024 * 1024
"""The format's own limit."""
_LENGTH: Final = struct.Struct("<Q")
_BITS: Final = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}
WEIGHTS: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that can be trained on; what is quantized further cannot be brought back."""


class Tensor(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """In the format's words, e.g. ``F16``."""
    shape: tuple[int, ...]
    first: int
    """Its first byte, counted from the beginning of the file."""
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    tensors: Mapping[str, Tensor]
    start: int
    """Bytes of the header, its length field included: where the tensors begin."""
    size: int
    """Bytes of the whole file."""

    def spans(self, names: Iterable[str]) -> list[tuple[int, int]]:
        """Return the byte ranges (first, end) of the tensors of *names*, in order, neighbours joined."""
        found: list[tuple[int, int]] = []
        for first, end in sorted((self.tensors[name].first, self.tensors[name].end) for name in names):
            if found and found[-1][1] == first:
                found[-1] = (found[-1][0], end)
            elif end > first:
                found.append((first, end))
        return found


def needed(beginning: bytes, size: int) -> int:
    """Return how many bytes from the start of a file of *size* bytes its header takes; ValueError where it has none."""
    if len(beginning) < _LENGTH.size:
        raise ValueError(f"it has {size} bytes, too few for a safetensors file: it was cut short")
    length = int(_LENGTH.unpack_from(beginning)[0])
    if length > MAX_HEADER_BYTES or beginning[_LENGTH.size : _LENGTH.size + 1] not in (b"{", b""):
        raise ValueError("it does not begin as a safetensors file does")
    if length > size - _LENGTH.size:
        raise ValueError(f"its header alone has {length} bytes, the file {size}: it was cut short")
    return _LENGTH.size + length


def parse(beginning: bytes, size: int) -> Header:
    """Return the header of a file of *size* bytes, whose first bytes are given; ValueError where it is damaged."""
    start = needed(beginning, size)
    try:
        members = json.loads(beginning[_LENGTH.size : start])
        members.pop("__metadata__", None)
        tensors = {name: _tensor(name, member, start) for name, member in members.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({error})") from error
    end = max((one.end for one in tensors.values()), default=start)
    if end > size:
        raise ValueError(f"it has {size} bytes, its header promises {end}: it was cut short")
    return Header(tensors, start, size)


def read(path: Path) -> Header:
    """Return the header of a file of this machine; ValueError where it is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(_LENGTH.size + 1)
        beginning += file.read(max(0, needed(beginning, size) - len(beginning)))
    return parse(beginning, size)


def _tensor(name: str, member: Mapping[str, list[int]], start: int) -> Tensor:
    dtype, shape = str(member["dtype"]), tuple(int(one) for one in member["shape"])
    first, end = (int(one) for one in member["data_offsets"])
    bits = _BITS.get(dtype)  # other types exist, and are somebody else's to understand
    if not 0 <= first <= end or (bits is not None and math.prod(shape) * bits != 8 * (end - first)):
        raise ValueError(f"{name} does not fit its place")
    return Tensor(dtype, shape, start + first, start + end)
