"""Captions to embeddings: both text encoders of SDXL, with gradients for those that train them, without for the cache.

A caption of more than 75 tokens is encoded in windows of 75, each between a start and an end token of its own; their
hidden states stand one after the other, and the pooled embedding is the first window's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Files
from lorafinetune_trainer.base.parts import TextEncoder, Words
from lorafinetune_trainer.conditioning.samples import Prompt
from lorafinetune_trainer.data.preflight import counted, some
from lorafinetune_trainer.failure import invalid

if TYPE_CHECKING:
    import torch


Encoders = Sequence[TextEncoder]
"""The two of SDXL, in its order: the last one's pooled embedding counts."""


MAX_WINDOWS: Final = 10
"""Of one caption: its embeddings in 8 orders then still fit into one object."""
MANY_TOKENS: Final = 4
_EMBEDDINGS: Final = "embeddings."
_POOLED: Final = "pooled."


def windows(encoders: Sequence[Words], caption: str) -> int:
    """Return the number of windows that *caption* takes: 1 for at most 75 tokens."""
    return max(max(1, math.ceil(len(one.tokens(caption)) / (one.window - 2))) for one in encoders)


def check_lengths(encoders: Sequence[Words], captions: Mapping[str, str]) -> None:
    """Refuse (CaptionTooLong) a caption of too many tokens; *captions* are what they are called, by their words."""
    for caption, called in captions.items():
        if (count := windows(encoders, caption)) > MAX_WINDOWS:
            raise invalid(
                "CaptionTooLong",
                f"{called} takes {count} windows of 75 tokens, more than the {MAX_WINDOWS} allowed: shorten it",
            )


def embed(encoders: Encoders, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings, (captions, tokens, width), and the pooled ones, (captions, width), on the models' device.

    All *captions* take the same number of windows. Differentiable; ValueError where their windows differ in number.
    """
    import torch

    counts = {windows(encoders, caption) for caption in captions}
    if len(counts) != 1:
        raise ValueError(f"captions of {sorted(counts)} windows cannot stand in one batch")
    (count,) = counts
    widths, pooled = [], None
    for one in encoders:
        ids = torch.tensor([_ids(one, caption, count) for caption in captions]).flatten(0, 1).to(one.model.device)
        answer = one.model(ids, output_hidden_states=True)
        hidden = answer.hidden_states[-2]
        widths.append(hidden.reshape(len(captions), count * hidden.shape[1], hidden.shape[2]))
        pooled = answer[0].reshape(len(captions), count, -1)[:, 0] if one is encoders[-1] else None
    assert pooled is not None
    return torch.cat(widths, dim=-1), pooled


def _ids(one: TextEncoder, caption: str, count: int) -> list[list[int]]:
    """Return the windows of *caption*, (count, window): start, at most 75 tokens, end, padding."""
    tokenizer, inside = one.tokenizer, one.window - 2
    tokens = one.tokens(caption)
    found = []
    for first in range(0, count * inside, inside):
        piece = [tokenizer.bos_token_id, *tokens[first : first + inside], tokenizer.eos_token_id]
        found.append(piece + [tokenizer.pad_token_id] * (one.window - len(piece)))
    return found


def words(files: Files) -> Sequence[Words]:
    """Return what both text encoders make tokens with: enough to judge captions, and small."""
    return tuple(parts.load_words(files, suffix) for suffix in ("", "_2"))


def load(files: Files, device: torch.device) -> Encoders:
    """Load both text encoders, in float32 and frozen, onto *device*."""
    import torch

    found = parts.load_text_encoders(files, torch.float32)
    for one in found:
        one.model.to(device)
    return found


def encoder(encoders: Encoders) -> Callable[[tuple[str, ...]], dict[str, torch.Tensor]]:
    """Return the function that computes what is kept of one caption in all its orders.

    One at a time: a batch rounds differently from single captions.
    """
    import torch

    @torch.no_grad()
    def encode(orders: tuple[str, ...]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for number, caption in enumerate(orders):
            check_lengths(encoders, {caption: f"the caption {caption[:80]!r}..."})
            embeddings, pooled = (one[0].cpu().contiguous() for one in embed(encoders, [caption]))
            if not (bool(embeddings.isfinite().all()) and bool(pooled.isfinite().all())):
                raise invalid("WrongBaseModel", f"the text encoders make NaN of the caption {caption[:80]!r}")
            found |= {f"{_EMBEDDINGS}{number}": embeddings, f"{_POOLED}{number}": pooled}
        return found

    return encode


def kept(tensors: Mapping[str, torch.Tensor]) -> tuple[Prompt, ...]:
    """Return what an :func:`encoder` made of one caption, one for each of its orders."""
    count = sum(name.startswith(_EMBEDDINGS) for name in tensors)
    return tuple(Prompt(tensors[f"{_EMBEDDINGS}{one}"], tensors[f"{_POOLED}{one}"]) for one in range(count))


def remarks(encoders: Sequence[Words], captions: Iterable[str]) -> list[str]:
    """Return what is odd about *captions*, for people: those over one window, and words that fall into many tokens.

    A word that all captions have is taken for the trigger word.
    """
    every = sorted(set(captions))
    found = []
    if long := [caption for caption in every if windows(encoders, caption) > 1]:
        found.append(
            f"{counted(len(long), 'caption')} of more than 75 tokens, encoded in several windows, the first of them "
            f"{long[0][:60]!r}..."
        )
    common = set.intersection(*(set(caption.replace(",", " ").split()) for caption in every)) if every else set()
    counts = {word: len(encoders[0].tokens(word)) for word in sorted(common)}
    if many := [f"{word} ({count} tokens)" for word, count in counts.items() if count >= MANY_TOKENS]:
        found.append(
            f"words that all captions have and that fall into many tokens, so that they are learnt slowly: {some(many)}"
        )
    return found
