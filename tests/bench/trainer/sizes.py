"""How large a state of the real SDXL's adapter is: on the attention, with AdamW's two moments."""

from __future__ import annotations

TENSORS = 1120
VALUES_PER_RANK = 1296
"""Of one tensor, on average."""


def state_bytes(rank: int) -> int:
    """Return the bytes of such a state: three numbers of 32 bits for each value."""
    return 3 * 4 * TENSORS * VALUES_PER_RANK * rank
