"""A run config that is wrong: each field by its name in the spec, what was given, and the fix; all of it at once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import canonical
from lorafinetune.contract.runconfig import ENV_RUN_CONFIG, STORAGE_CREDENTIALS
from lorafinetune.engine.observation import RunSeen
from lorafinetune.kube import pods
from lorafinetune_trainer import fieldnames, places
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.main import parse, read_config
from tests.manifests import FINETUNE

GOOD: dict[str, Any] = {
    "run": {"name": "timber", "uid": "hand0001"},
    "baseModel": {"source": "tiny-sdxl"},
    "dataset": {"source": "photographs"},
    "storage": {"uri": "s3://loras/"},
}
WRONG: dict[str, tuple[Any, str]] = {
    "training.lora.dropout": (0.1, "is 0.1, and must be 0 (dropout inside the adapter is not supported)"),
    "training.resolution": (1000, "is 1000, and must be a multiple of 64"),
    "training.steps": ("many", 'is "many", and must be a whole number'),
    "training.seed": (-3, "is -3, and must be 0 or more"),
    "training.precision": ("fp8", "is \"fp8\", and must be 'bf16', 'fp16' or 'fp32'"),
    "training.lora": (4, "is 4, and must be an object, { ... }"),
    "training.randomFlip": ("yes", 'is "yes", and must be true or false'),
    "training.randomCrop": (1, "is 1, and must be true or false"),
    "training.batchSize": ("4", 'is "4", and must be a whole number'),
    "training.learningRate": ("1e-4", 'is "1e-4", and must be a number'),
    "training.compile": ("true", 'is "true", and must be true or false'),
    "checkpoint.keepIntermediate": ({"steps": ["2"]}, '.steps[0] is "2", and must be a whole number'),
    "training.learning_rate": (1e-4, "is no field: write training.learningRate"),
    "training.learningrate": (1e-4, "is no field: write training.learningRate"),
    "training.rank": (8, "is no field: write training.lora.rank"),
    "validation.promts": (["a cat"], "is no field: write validation.prompts"),
    "validation.prompts": ("a cat", 'is "a cat", and must be a list'),
    "run.uid": ("", 'is "", and must be a text that is not empty'),
    "run.name": ("a/b", 'is "a/b", and must be letters, digits, dots, dashes and underscores'),
    "run.extra": (1, "is no field: remove it (there are name, namespace, uid)"),
    "training.hyper": (1, "is no field: remove it (there are aspectBuckets, batchSize, captions, "),
    "training.networkDim": (8, "is no field: write training.lora.rank"),
    "training.network_alpha": (8, "is no field: write training.lora.alpha"),
    "training.lora.dim": (8, "is no field: write training.lora.rank"),
    "training.max-train-steps": (8, "is no field: write training.steps"),
    "training.max_train_epochs": (8, "is no field: write training.epochs"),
    "training.LR": (1e-4, "is no field: write training.learningRate"),
    "training.train_batch_size": (1, "is no field: write training.batchSize"),
    "dataset.path": ("photographs", "is no field: write dataset.source"),
    "baseModel.path": ("tiny-sdxl", "is no field: write baseModel.source"),
    "outputDir": ("loras", "is no field: write storage.uri"),
    "pretrained_model_name_or_path": ("tiny-sdxl", "is no field: write baseModel.source"),
    "storage.uri": ("loras/", ": 'loras/' is not of the form s3://bucket/prefix/"),
    "storage.credentialsSecret": ("keys", "is no field here: that is for Kubernetes: name a folder with the keys in"),
    "placement": ({}, "is no field here: that is for Kubernetes: remove it"),
    "apiVersion": ("v1", "is no field here: this looks like a Kubernetes resource"),
    "noticeSeconds": (-1, "is -1, and must be more than 0"),
}


def test_names_of_other_scripts_lead_to_fields_that_there_are() -> None:
    assert {path for path, _ in fieldnames.every()} >= fieldnames.ELSEWHERE.keys()


def put(config: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        config = config.setdefault(name, {})
    config[last] = value


def refusal(folder: Path, text: str) -> str:
    file = folder / "run.json"
    file.write_text(text)
    with pytest.raises(Failure) as caught:
        read_config(file)
    assert (caught.value.code, caught.value.reason) == (78, "InvalidConfig")
    return caught.value.message.replace(str(file), "run.json")


@pytest.mark.parametrize("path", WRONG)
def test_each_field_is_named_with_what_was_given_and_the_way_out(path: str, tmp_path: Path) -> None:
    config = copy.deepcopy(GOOD)
    value, words = WRONG[path]
    if path == "validation.promts":
        put(config, "validation.prompts", ["a cat"])
    put(config, path, value)
    message = refusal(tmp_path, json.dumps(config))
    assert message.startswith(f"run.json: {path}{'' if words[0] in ':.' else ' '}{words}")


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    config = {**copy.deepcopy(GOOD), "kind": "LoRAFineTune", "metadata": {}, "apiVersion": "v1"}
    for path in ("training.seed", "training.rank", "training.lora.dropout"):
        put(config, path, WRONG[path][0])
    del config["dataset"]
    lines = refusal(tmp_path, json.dumps(config)).splitlines()
    assert lines[0] == "5 things are wrong in run.json:"
    assert {line.split()[1] for line in lines[1:]} == {
        "apiVersion", "dataset", "training.seed", "training.rank", "training.lora.dropout",
    }  # fmt: skip
    assert "- dataset is missing: add it" in lines


def test_a_field_that_stands_twice_in_one_object(tmp_path: Path) -> None:
    text = json.dumps(GOOD)
    again = text.replace('"source": "tiny-sdxl"', '"source": "tiny-sdxl", "source": "other"')
    assert refusal(tmp_path, again) == "run.json: baseModel.source stands there more than once: keep one of them"
    wrong = again.replace("}, ", '}, "training": {"steps": "9"}, ', 1)
    assert refusal(tmp_path, wrong).splitlines()[1:] == [
        '- training.steps is "9", and must be a whole number',
        "- baseModel.source stands there more than once: keep one of them",
    ]


def test_what_an_operator_writes_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LoRAFineTuneSpec.model_validate(FINETUNE["spec"])
    config = pods.run_config(RunSeen("default", "timber", "0b1c2d3e", 1, 0.0), spec, pods.Trainer(image="trainer"))
    monkeypatch.setenv(ENV_RUN_CONFIG, canonical.encode(config.to_json()).decode())
    assert read_config(None) == config


def test_a_run_config_without_its_option() -> None:
    for arguments, words in ((["run.json"], "write --config run.json"), (["--no"], "unrecognized arguments: --no")):
        with pytest.raises(Failure) as caught:
            parse(arguments)
        assert (caught.value.code, caught.value.message) == (78, words)


def test_what_does_not_go_together_is_told_with_the_place_of_the_run(tmp_path: Path) -> None:
    config = copy.deepcopy(GOOD)
    put(config, "training", {"steps": 10, "epochs": 2})
    put(config, "storage.uri", "loras")
    lines = refusal(tmp_path, json.dumps(config)).splitlines()
    assert len(lines) == 3
    assert "training.epochs and training.steps" in lines[1]
    assert lines[2].startswith("- storage.uri: 'loras'")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path, '{"run": ').startswith("run.json: it is not JSON: EOF while parsing")
    assert refusal(tmp_path, "[]") == "run.json: it must be an object, { ... }"
    for file, words in (("none.json", "No such file"), ("latin.json", "not UTF-8")):
        (tmp_path / "latin.json").write_bytes(b'{"run": "caf\xe9"}')
        with pytest.raises(Failure, match=words):
            read_config(tmp_path / file)


def test_a_scratch_folder_is_made_or_refused(tmp_path: Path) -> None:
    places.make_scratch(None)
    places.make_scratch(str(tmp_path / "new" / "scratch"))
    assert (tmp_path / "new" / "scratch").is_dir()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(
            Failure, match=rf"^scratch {folder} cannot be written to \(.*\): name a folder that can"
        ) as e:
            places.make_scratch(str(folder))
        assert (e.value.code, e.value.reason) == (78, "InvalidConfig")


def test_credentials_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"^storage\.credentials /none is not a folder: name one that holds the files"):
        places.read_credentials("/none")
    with pytest.raises(Failure, match=r"the folder storage\.credentials .* lacks AWS_ACCESS_KEY_ID and AWS_SECRET"):
        places.read_credentials(str(tmp_path))
    with pytest.raises(Failure, match=r"^the Secret of storage\.credentialsSecret lacks "):
        places.read_credentials(STORAGE_CREDENTIALS)
