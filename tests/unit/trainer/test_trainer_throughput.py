"""MFU by formula: the operations of the real SDXL, the peak rates of GPUs, and nothing where either is not known."""

from __future__ import annotations

import pytest

from lorafinetune.contract.training import Precision
from lorafinetune_trainer.telling import throughput

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "layers_per_block": 2,
}


@pytest.mark.parametrize(("edge", "tera"), [(512, 1.59), (768, 3.64), (1024, 6.76)])
def test_operations_are_those_that_were_counted(edge: int, tera: float) -> None:
    assert throughput.forward(edge) == pytest.approx(tera * 1e12, rel=0.01)


def test_operations_of_training() -> None:
    assert throughput.operations(SDXL, 1024, checkpointing=False) == pytest.approx(14.1e12, rel=0.01)
    assert throughput.operations(SDXL, 1024, checkpointing=True) == pytest.approx(19.2e12, rel=0.01)
    assert throughput.operations(SDXL | {"block_out_channels": (32, 64)}, 1024, checkpointing=False) is None
    assert throughput.operations({}, 1024, checkpointing=False) is None


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A10G", 70),
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40", None),
        ("cpu x86_64 AVX2", None),
    ],
)
def test_peaks_go_by_whole_words(device: str, tera: float | None) -> None:
    assert throughput.peak(device, Precision.BF16) == (None if tera is None else pytest.approx(tera * 1e12))


def test_the_share_is_known_where_all_is() -> None:
    four_seconds = throughput.share(14.06e12, 1 / 0.39, throughput.peak("NVIDIA GeForce RTX 4090", Precision.FP16))
    assert four_seconds == pytest.approx(0.22, abs=0.01)
    assert throughput.share(None, 1.0, 1e14) is None
    assert throughput.share(1e13, 1.0, throughput.peak("NVIDIA L4", Precision.FP32)) is None
