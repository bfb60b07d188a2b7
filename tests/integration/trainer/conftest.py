"""What the trainer's tests share: a real S3 server, a tiny SDXL, photographs, and trainers as real processes."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from examples import tiny_sdxl
from tests.integration.trainer.process import Trainers, in_preloaded
from tests.integration.trainer.s3 import Access, serve


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A running S3 server."""
    with serve(tmp_path_factory.mktemp("s3")) as access:
        yield access


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_preloaded(tiny_sdxl.build, tmp_path_factory.mktemp("model"))


def _quick_vae(folder: str) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.13025,
        mid_block_add_attention=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def quick_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that makes edges an eighth as SDXL's does, without attention: for pictures larger than 64 pixels."""
    folder = tmp_path_factory.mktemp("quick_vae")
    in_preloaded(_quick_vae, str(folder))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs of three shapes, one with a caption of its own."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in {"cat": (120, 80), "coffee": (80, 100), "rocket": (96, 96)}.items():
        pixels = getattr(data, {"cat": "chelsea"}.get(name, name))()
        Image.fromarray(np.asarray(pixels)).convert("RGB").resize(size).save(folder / f"{name}.png")
    (folder / "coffee.txt").write_text("a picture of a cup of coffee\n")
    return folder


@pytest.fixture(scope="session")
def trainers(
    s3: Access, tiny_model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trainers]:
    """Starts trainers as processes of their own, forked from one that has imported torch already."""
    made = Trainers(s3, tiny_model, photos, tmp_path_factory.mktemp("trainers"))
    yield made
    made.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A run's name that no other test has."""
    return f"run-{next(_numbers)}"
