"""TensorBoard's package is optional: who asks for its files and lacks it is told before anything costs time."""

from __future__ import annotations

import sys

import pytest

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.telling import tensorboard


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorboard.require(True)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    tensorboard.require(False)
    with pytest.raises(Failure, match=r"metrics\.tensorBoard.*lorafinetune\[trainer,tensorboard\]") as caught:
        tensorboard.require(True)
    assert (caught.value.code, caught.value.reason) == (ExitCode.INVALID, "TensorBoardMissing")
