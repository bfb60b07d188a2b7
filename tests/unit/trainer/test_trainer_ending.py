"""The last words of a trainer, which Kubernetes cuts at 4 KiB."""

from __future__ import annotations

import pytest

from lorafinetune.contract.event import MAX_MESSAGE, Termination
from lorafinetune_trainer.ending import MAX_TERMINATION_BYTES, fitted


@pytest.mark.parametrize("letter", ["a", "\\", "\n", "\x01", "é", "写", "😀", "\udcff"])
def test_last_words_of_any_script_stay_readable(letter: str) -> None:
    body = fitted({"exitCode": 78, "reason": "UndecodableImage", "message": "begin " + letter * (MAX_MESSAGE - 6)})
    assert len(body) <= MAX_TERMINATION_BYTES
    read = Termination.model_validate_json(body)
    assert (read.exit_code, read.reason) == (78, "UndecodableImage")
    assert read.message.startswith("begin ")
    assert len(read.message) > MAX_TERMINATION_BYTES // 6 - 50
