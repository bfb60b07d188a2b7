"""What users give: images and base models from each kind of place; what is wrong with them is said in one sentence."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafinetune.contract.runconfig import ENV_RUN_CONFIG
from tests.integration.trainer import hub
from tests.integration.trainer.process import Run, Trainers, in_preloaded


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _put_nan(folder: str, part: str) -> None:
    """Put a NaN into a part's last weight, with the libraries' own loading and saving."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kind = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}[part]
    model = kind.from_pretrained(Path(folder) / part)
    with torch.no_grad():
        (model.encoder if part == "vae" else model).conv_out.weight[0] = float("nan")
    model.save_pretrained(Path(folder) / part)


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda model: (model / "model_index.json").unlink(), "model_index.json"),
    "cut weights": (
        lambda model: (model / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{"),
        "unet/diffusion_pytorch_model.safetensors is damaged (its header alone has 32 bytes",
    ),
    "cut encoder": (
        lambda model: (model / "text_encoder/model.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{"),
        "text_encoder/model.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_wrong_base_model(what: str, trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str) -> None:
    change, words = MODELS[what]
    model = copy(tiny_model, tmp_path / "model")
    change(model)
    attempt = trainers.run(name, baseModel={"source": str(model)}).start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == "WrongBaseModel"
    assert words in attempt.last_words.message
    (failed,) = attempt.of_type("failed")
    assert (failed["reason"], failed["message"]) == (attempt.last_words.reason, attempt.last_words.message)


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("/no/such/folder", 78, "not a folder of this machine"),
        ("s3://loras/nothing-here/", 78, "nothing lies at"),
        (
            "s3://no-such-bucket/model/",
            77,
            "baseModel.source s3://no-such-bucket/model/: bucket 'no-such-bucket' does not",
        ),
        ("hf://not a name/", 78, "does not exist on the hub"),
    ],
)
def test_a_base_model_that_is_not_there(source: str, code: int, words: str, trainers: Trainers, name: str) -> None:
    attempt = trainers.run(name, baseModel={"source": source}).start()
    assert attempt.end() == code, attempt.tail()
    assert words in attempt.last_words.message


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [({}, "EmptyDataset", "holds no image"), ({"cat.png": b"no picture"}, "UndecodableImage", "cat.png")],
)
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_wrong_dataset(
    files: dict[str, bytes], reason: str, words: str, place: str, trainers: Trainers, tmp_path: Path, name: str
) -> None:
    source = str(tmp_path) if place == "folder" else f"s3://loras/{name}/images/"
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
        trainers.s3.bucket("s3://loras/").put(f"{name}/images/{file}", content)
    attempt = trainers.run(name, dataset={"source": source}).start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == reason
    assert words in attempt.last_words.message
    assert len(attempt.of_type("failed")) == 1


def test_a_loss_that_stays_nan(trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str) -> None:
    model = copy(tiny_model, tmp_path / "model")
    in_preloaded(_put_nan, str(model), "unet")
    run = trainers.run(name, baseModel={"source": str(model)}, training={"steps": 100})
    attempt = run.start()
    assert attempt.end() == 72, attempt.tail()
    assert attempt.last_words.reason == "NaNLoss"
    assert attempt.last_words.step == 10
    assert "training.learningRate" in attempt.last_words.message
    assert run.head.artifact is None


def test_a_run_of_few_steps_that_are_all_nan_publishes_nothing(
    trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    model = copy(tiny_model, tmp_path / "model")
    in_preloaded(_put_nan, str(model), "unet")
    run = trainers.run(name, baseModel={"source": str(model)}, training={"steps": 3})
    for _ in range(2):  # the second attempt finds nothing left to do
        attempt = run.start()
        assert attempt.end() == 72, attempt.tail()
        assert attempt.last_words.reason == "NaNLoss"
        assert "in 3 steps in a row, up to step 3" in attempt.last_words.message
    assert run.head.artifact is None


def test_a_vae_that_makes_nan(trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str) -> None:
    model = copy(tiny_model, tmp_path / "model")
    in_preloaded(_put_nan, str(model), "vae")
    attempt = trainers.run(name, baseModel={"source": str(model)}).start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == "NaNLatents"
    assert "cat.png" in attempt.last_words.message
    assert "baseModel.vae" in attempt.last_words.message
    mended = trainers.run(name, baseModel={"source": str(model), "vae": str(tiny_model)})
    mended.finish()
    root = copy(tiny_model / "vae", tmp_path / "vae")  # a repository that holds a VAE and nothing else
    other = trainers.run(f"{name}-root", baseModel={"source": str(model), "vae": str(root)})
    other.finish()
    assert mended.file() == other.file()


def test_out_of_memory(trainers: Trainers, name: str) -> None:
    attempt = trainers.run(name, training={"batchSize": 64, "resolution": 256, "gradientAccumulation": 1}).start()
    attempt.wait_for_phase("Conditioning")
    pid = attempt.process.pid
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + 250 * 2**20, used + 250 * 2**20))
    assert attempt.end() == 71, attempt.tail()
    assert attempt.last_words.reason == "OutOfMemory"
    assert "training.gradientCheckpointing" in attempt.last_words.message


