"""Captions of any length through real text encoders with random weights."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from examples import tiny_sdxl
from lorafinetune_trainer.base.parts import TextEncoder
from lorafinetune_trainer.conditioning import prompts
from lorafinetune_trainer.conditioning.prompts import Encoders
from lorafinetune_trainer.failure import Failure

LONG = ", ".join(f"a photo of sks timber dog {number}" for number in range(20))


@lru_cache
def encoders() -> Encoders:
    torch.manual_seed(0)
    tokenizers = tiny_sdxl.tokenizer(), tiny_sdxl.tokenizer()
    tokenizers[1].pad_token = "!"
    config = CLIPTextConfig(
        vocab_size=len(tokenizers[0]),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=16,
        bos_token_id=tokenizers[0].bos_token_id,
        eos_token_id=tokenizers[0].eos_token_id,
        pad_token_id=tokenizers[0].pad_token_id,
    )
    models = CLIPTextModel(config).eval(), CLIPTextModelWithProjection(config).eval()
    return tuple(TextEncoder(words, 77, model) for words, model in zip(tokenizers, models, strict=True))


def one_window(caption: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers' pipeline makes of a caption."""
    hidden, pooled = [], torch.empty(0)
    for one in encoders():
        tokenizer, model = one.tokenizer, one.model
        ids = tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        answer = model(ids, output_hidden_states=True)
        hidden.append(answer.hidden_states[-2])
        pooled = answer[0]
    return torch.cat(hidden, dim=-1), pooled


@pytest.mark.parametrize("caption", ["", "a photo of sks timber dog", "Two DOGS, one cat!"])
@torch.no_grad()
def test_a_short_caption_is_encoded_as_the_pipeline_does(caption: str) -> None:
    embeddings, pooled = prompts.embed(encoders(), [caption])
    assert prompts.windows(encoders(), caption) == 1
    assert tuple(embeddings.shape) == (1, 77, 64)
    assert all(torch.equal(*pair) for pair in zip((embeddings, pooled), one_window(caption), strict=True))


@torch.no_grad()
def test_a_long_caption_is_encoded_in_windows_of_75_tokens() -> None:
    tokens = encoders()[0].tokens(LONG)
    count = prompts.windows(encoders(), LONG)
    assert count == -(-len(tokens) // 75) > 2
    embeddings, pooled = prompts.embed(encoders(), [LONG])
    assert tuple(embeddings.shape) == (1, 77 * count, 64)
    tokenizer = encoders()[0].tokenizer
    pieces = [tokenizer.decode(tokens[first : first + 75]) for first in range(0, len(tokens), 75)]
    for number, piece in enumerate(pieces):
        expected, first_pooled = one_window(piece)
        torch.testing.assert_close(embeddings[:, 77 * number : 77 * (number + 1)], expected)
        if not number:
            torch.testing.assert_close(pooled, first_pooled)


@torch.no_grad()
def test_a_full_window_is_one_and_a_token_more_is_two() -> None:
    tokenizer = encoders()[0].tokenizer
    tokens = encoders()[0].tokens(LONG)
    assert [prompts.windows(encoders(), tokenizer.decode(tokens[:count])) for count in (74, 75, 76)] == [1, 1, 2]


def test_captions_stand_in_one_batch_and_gradients_reach_the_encoders() -> None:
    captions = ["a cat", "a photo of sks timber dog"]
    first, second = encoders()
    weights = [one.model.get_input_embeddings().weight for one in (first, second)]
    embeddings, pooled = prompts.embed(encoders(), captions)
    assert (tuple(embeddings.shape), tuple(pooled.shape)) == ((2, 77, 64), (2, 16))
    for number, caption in enumerate(captions):
        for found, expected in zip((embeddings, pooled), one_window(caption), strict=True):
            torch.testing.assert_close(found[number], expected[0])
    gradients = torch.autograd.grad(embeddings.sum() + pooled.sum(), weights)
    assert all(bool(one.abs().sum() > 0) for one in gradients)
    with pytest.raises(ValueError, match="cannot stand in one batch"):
        prompts.embed(encoders(), ["a cat", LONG])


def test_what_is_kept_of_a_caption_has_no_gradient_and_every_order() -> None:
    tensors = prompts.encoder(encoders())(("a cat, a dog", "a dog, a cat"))
    assert not any(value.requires_grad for value in tensors.values())
    first, second = prompts.kept(tensors)
    assert (tuple(first.embeddings.shape), tuple(first.pooled.shape)) == ((77, 64), (16,))
    alone, _ = one_window("a dog, a cat")
    assert torch.equal(second.embeddings, alone[0])
    assert not torch.equal(first.embeddings, second.embeddings)


def test_a_caption_of_too_many_windows_is_refused() -> None:
    with pytest.raises(Failure, match=r"the caption .* takes 1\d windows of 75 tokens") as caught:
        prompts.encoder(encoders())((LONG * 6,))
    assert caught.value.reason == "CaptionTooLong"


def test_remarks_name_long_captions_and_the_word_that_all_have_in_pieces() -> None:
    assert prompts.remarks(encoders(), ["a photo of sks dog"]) == []
    found = prompts.remarks(encoders(), ["zyxwvut dog", f"{LONG}, zyxwvut", "xyz, zyxwvut"])
    assert len(found) == 2
    assert found[0].startswith("1 caption of more than 75 tokens, encoded in several windows")
    assert found[1].endswith("learnt slowly: zyxwvut (7 tokens)")
