"""What a run cost, to the cent of a cent."""

from decimal import Decimal

from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine.ledger import bill, fold_oldest, generating_cost
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt


def hours(number: int, begin: float, end: float | None, price: str = "0.36", on_demand: str | None = "1.00"):
    return attempt(
        number,
        started=stamp(NOW + 3600 * begin),
        ended=None if end is None else stamp(NOW + 3600 * end),
        price_per_hour=price,
        on_demand_price_per_hour=on_demand,
    )


def test_seconds_times_price():
    status = LoRAFineTuneStatus(attempts=[hours(1, 0, 1), hours(2, 1, None)])
    account = bill(status, NOW + 1.5 * 3600)
    assert account.cost == Decimal("0.54")
    assert account.cost_text == "$0.540"
    assert account.saved_text == "64%"


def test_saved_is_silent_without_an_on_demand_price():
    assert bill(LoRAFineTuneStatus(attempts=[hours(1, 0, 1, on_demand=None)]), NOW).saved_text is None


def test_an_attempt_that_never_started_costs_nothing():
    assert bill(LoRAFineTuneStatus(attempts=[attempt(1, started=None)]), NOW + 9999).cost == 0


def test_folding_old_attempts_changes_no_total():
    attempts = [hours(number, number, number + 0.37) for number in range(1, 30)]
    status = LoRAFineTuneStatus().model_copy(update={"attempts": attempts})
    folded = fold_oldest(status, 20)
    assert len(folded.attempts) == 20
    assert folded.totals is not None
    assert folded.totals.attempts == 9
    before, after = bill(status, NOW), bill(folded, NOW)
    assert abs(before.cost - after.cost) < Decimal("0.00001")
    assert before.saved_text == after.saved_text


def test_class_images_have_a_cost_that_outlives_the_list():
    made = [hours(number, number, number + 1) for number in range(1, 24)]
    made[0] = made[0].model_copy(
        update={"generating_since": stamp(NOW + 3600), "generating_until": stamp(NOW + 3600 + 1800)}
    )
    made[-1] = made[-1].model_copy(update={"generating_since": stamp(NOW + 23 * 3600)})
    whole = LoRAFineTuneStatus().model_copy(update={"attempts": made})
    later = NOW + 24 * 3600
    assert generating_cost(whole, later) == "$0.540"
    assert generating_cost(fold_oldest(whole, 20), later) == "$0.540"


def test_without_class_images_their_cost_is_not_spoken_of():
    assert generating_cost(LoRAFineTuneStatus(attempts=[hours(1, 0, 1)]), NOW) is None
