"""Validation pictures: fixed prompts and seeds every so many steps, in the bucket, and with the artifact at last.

They are no part of the training: they are made between two steps, with copies of the weights, and change nothing. What
goes wrong with them (memory, the VAE, the bucket) is told, and the training goes on.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract import layout
from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.contract.runconfig import MAX_PICTURED
from lorafinetune.contract.runconfig import Validation as Settings
from lorafinetune.storage import errors
from lorafinetune_trainer.base import parts
from lorafinetune_trainer.conditioning.samples import Prompt
from lorafinetune_trainer.failure import explain
from lorafinetune_trainer.sampling import grid, sampler
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch

    from lorafinetune_trainer.inputs import Inputs
    from lorafinetune_trainer.sampling.decoder import Decoder
    from lorafinetune_trainer.training.loop import Loop
    from lorafinetune_trainer.training.model import Model

MAX_SECONDS: Final = 600.0
"""For the pictures of one step. What is not done by then is left out."""
MAX_FAILURES: Final = 3
"""Steps in a row whose pictures failed after which the attempt makes no more."""
MAX_PICTURE_BYTES: Final = 32 * 1024 * 1024
GRID: Final = "grid.png"
_NAME: Final = re.compile(r"^(\d{8})-(\d+)\.png$")


@dataclass(frozen=True, slots=True)
class Means:
    """What pictures are made with."""

    predict: Callable[[Mapping[str, torch.Tensor]], sampler.Predict]
    """Returns what predicts with weights in place of those that are trained."""
    published: Callable[[], Mapping[str, torch.Tensor]]
    """Returns copies of the weights that would be published now."""
    encode: Callable[[str, Mapping[str, torch.Tensor]], Prompt]
    """Returns the embeddings of a prompt, where the text encoders are trained by them with these weights."""
    schedule: Any
    """Euler's, of :func:`sampler.make_schedule`."""
    decoder: Callable[[], Decoder]
    """Loads the VAE; called at the first picture."""
    device: torch.device
    edge: int
    """Of a picture, in pixels."""
    compiled: bool
    """Whether the model is compiled. Pictures are made with plain code all the same."""


def name(step: int, number: int) -> str:
    """Return the name of a picture, below the samples' folder."""
    return f"{step:08}-{number}.png"


def interval(settings: Settings, total: int) -> int:
    """Return the number of steps from pictures to pictures: a multiple of everySteps, so that their number is small."""
    return settings.every_steps * max(1, math.ceil(total / (settings.every_steps * MAX_PICTURED)))


