"""What the demo puts into its manifests, and what it writes."""

from __future__ import annotations

import io
import os

import pytest
import yaml

from examples.demo import stagehands
from examples.demo.screen import GUTTER, Screen
from localcluster.s3 import S3Access
from lorafinetune.api.finetune import LoRAFineTuneSpec, OnDelete

ACCESS = S3Access("http://127.0.0.1:4711", "LFTACCESS", "secret/with+signs=")


def test_the_run_names_this_server_and_nothing_else_is_changed() -> None:
    filled = yaml.safe_load(stagehands.filled_run(ACCESS.endpoint))
    original = yaml.safe_load(stagehands.TIMBER.read_text())
    assert filled["spec"]["storage"].pop("endpoint") == ACCESS.endpoint
    assert original["spec"]["storage"].pop("endpoint") == stagehands.ENDPOINT
    assert filled == original
    spec = LoRAFineTuneSpec.model_validate(filled["spec"])
    assert spec.storage.on_delete is OnDelete.DELETE_ALL
    assert spec.training.steps >= 4 * spec.checkpoint.every_steps, "two faults, each past a checkpoint, need room"


def test_the_secret_holds_the_keys_of_this_server() -> None:
    filled = yaml.safe_load(stagehands.filled_secret(ACCESS))
    assert filled["stringData"] == {
        "AWS_ACCESS_KEY_ID": ACCESS.access_key,
        "AWS_SECRET_ACCESS_KEY": ACCESS.secret_key,
    }


def test_the_run_uses_a_pool_and_a_secret_of_the_examples() -> None:
    spec = LoRAFineTuneSpec.model_validate(yaml.safe_load(stagehands.TIMBER.read_text())["spec"])
    pools = {one["metadata"]["name"] for one in yaml.safe_load_all(stagehands.POOLS.read_text())}
    assert set(spec.placement.pools) <= pools
    assert spec.storage.credentials_secret == yaml.safe_load(stagehands.SECRET.read_text())["metadata"]["name"]


def test_a_pipe_gets_plain_lines_that_fit() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.section("A section")
    screen.say("word " * 60)
    screen.command("a command " * 20)
    screen.row("a row  \n")
    lines = stream.getvalue().split("\n")
    assert lines[:2] == ["", "  0:00 A section"]
    assert "\033" not in stream.getvalue()
    said = [line for line in lines if "word" in line]
    assert len(said) > 1
    assert all(len(line) <= 110 for line in said)
    assert all(line.startswith(" " * GUTTER + "word") for line in said[1:])
    assert [line for line in lines if "a command" in line] == [" " * GUTTER + "$ " + "a command " * 20]
    assert lines[-2:] == [" " * GUTTER + "a row", ""]


def test_a_reader_that_has_gone_is_told_of_once() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        screen = Screen(stream)
        with pytest.raises(BrokenPipeError):
            screen.say("something")
        screen.say("what is said while ending")
        assert screen.broken
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
