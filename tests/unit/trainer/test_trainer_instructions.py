"""Which vector instructions the mathematics is held to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorafinetune_trainer import instructions

OF_GPUS = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", *OF_GPUS):
        monkeypatch.setenv(name, "what the pod's environment says")


def cpu(monkeypatch: pytest.MonkeyPatch, flags: str, maker: str = "GenuineIntel") -> None:
    text = f"processor\t: 0\nvendor_id\t: {maker}\nflags\t\t: fpu {flags}\nbugs\t\t: none\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text if str(self) == "/proc/cpuinfo" else "")


@pytest.mark.parametrize(
    ("flags", "wanted", "level"),
    [
        ("sse4_2 avx2 fma avx512f amx_bf16", None, "avx2"),
        ("sse4_2 avx2 fma", None, "avx2"),
        ("sse4_2 avx avx2", None, "default"),
        ("sse4_2", None, "default"),
        ("avx2 fma", "default", "default"),
        ("avx2 fma", "avx2", "avx2"),
        ("sse4_2", "avx2", "default"),
        ("avx2 fma", "", "avx2"),
        ("avx2 fma", "neon of a later version", "avx2"),
    ],
)
def test_the_level(monkeypatch: pytest.MonkeyPatch, flags: str, wanted: str | None, level: str) -> None:
    cpu(monkeypatch, flags)
    assert instructions.hold(wanted) == level
    assert os.environ["ATEN_CPU_CAPABILITY"] == level
    assert os.environ["MKL_CBWR"] == {"avx2": "AVX2", "default": "COMPATIBLE"}[level]
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == {"avx2": "AVX2", "default": "SSE41"}[level]
    assert "MKL_ENABLE_INSTRUCTIONS" not in os.environ, "it overrules MKL_CBWR"


def test_another_kind_of_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert instructions.hold("avx2") == "default"
    assert os.environ["ATEN_CPU_CAPABILITY"] == "what the pod's environment says"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_gpu_is_held_to_the_same_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    instructions.hold(None)
    assert [os.environ.get(name) for name in OF_GPUS] == [":4096:8", None, None]


def test_another_maker_is_named_and_held_to_what_it_keeps_to(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch, "avx2 fma avx512f", "AuthenticAMD")
    assert instructions.hold("avx2") == "avx2"
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    assert instructions.maker() == "AuthenticAMD"