def test_a_run_config_that_is_wrong(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    good = run.config.to_json()
    cases = {
        "training.resolution": {**good, "training": {"resolution": 100}},
        "baseModel": {key: value for key, value in good.items() if key != "baseModel"},
        "training.stepz": {**good, "training": {"stepz": 1}},
    }
    for field, config in cases.items():
        attempt = trainers.start(run.config, [], environment={ENV_RUN_CONFIG: json.dumps(config)})
        assert attempt.end() == 78
        assert attempt.last_words.reason == "InvalidConfig"
        assert field in attempt.last_words.message
    attempt = trainers.start(run.config, ["--atempt", "1"])
    assert attempt.end() == 78
    assert attempt.last_words.reason == "InvalidArguments"


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"dataset": {"instancePrompt": "dog " * 1100}}, "CaptionTooLong", "dataset.instancePrompt takes "),
        (
            {"dataset": {"instancePrompt": "dog " * 1100}, "training": {"lora": {"rank": 4, "textEncoder": True}}},
            "CaptionTooLong",
            "dataset.instancePrompt takes ",
        ),
        (
            {"validation": {"prompts": ["a dog", "dog " * 1100]}},
            "CaptionTooLong",
            "validation.prompts[1] takes ",
        ),
        ({"training": {"steps": None, "epochs": 1, "warmupSteps": 9}}, "InvalidConfig", "training.warmupSteps is 9"),
    ],
    ids=["prompt", "prompt of trained encoders", "picture", "warm-up"],
)
def test_a_field_that_only_the_images_show_to_be_wrong_is_named(
    changes: dict[str, object], reason: str, words: str, trainers: Trainers, name: str
) -> None:
    attempt = trainers.run(name, **changes).start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == reason
    assert words in attempt.last_words.message


def stopped(trainers: Trainers, name: str, **changes: object) -> Run:
    run = trainers.run(name, **changes)
    attempt = run.start()
    attempt.wait_for_checkpoint(2)
    attempt.kill(signal.SIGTERM)
    assert attempt.end(20) in (75, 0)
    return run


