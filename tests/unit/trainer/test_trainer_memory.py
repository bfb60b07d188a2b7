"""The micro-batch by formula: on the real SDXL's config, for GPUs as they are sold, and for small hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer import fitting, memory
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


NEED = Need(fixed=6 * GIB, image=7 * GIB, host=9 * GIB)


def test_what_is_lacking_is_said_in_numbers_and_fields() -> None:
    with pytest.raises(Failure) as caught:
        fitting.micro_batch(config(), NEED, host=16 * GIB, gpu=8 * GIB)
    assert caught.value.reason == "OutOfMemory"
    assert caught.value.message == (
        "the GPU has 8.0 GiB for this attempt, and 1 image of 1024 pixels at once needs 13.0 GiB by calculation (6.0 "
        "GiB for weights and state, 7.0 GiB for each image): set training.gradientCheckpointing: true, or lower "
        "training.resolution, or lower training.lora.rank, or choose a pool with more memory (placement.pools)"
    )
    with pytest.raises(Failure, match=r"the host has 8\.0 GiB .* needs 9\.0 GiB: choose nodes"):
        fitting.micro_batch(config(), NEED, host=8 * GIB, gpu=80 * GIB)
    with pytest.raises(Failure, match=r"the host has 8\.0 GiB .* needs 13\.0 GiB"):
        fitting.micro_batch(config(), NEED, host=8 * GIB, gpu=None)


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
        ({"a": "600"}, "1:name=systemd:/x\n0::/a\n", [600]),
    ],
    ids=["nested", "in a pod", "unlimited", "version one", "hybrid"],
)
def test_limits_of_the_cgroup(limits: dict[str, str], mine: str, found: list[int], tmp_path: Path) -> None:
    for name, text in limits.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "memory.max").write_text(text + "\n")
    assert memory.cgroup_limits(tmp_path, mine) == found


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