class Validation:
    """Makes the pictures of one attempt."""

    def __init__(self, wires: Wires, settings: Settings, means: Means | None, *, total: int) -> None:
        """*total* is the run's number of steps. Without *means* there are the pictures that were made before."""
        self._wires = wires
        self._settings = settings
        self._means = means
        self._total = total
        self._every = interval(settings, total)
        self._bucket = wires.urgent
        self._decoder: Decoder | None = None
        self._there: set[str] | None = None
        self._failed = 0

    def due(self, step: int) -> bool:
        """Whether *step* gets pictures."""
        return step > 0 and (step % self._every == 0 or step == self._total)

    def show(self, step: int) -> None:
        """Make the pictures of *step*, if they are due and not there yet. Raises Fenced and HeadLost only."""
        if not self.due(step) or self._failed >= MAX_FAILURES:
            return
        phase = self._wires.ending.standing.phase or Phase.TRAINING
        try:
            self._make(step)
            self._failed = 0
        except (Fenced, HeadLost):
            raise
        except Exception as error:  # nothing that goes wrong here is worth the run
            self._failed += 1
            more = "" if self._failed < MAX_FAILURES else "; this attempt makes no more pictures"
            told = f"the pictures of step {step} could not all be made: {explain(error).message}{more}"
            # What the error holds on to (activations, on a GPU) must not outlive it.
            error.__traceback__ = None
            self._tell(step, message=told)
        finally:
            _release()
            if self._wires.ending.standing.phase is not phase:
                self._wires.enter(phase)

    def files(self) -> dict[str, bytes]:
        """Return what the artifact holds of the pictures, by name: those of the grid's steps, and the grid.

        What cannot be read is told and left out.
        """
        found: dict[tuple[int, int], bytes] = {}
        try:
            there = [(int(match[1]), int(match[2])) for one in self._listed() if (match := _NAME.match(one))]
            due = [(step, number) for step, number in there if self.due(step) and number < self._count]
            steps = set(grid.columns([step for step, _ in due]))
            for step, number in sorted(due):
                if step in steps:
                    key = layout.SAMPLES + name(step, number)
                    found[step, number] = self._bucket.get(key, limit=MAX_PICTURE_BYTES).body
            if not found:
                return {}
            whole = {GRID: grid.sheet(found, self._settings.prompts)}
        except (errors.StorageError, OSError, ValueError) as error:
            self._wires.reporter.note(f"the grid of validation pictures could not be made: {error}")
            whole = {}
        return whole | {layout.SAMPLES + name(*one): body for one, body in found.items()}

    @property
    def _count(self) -> int:
        return len(self._settings.prompts)

    def _listed(self) -> set[str]:
        if self._there is None:
            self._there = {one.key.removeprefix(layout.SAMPLES) for one in self._bucket.walk(layout.SAMPLES)}
        return self._there

    def _make(self, step: int) -> None:
        missing = [number for number in range(self._count) if name(step, number) not in self._listed()]
        if not missing:
            return
        self._wires.ending.standing.phase = Phase.VALIDATING
        self._tell(step, done=self._count - len(missing))
        deadline = time.monotonic() + MAX_SECONDS
        means, settings = self._means, self._settings
        assert means is not None, "an attempt that only publishes shows nothing"
        weights = {one: tensor.to(means.device) for one, tensor in means.published().items()}
        recipe = sampler.Recipe(means.edge, settings.inference_steps, settings.guidance, settings.seed)
        negative = means.encode(settings.negative_prompt, weights) if settings.negative_prompt else None
        means.encode(settings.prompts[missing[0]], weights)  # what has no embeddings must not fetch a VAE
        if self._decoder is None:
            self._decoder = means.decoder()
        for place, number in enumerate(missing, start=1 + self._count - len(missing)):
            prompt = means.encode(settings.prompts[number], weights)
            with _plain(means.compiled):
                made = sampler.make_latents(
                    means.predict(weights),
                    means.schedule,
                    prompt,
                    negative or sampler.wordless(prompt),
                    recipe,
                    number=number,
                    shape=self._decoder.shape(means.edge),
                    device=means.device,
                    deadline=deadline,
                    on_step=self._wires.ending.hold,
                )
            body = self._decoder.png(made)
            self._wires.checkpoints.before_put()
            self._bucket.put(layout.SAMPLES + name(step, number), body)
            self._listed().add(name(step, number))
            self._tell(step, done=place)

    def _tell(self, step: int, *, done: int | None = None, message: str = "") -> None:
        self._wires.reporter.tell(
            EventType.PROGRESS,
            step,
            phase=Phase.VALIDATING,
            done=done,
            total=None if done is None else self._count,
            message=message,
        )


def begin(wires: Wires, given: Inputs, model: Model, loop: Loop) -> Validation | None:
    """Return what makes the pictures of an attempt; None where none are wanted."""
    from lorafinetune_trainer.sampling import decoder

    settings, config, device = wires.config.validation, wires.config, given.accelerator.device
    if settings is None:
        return None
    samples = given.samples
    known = dict(zip(samples.validation_words, samples.validation, strict=True))

    def encode(words: str, weights: Mapping[str, torch.Tensor]) -> Prompt:
        import torch

        if not model.encoders:
            if words not in known:
                raise ValueError(f"the prompt {words[:60]!r} was not there when the run began, and is not encoded")
            return known[words]
        with torch.no_grad():
            embeddings, pooled = model.embed([words], weights=weights)
        return Prompt(embeddings[0], pooled[0])

    means = Means(
        predict=lambda weights: partial(model.predict, weights=weights),
        published=loop.published,
        encode=encode,
        schedule=sampler.make_schedule(
            parts.scheduler_config(given.files),
            prediction=model.prediction,
            zero_snr=config.training.zero_terminal_snr,
        ),
        decoder=lambda: decoder.fetch(wires, given.files, device),
        device=device,
        edge=config.training.resolution,
        compiled=given.plan.compiled,
    )
    return Validation(wires, settings, means, total=loop.total)


def _plain(compiled: bool) -> AbstractContextManager[object]:
    """Return the context in which nothing is compiled: for shapes of their own pictures would take minutes, each time.

    What the training has compiled is as it was afterwards.
    """
    import torch

    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _release() -> None:
    """Give back the memory that pictures took, so that the next step finds what it had."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