def test_other_inputs_than_the_run_began_with(
    trainers: Trainers, tiny_model: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    data, model = copy(photos, tmp_path / "data"), copy(tiny_model, tmp_path / "model")
    steps = {"training": {"steps": 400}, "dataset": {"source": str(data)}, "baseModel": {"source": str(model)}}
    run = stopped(trainers, name, **steps)
    training = run.config.training

    def refused(words: str, **changes: object) -> None:
        attempt = run.start(**changes)
        assert attempt.end() == 78, attempt.tail()
        assert attempt.last_words.reason == "PlanMismatch"
        assert words in attempt.last_words.message

    refused("training.learningRate was 0.001, now 0.1", training=training.model_copy(update={"learning_rate": 0.1}))
    refused("training.epochs was None, now 7", training=training.model_copy(update={"steps": None, "epochs": 7}))
    refused("but step", training=training.model_copy(update={"steps": 1}))
    (data / "coffee.txt").write_text("a picture of a dog")
    refused("the images or captions of dataset.source have changed")
    (data / "coffee.txt").write_text("a picture of a cup of coffee\n")
    edit_json(model / "scheduler/scheduler_config.json", beta_end=0.013)
    refused("the weights of baseModel.source have changed")


def test_steps_cadence_and_places_may_change(
    trainers: Trainers, tiny_model: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    undisturbed = trainers.run(f"{name}-undisturbed", training={"steps": 8})
    undisturbed.finish()
    run = trainers.run(name)
    run.finish()
    moved = copy(photos, tmp_path / "data")
    later = run.start(
        training=run.config.training.model_copy(update={"steps": 8}),
        checkpoint=run.config.checkpoint.model_copy(update={"every_steps": 1, "keep": 3}),
        dataset=run.config.dataset.model_copy(update={"source": str(moved)}),
    )
    assert later.end() == 0, later.tail()
    assert later.of_type("started")[0]["step"] == 6
    assert run.file() == undisturbed.file()
    assert {one.key.split("/")[1] for one in run.bucket.walk("artifacts/")} == {"2"}


def _save_half(source: str, target: str) -> None:
    """Save the model as the hub has many: 16-bit variants only, the UNet's in shards."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(source, dtype=torch.float16, local_files_only=True)
    pipeline.save_pretrained(target, variant="fp16", max_shard_size="1MB")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_exactly_too(
    precision: str, trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    training = {"precision": precision, "gradientCheckpointing": True, "schedule": "cosine", "warmupSteps": 2}
    model = tiny_model
    if precision == "fp16":
        model = tmp_path / "half"
        in_preloaded(_save_half, str(tiny_model), str(model))
        assert list(model.glob("unet/*.fp16-*-of-*.safetensors"))
    changes = {"training": training, "baseModel": {"source": str(model)}}
    undisturbed = trainers.run(f"{name}-undisturbed", **changes)
    undisturbed.finish()
    run = stopped(trainers, name, **changes)
    run.finish()
    assert run.file() == undisturbed.file()


def test_model_and_images_from_folder_and_bucket_make_the_same_lora(
    trainers: Trainers, tiny_model: Path, photos: Path, name: str
) -> None:
    (tiny_model / "README.md").write_text("not wanted\n")
    by_folder = trainers.run(f"{name}-folder")
    by_folder.finish()
    for place, folder in (("model", tiny_model), ("data", photos)):
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{name}/{place}/{path.relative_to(folder)}"
                trainers.s3.bucket("s3://loras/").put(key, path.read_bytes())
    by_s3 = trainers.run(
        f"{name}-s3",
        baseModel={"source": f"s3://loras/{name}/model"},
        dataset={"source": f"s3://loras/{name}/data/"},
    )
    by_s3.finish()
    assert by_folder.file() == by_s3.file()


def test_a_base_model_from_the_hub(trainers: Trainers, tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Cold processes: where the hub is, its library reads when it is imported."""
    (tmp_path / "HF_TOKEN").write_text("hf_secret\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = {"source": f"hf://{hub.REPOSITORY}"}
    with hub.serve(tiny_model, token="hf_secret") as (endpoint, asked):
        environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path / "home")}

        def refused(code: int, reason: str, words: str, **base_model: str) -> None:
            other = trainers.run(f"{name}-{reason.lower()}", baseModel={**source, **base_model}, scratch=str(scratch))
            config = other.config
            attempt = trainers.start(config, [], environment=environment, cold=True)
            assert attempt.end() == code, attempt.tail()
            assert attempt.last_words.reason == reason
            assert words in attempt.last_words.message

        refused(78, "BaseModelDenied", "baseModel.credentialsSecret")
        refused(78, "WrongBaseModel", "no revision 'v9'", revision="v9", hubCredentials=str(tmp_path))
        run = trainers.run(name, baseModel={**source, "hubCredentials": str(tmp_path)}, scratch=str(scratch))
        attempt = trainers.start(run.config, [], environment=environment, cold=True)
        attempt.wait_for_checkpoint(2)
        attempt.kill(signal.SIGTERM)
        assert attempt.end(30) in (75, 0), attempt.tail()
        assert "hf_secret" not in attempt.tail()
        assert (scratch / "hub" / "hub").is_dir()
        assert not (tmp_path / "home").exists(), "a pod's root is read-only"
        assert any(path.endswith("unet/diffusion_pytorch_model.safetensors") for path in asked)
        assert not any("README" in path for path in asked)
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    refused(74, "HubUnreachable", "ConnectError", hubCredentials=str(tmp_path))
