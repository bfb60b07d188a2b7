"""Sums of money and measured numbers, which a status holds as decimal text so that nothing is lost in rounding."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Final

from pydantic import AfterValidator, Field

MOST: Final = Decimal(10) ** 15
"""No sum and no measurement comes near it; what is below can be added up without care."""


@lru_cache(maxsize=16_384)  # a run's amounts are read again in each of its passes
def amount(text: str) -> Decimal:
    """Return the number that *text* says. Raises ValueError for what is none, negative, or beyond all measure."""
    try:
        read = Decimal(text)
    except InvalidOperation:
        read = Decimal("NaN")
    if not (read.is_finite() and 0 <= read < MOST):
        raise ValueError(f'must be a decimal number from 0 to below {MOST:.0e}, such as "0.348"')
    return read


def _checked(text: str) -> str:
    amount(text)
    return text


Amount = Annotated[str, AfterValidator(_checked), Field(max_length=32)]
"""A sum or a measurement that we have written; who reads one that anybody forged learns it where all is read."""
