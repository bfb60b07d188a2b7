"""The reference beside ours: the script that ``REFERENCE`` names, on the same model, pictures and settings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.trainer.attempts import LIMIT, Marks, read
from tests.bench.trainer.stage import PROMPT, TRAINING

NAIVE = """
import argparse, json, logging, math, os, random, shutil, warnings
import numpy, torch, transformers, diffusers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
"""
"""What a script of this kind imports: classes by their public names, from the packages' roots."""
OURS = """
from lorafinetune.contract.training import Training
from lorafinetune_trainer import attempt, imports, instructions, main
imports.settle(None)
instructions.hold(None)
imports.begin(Training()).join()
"""
_COUNT = """
import sys, time
begin = time.monotonic()
{code}
print("figures", len(sys.modules), time.monotonic() - begin, time.process_time())
"""


def imports(code: str) -> tuple[int, float, float]:
    """Return how many modules *code* imports in a new process, and the seconds: by the clock, and of the CPU."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT.format(code=code)], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    words = done.stdout.splitlines()[-1].split()
    return int(words[1]), float(words[2]), float(words[3])


def run(script: Path, model: Path, photos: Path, folder: Path, steps: int) -> Marks:
    """Train with *script*; RuntimeError where it does not end well."""
    folder.mkdir()
    marks = folder / "marks"
    arguments = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": photos,
        "instance_prompt": PROMPT,
        "output_dir": folder / "output",
        "resolution": TRAINING["resolution"],
        "rank": TRAINING["lora"]["rank"],
        "learning_rate": TRAINING["learningRate"],
        "seed": TRAINING["seed"],
        "train_batch_size": TRAINING["batchSize"],
        "gradient_accumulation_steps": TRAINING["gradientAccumulation"],
        "max_train_steps": steps,
        "checkpointing_steps": 10 * steps,
        "lr_scheduler": "constant",
        "mixed_precision": "no",
    }
    command = [os.environ.get("REFERENCE_PYTHON", sys.executable), "-m", "tests.bench.trainer.beside", str(script)]
    command += [f"--{name}={value}" for name, value in arguments.items()] + ["--random_flip"]
    environment = {**os.environ, "BENCH_MARKS": str(marks), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with (folder / "log").open("wb") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=LIMIT, check=False).returncode
    if code:
        raise RuntimeError(f"{script.name} ended with {code}: {(folder / 'log').read_text()[-2000:]}")
    return Marks(started, tuple(read(marks)))
