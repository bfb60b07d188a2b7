"""CLIP's tokenizer without a hub: its merges are shipped, all else follows from them."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any, Final

from lorafinetune_trainer.base.files import read_json

MERGES: Final = "merges.txt.xz"
BEGIN: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"


def shipped(folder: Path, part: str) -> Any:
    """Return the CLIPTokenizer of *part*, ``tokenizer`` or ``tokenizer_2``: they differ in what they pad with."""
    from transformers import CLIPTokenizer

    config = read_json(folder / part / "tokenizer_config.json", f"{part}/tokenizer_config.json")
    lines = lzma.decompress((folder / MERGES).read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    return CLIPTokenizer(
        vocab=vocabulary(merges),
        merges=merges,
        model_max_length=config["model_max_length"],
        pad_token=config["pad_token"],
    )


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Return the number of each token: the 256 bytes, those that end a word, what each merge makes, begin and end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(one) for one in printable]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    return {token: number for number, token in enumerate(tokens)}
