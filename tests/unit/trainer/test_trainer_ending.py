"""The last words of an attempt, whatever their length."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafinetune.contract.event import MAX_MESSAGE, Termination
from lorafinetune_trainer.ending import MAX_TERMINATION_BYTES, Ending


@pytest.mark.parametrize("letter", ["a", "\n", "猫", "\U0001f408"], ids=["plain", "escaped", "two bytes", "astral"])
def test_last_words_stay_json_in_the_room_that_there_is(letter: str, tmp_path: Path) -> None:
    """Cut in the middle they would be none, and with them step and reason would be lost."""
    ending = Ending(termination_log=tmp_path / "termination")
    ending.standing.step = ending.standing.durable_step = 7
    ending._write_last_words(78, reason="BadImage", message=letter * MAX_MESSAGE, saved=None)
    body = (tmp_path / "termination").read_bytes()
    assert len(body) <= MAX_TERMINATION_BYTES
    words = Termination.model_validate_json(body)
    assert (words.exit_code, words.step, words.reason) == (78, 7, "BadImage")
    assert words.message.startswith(letter * 300)
