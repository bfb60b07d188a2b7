"""The micro-batch by formula: on the real SDXL's config, for GPUs as they are sold, and for small hosts."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer import fitting, memory
from lorafinetune_trainer.conditioning.samples import Latents, Prompt, Sample, Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.memory import GIB, Need
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
from lorafinetune_trainer.saving.uploads import Upload
from tests.unit.trainer.product import SDXL


def config(dataset: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "one", "uid": "one"},
            "baseModel": {"source": "/model"},
            "dataset": {"source": "/photos", **(dataset or {})},
            "training": {"gradientAccumulation": 8, **training},
            "storage": {"uri": "s3://one/"},
        }
    )


@pytest.fixture(scope="module")
def counted() -> Any:
    """Counts of the real SDXL, each built once."""
    known: dict[str, tuple[int, int]] = {}
    count = memory.count

    def remember(unet: Any, encoders: Any, training: Any) -> tuple[int, int]:
        key = training.lora.model_dump_json()
        if key not in known:
            known[key] = count(unet, encoders, training)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "count", remember)
        yield remember


def test_the_real_sdxl_is_counted_without_its_weights(counted: Any) -> None:
    assert counted(SDXL, [], config(lora={"rank": 4}).training) == (memory.SDXL_PARAMETERS, 5_806_080)


@pytest.mark.parametrize(
    ("gib", "training", "images"),
    [
        (15.6, {}, 1),
        (23.6, {}, 2),
        (79.1, {}, 8),
        (23.6, {"resolution": 512}, 8),
        (11.6, {"gradientCheckpointing": True}, 3),  # three passes of three, three and two
        (23.6, {"gradientCheckpointing": True}, 8),
        (23.6, {"precision": "fp32"}, None),
        (8.0, {"gradientCheckpointing": True, "lora": {"rank": 4}}, 1),
    ],
    ids=str,
)
def test_images_at_once(gib: float, training: dict[str, Any], images: int | None, counted: Any) -> None:
    asked = config(**training)
    need = memory.need(asked, SDXL, [], gpu=True)
    if images is None:
        with pytest.raises(Failure) as caught:
            fitting.micro_batch(asked, need, host=64 * GIB, gpu=int(gib * GIB))
        assert caught.value.code is ExitCode.OUT_OF_MEMORY
        return
    assert fitting.micro_batch(asked, need, host=64 * GIB, gpu=int(gib * GIB)) == images


def test_more_is_needed_for_more(counted: Any) -> None:
    plain = memory.need(config(), SDXL, [], gpu=True)
    assert memory.need(config(optimizer="AdamW8bit"), SDXL, [], gpu=True).fixed < plain.fixed
    for changes in ({"optimizer": "Prodigy"}, {"emaDecay": 0.9}, {"lora": {"rank": 64}}):
        assert memory.need(config(**changes), SDXL, [], gpu=True).fixed > plain.fixed
    for changes in ({"lora": {"targets": "All"}}, {"lora": {"dora": True}}, {"precision": "fp32"}):
        assert memory.need(config(**changes), SDXL, [], gpu=True).image > plain.image


NEED = Need(fixed=6 * GIB, image=7 * GIB, host={"the process": 2 * GIB, "the weights while they are loaded": 7 * GIB})


def test_what_is_lacking_is_said_in_numbers_and_fields() -> None:
    with pytest.raises(Failure) as caught:
        fitting.micro_batch(config(), NEED, host=16 * GIB, gpu=8 * GIB)
    assert caught.value.reason == "OutOfMemory"
    assert caught.value.message == (
        "the GPU has 8.0 GiB for this attempt, and 1 image of 1024 pixels at once needs 13.0 GiB by calculation (6.0 "
        "GiB for weights and state, 7.0 GiB for each image): set training.gradientCheckpointing: true, or lower "
        "training.resolution, or lower training.lora.rank, or choose a pool with more memory (placement.pools)"
    )
    with pytest.raises(
        Failure,
        match=r"the host has 8\.0 GiB .*, and 9\.0 GiB are needed to train by calculation, for the weights while they "
        r"are loaded \(7\.0 GiB\), the process \(2\.0 GiB\): choose nodes",
    ):
        fitting.micro_batch(config(), NEED, host=8 * GIB, gpu=80 * GIB)
    with pytest.raises(Failure, match=r"the host has 8\.0 GiB .* needs 13\.0 GiB"):
        fitting.micro_batch(config(), NEED, host=8 * GIB, gpu=None)


def test_the_host_holds_samples_weights_and_copies_at_its_worst_moment(counted: Any) -> None:
    weights = 2 * memory.SDXL_PARAMETERS
    on_gpu = memory.need(config(), SDXL, [], gpu=True, samples=3 * GIB)
    assert on_gpu.host == {
        "the latents and embeddings": 3 * GIB,
        "the process with CUDA": memory.PROCESS_CUDA,
        "the weights while they are loaded": weights,
    }
    wide = memory.need(config(lora={"rank": 256}, optimizer="Prodigy"), SDXL, [], gpu=True)
    trained = counted(SDXL, [], config(lora={"rank": 256}).training)[1]
    assert wide.host["copies of the state"] == 3 * trained * (4 + 16) > weights
    assert "the weights while they are loaded" not in wide.host, "they have gone to the GPU before"
    here = memory.need(config(), SDXL, [], gpu=False, samples=3 * GIB)
    assert here.fixed == sum(here.host.values())
    assert here.host["the weights"] == weights
    assert here.host["the latents and embeddings"] == 3 * GIB
    pictured = RunConfig.model_validate({**config().to_json(), "validation": {"prompts": ["a dog"]}})
    vae = memory.need(pictured, SDXL, [], gpu=True).host["the VAE of the pictures"]
    assert vae == 4 * memory.VAE_PARAMETERS
    with pytest.raises(Failure, match=r"for the latents and embeddings \(30\.0 GiB\), .*: .*, or use fewer images"):
        fitting.micro_batch(
            config(),
            replace(on_gpu, host={**on_gpu.host, "the latents and embeddings": 30 * GIB}),
            host=32 * GIB,
            gpu=24 * GIB,
        )


def test_the_making_of_latents_needs_the_larger_of_two_moments() -> None:
    unet = memory.SDXL_PARAMETERS
    gpu = memory.conditioning(config(), unet, 1024 * 1024, gpu=True)
    assert gpu == {"the process with CUDA": memory.PROCESS_CUDA, "the text encoders": 4 * memory.ENCODERS_PARAMETERS}
    huge = memory.conditioning(config(), unet, 130_000_000, gpu=True)
    assert huge["images that are read"] == memory.AHEAD * memory.READ_PIXEL * 130_000_000
    assert "the text encoders" not in huge
    words = fitting.short_host(huge, 6 * GIB, "to make the latents and embeddings")
    assert words.startswith("the host has 6.0 GiB for this attempt, and 8.2 GiB are needed to make the latents")
    assert "for images that are read (4.8 GiB), the process with CUDA (3.0 GiB), the VAE (0.3 GiB): choose" in words
    assert words.endswith("or scale the largest images down")
    here = memory.conditioning(config(resolution=2048), unet, 1024 * 1024, gpu=False)
    assert here["what the VAE computes"] == memory.VAE_PIXEL * 2048**2
    small = memory.conditioning(config(), unet // 1000, 64 * 64, gpu=False)
    assert sum(small.values()) < memory.PROCESS + GIB // 50


def test_passes_are_even() -> None:
    def of(images: int, fits: int, dataset: dict[str, Any] | None = None, **training: Any) -> int:
        asked = config(dataset, gradientAccumulation=images, **training)
        return fitting.micro_batch(asked, NEED, host=64 * GIB, gpu=NEED.of(fits))

    assert [of(8, fits) for fits in (1, 2, 3, 5, 8, 9)] == [1, 2, 3, 4, 8, 8]
    assert of(5, 4) == 3
    assert of(1, 8) == 1
    assert of(200, 100) == 16
    assert of(2, 8, {"classPrompt": "a dog"}) == 4
    assert of(8, 1, microBatch=4) == 4  # who sets it knows better
    assert of(2, 1, microBatch=64) == 2


@pytest.mark.parametrize(
    ("limits", "mine", "found"),
    [
        ({"": "1000", "a": "max", "a/b": "500"}, "0::/a/b\n", [500, 1000]),
        ({"": "700"}, "0::/\n", [700]),
        ({"": "max"}, "0::/\n", []),
        ({}, "4:memory:/a\n", []),
        ({"memory/a": "500", "memory": str(2**63 - 4096)}, "5:cpu,memory:/a/b\n3:pids:/\n", [500]),
        ({"memory": "900"}, "4:memory:/kubepods/x\n0::/\n", [900]),
        ({"a": "600"}, "1:name=systemd:/x\n0::/a\n", [600]),
    ],
    ids=[
        "nested",
        "in a pod",
        "unlimited",
        "version one, nothing there",
        "version one",
        "version one, in a pod",
        "hybrid",
    ],
)
def test_limits_of_the_cgroup(limits: dict[str, str], mine: str, found: list[int], tmp_path: Path) -> None:
    for name, text in limits.items():
        (tmp_path / name).mkdir(exist_ok=True, parents=True)
        file = "memory.limit_in_bytes" if name.startswith("memory") else "memory.max"
        (tmp_path / name / file).write_text(text + "\n")
    assert memory.cgroup_limits(tmp_path, mine) == found


def test_samples_take_the_memory_that_they_say() -> None:
    """Measured: what the process grows by, in pieces too large to take the place of others. A caption that images
    share lies there once.
    """

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    shared = Prompt(torch.ones(770, 2048), torch.ones(1280))
    made = [
        Sample(
            f"{number}.png",
            (Latents(*(torch.ones(4, 1600, 1600) for _ in range(2)), torch.ones(6)),),
            (),
            (),
            (shared,),
        )
        for number in range(4)
    ]
    samples = Samples(tuple(made[:3]), tuple(made[3:]), empty=shared)
    grown = resident() - before
    assert samples.host_bytes == 4 * 4 * (2 * 4 * 1600 * 1600 + 6) + 4 * (770 * 2048 + 1280)
    assert 0.9 * samples.host_bytes < grown < 1.2 * samples.host_bytes


def test_a_later_attempt_is_measured_by_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has the same name as the plan's, and less memory: it is said, and the plan is kept."""
    unet = torch.nn.Linear(1000, 1000)
    weights = {"unet.weight": unet.weight}
    model: Any = SimpleNamespace(unet=unet, weights=weights, encoders=())
    plan: Any = SimpleNamespace(micro_batch=4)
    monkeypatch.setattr(memory, "host", lambda: 64 * GIB)
    monkeypatch.setattr(memory, "gpu", lambda: 10 * GIB)
    assert fitting.recheck(config(), model, plan, GIB) == ""
    monkeypatch.setattr(memory, "gpu", lambda: GIB)
    words = fitting.recheck(config(), model, plan, GIB)
    assert words.startswith("this attempt may run out of memory, for the plan's split is kept: the GPU has 1.0 GiB")
    assert "and 4 images of 1024 pixels at once need 1.0 GiB by calculation" in words
    monkeypatch.setattr(memory, "host", lambda: 4 * GIB)
    assert "4.2 GiB are needed to train" in fitting.recheck(config(), model, plan, int(1.2 * GIB))


def test_this_machine_has_some_memory() -> None:
    assert 2**28 < memory.host() < 2**50
    assert 2**26 < memory.peak(torch.device("cpu")) <= memory.host()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_state_that_is_not_finite_is_not_put(value: float) -> None:
    """It is looked at before anything is sent: there is no bucket here that could be written to."""
    bucket: Any = None
    checkpoints = Checkpoints(bucket, bucket, config(), "pod")
    tensors = {"0": torch.empty(0), "a": torch.zeros(3), "b": torch.tensor([1.0, value]), "c": torch.ones(2).byte()}
    snapshot = Snapshot(3, 3, tensors)
    with pytest.raises(Failure, match="b of step 3 is not finite, so that step is not saved") as caught:
        checkpoints._put(bucket, snapshot, SaveReason.PERIODIC, Upload(3))
    assert caught.value.reason == "NaNLoss"
