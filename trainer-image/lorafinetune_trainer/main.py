"""The command line: read what the attempt is told, run it, and end the process in order."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from lorafinetune.contract import coherence
from lorafinetune.contract.runconfig import (
    ENV_POD_UID,
    ENV_RUN_CONFIG,
    ENV_TERMINATION_LOG,
    MAX_RUN_CONFIG_BYTES,
    RunConfig,
)
from lorafinetune_trainer import attempt, imports, places
from lorafinetune_trainer.complaints import complaints, twice
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure, explain, invalid


def main(arguments: Sequence[str], ending: Ending) -> NoReturn:
    """Run one attempt; *ending* is listening already. Never returns."""
    log = os.environ.get(ENV_TERMINATION_LOG)
    ending.termination_log = Path(log) if log else None
    try:
        options = parse(arguments)
        config = read_config(options.config)
        ending.notice_seconds = config.notice_seconds
        places.make_scratch(config.scratch)
        imports.settle(config.scratch)
        pod_uid = os.environ.get(ENV_POD_UID) or str(uuid.uuid4())
        code = attempt.run(config, attempt.Told(options.attempt, pod_uid, options.resume_from), ending)
    except SystemExit:  # --help
        raise
    except BaseException as error:  # whatever it is, the process ends in order and says why
        failure = explain(error)
        if failure.reason == "TrainerError":
            traceback.print_exc()
        elif ending.reporter is None:
            print(f"{failure.reason}: {failure.message}", file=sys.stderr)
        ending.fail(failure)
    ending.finish(code)


def read_config(path: Path | None) -> RunConfig:
    """Return the run config of *path*, or of the environment; raises Failure (INVALID) naming field and fix."""
    if path is not None:
        try:
            text = path.read_text()
        except OSError as error:
            raise invalid("InvalidConfig", f"{path} cannot be read ({error.strerror}): correct --config") from error
        except UnicodeDecodeError as error:
            raise invalid("InvalidConfig", f"{path} is not UTF-8 text: save it as UTF-8") from error
    else:
        text = os.environ.get(ENV_RUN_CONFIG, "")
        if not text:
            raise invalid("InvalidConfig", f"give --config run.json, or the run config in {ENV_RUN_CONFIG}")
    if len(text) > MAX_RUN_CONFIG_BYTES:
        raise invalid("InvalidConfig", f"the run config has more than {MAX_RUN_CONFIG_BYTES} bytes")
    try:
        config = RunConfig.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _refuse([*complaints(error), *twice(text)], path) from error
    wrong = [*twice(text), *coherence.contradictions(config)]
    try:
        _ = config.prefix
    except ValueError as error:
        wrong.append(f"storage.uri: {error}")
    if wrong:
        raise _refuse(wrong, path)
    return config


def _refuse(wrong: Sequence[str], path: Path | None) -> Failure:
    """Return the failure of a run config that has so much *wrong* with it, one thing a line where it is a file."""
    if path is None:
        return invalid("InvalidConfig", "; ".join(wrong))
    if len(wrong) == 1:
        return invalid("InvalidConfig", f"{path}: {wrong[0]}")
    return invalid("InvalidConfig", "\n- ".join([f"{len(wrong)} things are wrong in {path}:", *wrong]))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2, 3 ...")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise invalid("InvalidArguments", message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says; raises Failure (INVALID) with the way to write it."""
    parser = _Parser(
        prog="python -m lorafinetune_trainer",
        description="Train a LoRA for SDXL, resuming from what the run has in its bucket. Ctrl-C saves the last step.",
    )
    parser.add_argument("--config", type=Path, help=f"run config (JSON); default: the value of {ENV_RUN_CONFIG}")
    parser.add_argument("--attempt", type=_positive, help="number of this attempt; default: one more than the last")
    parser.add_argument("--resume-from", metavar="URI", help="checkpoint that the caller knows of; the head decides")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        lone = len(unknown) == 1 and options.config is None and not unknown[0].startswith("-")
        parser.error(f"write --config {unknown[0]}" if lone else f"unrecognized arguments: {' '.join(unknown)}")
    return options
