"""When the LoRA of a chosen step is taken and made durable, thread by thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorafinetune.contract import canonical
from lorafinetune.contract.runconfig import KeepIntermediate
from lorafinetune.storage import errors
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.product import export, intermediate
from lorafinetune_trainer.product.intermediate import MAX_HELD, MAX_PENDING, Intermediate
from tests.unit.trainer.product import product, weights


class Training:
    """A training thread, one step at a time, and what became durable."""

    def __init__(self, steps: list[int]) -> None:
        self.step = 0
        self.durable: dict[str, bytes] = {}
        self.deadlines: list[float | None] = []
        self.broken: Exception | None = None
        self.meanwhile: Callable[[], None] | None = None
        """What other threads do while the weights are being copied."""
        self.kept = Intermediate(steps, attempt=3, product=product(), weights=self.weights, put=self.put)

    def weights(self) -> dict[str, torch.Tensor]:
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            meanwhile()
        return {name: tensor + self.step for name, tensor in weights().items()}

    def put(self, key: str, body: bytes, deadline: float | None) -> None:
        if self.broken is not None:
            raise self.broken
        self.durable[key] = body
        self.deadlines.append(deadline)

    def do(self, step: int) -> None:
        self.step = step
        self.kept.take(step)


def of(step: int) -> bytes:
    """The file of *step*."""
    training = Training([])
    training.step = step
    return export.kohya_file(training.weights(), product(steps=step))


def put(*steps: int) -> dict[str, bytes]:
    """The files of *steps*, by the names under which the third attempt puts them."""
    bodies = {step: of(step) for step in steps}
    return {f"intermediate/{step}-3-{canonical.sha256(body)}.safetensors": body for step, body in bodies.items()}


def test_what_was_taken_up_to_a_checkpoint_is_durable_before_it() -> None:
    training = Training([2, 4])
    for step in (1, 2, 3, 4):
        training.do(step)
    assert training.durable == {}
    training.kept.beside(3)
    assert training.durable == put(2)
    training.kept.beside(5, 9.0)
    assert training.durable == put(2, 4)
    assert training.deadlines == [None, 9.0]


def test_a_checkpoint_saved_before_the_training_thread_has_taken_its_step() -> None:
    training = Training([2])
    training.do(1)
    training.step = 2  # done, and SIGTERM came before take
    training.kept.beside(2, 5.0)
    assert training.durable == put(2)
    training.kept.take(2)
    training.step = 3
    training.kept.beside(3)
    assert training.durable == put(2)


def test_weights_of_a_later_step_never_stand_for_an_earlier_one() -> None:
    training = Training([2])
    training.do(2)
    training.step = 3
    training.kept.beside(2)
    training.kept.beside(2)
    assert training.durable == put(2)


def test_the_training_thread_takes_its_step_and_goes_on_while_a_checkpoint_is_saved() -> None:
    training = Training([2])
    training.step = 2

    def go_on() -> None:
        training.kept.take(2)
        training.kept.beside(2)  # the other saving thread
        training.do(3)

    training.meanwhile = go_on
    training.kept.beside(2)
    assert training.durable == put(2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_put(value: float) -> None:
    training = Training([])
    wrong = {name: tensor * value for name, tensor in weights().items()}
    training.kept = Intermediate([2], attempt=3, product=product(), weights=lambda: wrong, put=training.put)
    training.do(2)
    with pytest.raises(Failure, match="of step 2 is not finite, so that step is not saved") as caught:
        training.kept.beside(2)
    assert caught.value.reason == "NaNLoss"
    assert training.durable == {}


def test_what_could_not_be_put_is_put_again() -> None:
    training = Training([2])
    training.do(2)
    training.broken = OSError("no bucket")
    with pytest.raises(OSError, match="no bucket"):
        training.kept.beside(2)
    training.broken = None
    training.do(3)
    training.kept.beside(3)
    assert training.durable == put(2)


def test_no_more_than_a_few_wait_in_memory() -> None:
    training = Training([*range(1, 10)])
    for step in range(1, 10):
        training.do(step)
        assert step - len(training.durable) <= MAX_PENDING
    assert training.durable == put(*range(1, 8))


def test_a_bucket_that_is_away_for_a_while_does_not_end_the_training() -> None:
    """What is not saved yet would be lost with it: a few more wait in memory."""
    training = Training([*range(1, 30)])
    training.broken = errors.Unreachable("no answer")
    for step in range(1, MAX_HELD + 1):
        training.do(step)
    training.broken = None
    training.do(MAX_HELD + 1)
    assert len(training.durable) == MAX_HELD + 1 - MAX_PENDING
    training.broken = errors.Unreachable("no answer")
    for step in range(MAX_HELD + 2, 2 * MAX_HELD):
        training.do(step)
    with pytest.raises(errors.Unreachable):  # its memory has an end
        training.do(2 * MAX_HELD)


def test_which_steps_are_chosen() -> None:
    def chosen(total: int, **keep: object) -> list[int]:
        return intermediate.chosen(KeepIntermediate.model_validate(keep), total)

    assert intermediate.chosen(None, 100) == []
    assert chosen(500, everySteps=100) == [100, 200, 300, 400, 500]
    assert chosen(500, steps=[7, 200, 501], everySteps=250) == [7, 200, 250, 500]
    assert len(chosen(6400, everySteps=100)) == 64
    for keep in ({"everySteps": 1}, {"everySteps": 100, "steps": [1]}):
        with pytest.raises(Failure, match="at most 64 are kept"):
            chosen(6400, **keep)
