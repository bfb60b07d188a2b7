"""What the policy was tuned on, and what was kept aside.

Of the public traces (skypilot-org/spot-traces, one V100, 45.5 days from 2023-02-15) the rates of engine/availability.py
were counted on TUNING_ZONES in the first TUNING_DAYS only, and all trials were made there. A job is held out
when its zone is none of these, and it starts later.
"""

from __future__ import annotations

TUNING_ZONES = ("us-east-1a", "us-east-1d", "us-east-2a", "us-west-2a", "us-west-2c")
TUNING_DAYS = 23.6


def known(zone: str) -> bool:
    """Return whether the policy was tuned on the zone."""
    return zone in TUNING_ZONES
