"""Base models from each kind of place, folders and single files: what is fetched, and how it ends where it fails."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import struct
from pathlib import Path

import pytest

from examples import single_file
from lorafinetune.contract import canonical, layout
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import header
from lorafinetune_trainer.base.files import PREFIXES
from lorafinetune_trainer.saving import state
from tests.integration.trainer import hub
from tests.integration.trainer.process import Run, Trainer, Trainers, in_preloaded

STEPS = {"training": {"steps": 400}}


@pytest.fixture(scope="module")
def single(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as one file, its configs beside it."""
    file = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    return in_preloaded(single_file.write, tiny_model, file)


def put(bucket: Bucket, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(str(path.relative_to(folder)), path.read_bytes())


def fetched(attempt: Trainer) -> list[tuple[int, str]]:
    """Return how many bytes of the base model the attempt says that it has fetched, and from where, each time."""
    notes = [str(line["note"]) for line in attempt.lines if "note" in line]
    found = (re.match(r"base model: (\d+) bytes from (.+) in [\d.]+ s$", text) for text in notes)
    return [(int(one[1]), one[2]) for one in found if one]


def interrupt(run: Run) -> Trainer:
    attempt = run.start()
    attempt.wait_for_checkpoint(2)
    attempt.kill(signal.SIGTERM)
    assert attempt.end(30) == 75, attempt.tail()
    return attempt


def test_one_file_from_path_and_bucket_makes_the_lora_of_the_folder(
    trainers: Trainers, single: Path, name: str
) -> None:
    put(trainers.s3.bucket(f"s3://loras/{name}/"), single.parent)
    source = f"s3://loras/{name}/{single.name}"
    some = {"training": {"steps": 12}}
    by_folder, by_path, by_s3 = (
        trainers.run(f"{name}-folder", **some),
        trainers.run(f"{name}-path", baseModel={"source": str(single)}, **some),
        trainers.run(f"{name}-s3", baseModel={"source": source}, **some),
    )
    by_folder.finish()
    (said,) = (one["note"] for one in by_path.finish().lines if str(one.get("note")).startswith("base model: "))
    assert said == f"base model: {single}, on this machine"
    loras = [state.decode(run.file()).tensors for run in (by_folder, by_path)]
    assert loras[0].keys() == loras[1].keys()
    assert all(loras[0][key].equal(loras[1][key]) for key in loras[0])

    ((everything, where),) = fetched(interrupt(by_s3))
    assert where == source
    second = by_s3.finish()
    assert second.of_type("started")[0]["step"] > 0
    assert by_s3.file() == by_path.file()
    head = header.read(single)
    unet = sum(one.end - one.first for key, one in head.tensors.items() if key.startswith(PREFIXES["unet"]))
    configs = [path for path in single.with_name(f"{single.name}.config").rglob("*") if path.is_file()]
    beginning = min(head.size, 512 * 1024)
    ((count, _),) = fetched(second)
    assert count == beginning + head.start + unet + sum(path.stat().st_size for path in configs) < everything


def test_another_family_is_refused_before_its_weights_are_fetched(trainers: Trainers, single: Path, name: str) -> None:
    body = single.read_bytes()
    (length,) = struct.unpack_from("<Q", body)
    members = json.loads(body[8 : 8 + length])
    other = {key.replace("conditioner.embedders.0.", "cond_stage_model."): value for key, value in members.items()}
    text = json.dumps(other).encode()
    file = struct.pack("<Q", len(text)) + text + body[8 + length :] + bytes(4 * 1024 * 1024)
    trainers.s3.bucket("s3://loras/").put(f"{name}/sd15.safetensors", file)
    attempt = trainers.run(name, baseModel={"source": f"s3://loras/{name}/sd15.safetensors"}).start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == "WrongBaseModel"
    assert "it is a Stable Diffusion 1 model" in attempt.last_words.message
    assert f"{name}/sd15.safetensors" in attempt.last_words.message


def _fetch_from_hub(endpoint: str, source: str, folder: str, parts: list[str]) -> tuple[str, int]:
    """Fetch in a process whose hub is *endpoint*; return digest and bytes, or the words of the failure."""
    from huggingface_hub import constants

    from lorafinetune.contract.runconfig import BaseModelSource
    from lorafinetune_trainer.base import fetching
    from lorafinetune_trainer.base.files import TRAINED
    from lorafinetune_trainer.base.places import Means
    from lorafinetune_trainer.failure import Failure

    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = endpoint, False, folder
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"

    def no_bucket(location: object) -> Bucket:
        raise AssertionError("no bucket")

    means = Means(no_bucket, Path(folder))
    try:
        files = fetching.fetch(BaseModelSource(source=source), frozenset(parts), means, half=False)
    except Failure as failure:
        return failure.message, means.traffic.fetched
    return files.digest(TRAINED), means.traffic.fetched


def test_one_file_from_the_hub(single: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(single.parent, repository / "models")
    body = single.read_bytes().replace(b"model.diffusion_model.output_blocks", b"model.diffusion_model.double_blocks")
    (repository / "models/flux.safetensors").write_bytes(body)
    parts = ["unet", "scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    with hub.serve(repository) as (endpoint, asked):
        source = f"hf://{hub.REPOSITORY}/models/{single.name}"
        digest, count = in_preloaded(_fetch_from_hub, endpoint, source, str(tmp_path / "cache"), parts)
        assert any(path.endswith(f"{single.name} bytes=0-100000") for path in asked), (digest, asked)
        configs = single.with_name(f"{single.name}.config")
        assert count == single.stat().st_size + sum(one.stat().st_size for one in configs.rglob("*") if one.is_file())
        again = in_preloaded(_fetch_from_hub, endpoint, source, str(tmp_path / "cache"), parts)
        assert again == (digest, 0)
        by_path, _ = in_preloaded(_fetch_from_hub, endpoint, str(single), str(tmp_path), parts)
        assert digest == by_path
        asked.clear()
        words, count = in_preloaded(
            _fetch_from_hub, endpoint, source.replace(single.name, "flux.safetensors"), str(tmp_path / "cache"), parts
        )
        assert "it is a Flux model" in words
        assert count == 0
        assert [path for path in asked if path.endswith("flux.safetensors")] == []
        words, _ = in_preloaded(_fetch_from_hub, endpoint, f"hf://{hub.REPOSITORY}/x.safetensors", str(tmp_path), parts)
        assert "has no file x.safetensors" in words


def test_a_resume_takes_the_hubs_model_from_the_runs_own_prefix(
    trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """Its VAE, too, which the pictures need; the first attempt fetches each file from the hub once."""
    pictures = {"prompts": ["a dog"], "everySteps": 2, "inferenceSteps": 1}
    with hub.serve(tiny_model) as (endpoint, asked):
        environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path / "home")}
        source = {"source": f"hf://{hub.REPOSITORY}"}
        run = trainers.run(name, baseModel=source, scratch=str(tmp_path), validation=pictures, **STEPS)
        first = trainers.start(run.config, [], environment=environment, cold=True)
        first.wait_for_note("kept in the run's bucket")
        first.wait_for(lambda event: event.get("phase") == "Validating" and event.get("done") == 1)
        first.wait_for_checkpoint(2)
        first.kill(signal.SIGTERM)
        assert first.end(30) == 75, first.tail()
        got = {path for path in asked if path.endswith(".safetensors")}
        assert len(got) == 4
        assert all(asked.count(path) <= 2 for path in got), "each is looked at and got once"
    assert len(fetched(first)) == 1

    def size(*names: str) -> int:
        return sum((tiny_model / one).stat().st_size for one in names)

    unet = size("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")
    vae = size("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
    # The hub is gone, and these processes would not ask it: what they have is what the run has kept.
    second = run.start()
    second.wait_for(lambda event: event.get("phase") == "Validating" and event.get("done") == 1)
    second.kill(signal.SIGTERM)
    assert second.end(30) == 75, second.tail()
    assert fetched(second) == [(unet, "the run's bucket"), (vae, "the run's bucket")]
    assert second.of_type("started")[0]["step"] >= 2
    keys = [one.key for one in run.bucket.walk(layout.BASE)]
    assert len(keys) == 6
    body = (tiny_model / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    run.bucket.put(layout.BASE + canonical.sha256(body), b"x" + body[1:])
    third = run.start()
    assert third.end() == 74, third.tail()
    assert "the base model in the run's bucket is damaged" in third.tail()
    assert third.last_words.reason == "HubUnreachable"


def test_a_disk_that_is_full(trainers: Trainers, single: Path, name: str) -> None:
    """It fills while the model is fetched. A limit on the size of files stands in for it: as errors they are alike."""
    put(trainers.s3.bucket(f"s3://loras/{name}/"), single.parent)
    run = trainers.run(name, baseModel={"source": f"s3://loras/{name}/{single.name}"})
    attempt = run.start()
    pid = attempt.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    assert attempt.end() == 73, attempt.tail()
    assert attempt.last_words.reason == "DiskFull"
    assert re.search(r"the disk of /.* is full: baseModel.source .* needs [\d,]+ MB", attempt.last_words.message)
    assert "scratch volume" in attempt.last_words.message
    assert run.head.checkpoints == []


def test_a_disk_that_is_too_small(trainers: Trainers, single: Path, small_disk: Path, name: str) -> None:
    put(trainers.s3.bucket(f"s3://loras/{name}/"), single.parent)
    source = f"s3://loras/{name}/{single.name}"
    attempt = trainers.run(name, baseModel={"source": source}, scratch=str(small_disk)).start()
    assert attempt.end() == 73, attempt.tail()
    assert attempt.last_words.reason == "DiskFull"
    words = rf"the disk of {small_disk}/.* is full: .*{source} needs [\d,]+ MB, and [\d,]+ MB are free: "
    assert re.search(words, attempt.last_words.message), attempt.last_words.message
