"""One byte sequence for one JSON value, so that equal things have equal digests in every process and version."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def encode(value: Any) -> bytes:
    """Return *value* as UTF-8 JSON with sorted names and no white space; NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(content: bytes | memoryview) -> str:
    """Return the SHA-256 of *content* as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of *value*."""
    return sha256(encode(value))
