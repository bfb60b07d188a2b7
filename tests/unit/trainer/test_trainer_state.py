"""Tensors to bytes: the same bytes always, readable by the safetensors library, split into parts of bounded size."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from lorafinetune.contract import canonical
from lorafinetune_trainer.saving import state

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "c.scalar": torch.tensor(7, dtype=torch.int64),
    "d": torch.ones(2, dtype=torch.bfloat16),
    "e": torch.empty(0, 3),
}


def test_the_bytes_that_must_never_change() -> None:
    body = state.encode({"b": TENSORS["b"], "a": TENSORS["a"]}, {"z": "1", "a": "é"})
    (length,) = struct.unpack_from("<Q", body)
    assert length % 8 == 0
    assert body[8 : 8 + length].rstrip() == (
        rb'{"__metadata__":{"a":"\u00e9","z":"1"},'
        rb'"a":{"data_offsets":[0,4],"dtype":"F16","shape":[2]},'
        rb'"b":{"data_offsets":[4,28],"dtype":"F32","shape":[2,3]}}'
    )
    assert canonical.sha256(body) == "a311ed96eac546c5e209071bf3e824bdd9d05c085f3f9a5b57b11951a7ebcf8a"


def test_the_order_of_insertion_and_memory_layout_do_not_show() -> None:
    turned = {name: TENSORS[name] for name in reversed(TENSORS)}
    turned["b"] = TENSORS["b"].t().contiguous().t()
    assert not turned["b"].is_contiguous()
    assert state.encode(turned) == state.encode(TENSORS)


def test_the_library_reads_what_we_write() -> None:
    found = load(state.encode(TENSORS, {"format": "pt"}))
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_we_read_what_we_write() -> None:
    found, metadata = state.decode(state.encode(TENSORS, {"a": "b"}))
    assert metadata == {"a": "b"}
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].shape == tensor.shape for name, tensor in TENSORS.items()
    )
    found["b"].add_(1)  # memory of its own, that may be written


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 10) + b"{",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{x",
        b"\xff" * 16,
        struct.pack("<Q", 61) + json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        struct.pack("<Q", 62)
        + json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()
        + b"1234",
        struct.pack("<Q", 12) + b'{"a": "tens"}'[:12],
    ],
)
def test_what_is_no_such_file_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        state.decode(body)


@given(sizes=st.lists(st.integers(0, 300), max_size=20), limit=st.integers(70_000, 90_000))
@settings(max_examples=50, deadline=None)
def test_parts_hold_everything_within_the_limit(sizes: list[int], limit: int) -> None:
    tensors = {f"t{number}": torch.full((size,), float(number)) for number, size in enumerate(sizes)}
    parts = list(state.split(tensors, limit))
    assert all(len(part.body) <= limit for part in parts)
    assert [part.name for part in parts] == [f"state-{number:05}.safetensors" for number in range(len(parts))]
    joined = state.join(part.body for part in parts)
    assert joined.keys() == tensors.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in tensors.items())


def test_large_states_are_split_and_small_ones_are_not() -> None:
    tensors = {f"t{number}": torch.zeros(10_000) for number in range(10)}
    assert len(list(state.split(tensors))) == 1
    assert len(list(state.split(tensors, 120_000))) == 10
    large = list(state.split({f"t{number}": torch.zeros(1_000_000) for number in range(10)}))
    assert [len(part.body) <= state.PART_BYTES for part in large] == [True] * 3


def test_a_tensor_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="a stands in two files"):
        state.join([state.encode({"a": torch.ones(1)})] * 2)
