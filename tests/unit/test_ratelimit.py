"""Token buckets by key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.ratelimit import RateLimit


def test_burst_then_rate() -> None:
    now = 0.0
    limit = RateLimit(2.0, 3, clock=lambda: now)
    assert [limit.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limit.take("b") == 0.0
    now = 0.25
    assert limit.take("a") == 0.25
    now = 0.5
    assert limit.take("a") == 0.0
    assert limit.take("a") == 0.5


def test_forgets_the_longest_unused() -> None:
    limit = RateLimit(0.001, 1, keys=2, clock=lambda: 0.0)
    assert [limit.take(key) for key in ("a", "b", "c")] == [0.0, 0.0, 0.0]
    assert limit.take("c") > 0
    assert limit.take("a") == 0.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.floats(0.1, 10), st.integers(1, 20))
def test_never_more_than_burst_and_rate_allow(gaps: list[float], rate: float, burst: int) -> None:
    now, taken = 0.0, 0
    limit = RateLimit(rate, burst, clock=lambda: now)
    for gap in gaps:
        now += gap
        taken += limit.take("a") == 0.0
        assert taken <= burst + rate * now + 1e-6
