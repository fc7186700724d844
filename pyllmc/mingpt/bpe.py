"""minGPT's tokenizer: GPT-2's byte pairs, by pyllmc's own tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyllmc.base.errors import InvalidArgument
from pyllmc.engine.named import open_tokenizer
from pyllmc.text.bpe import split_words
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.tokenizer_formats import printable


class Encoder:
    """Text to ids and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, bpe_idx: Any) -> str:
        return self.tokenizer.decode(bpe_idx)

    def encode_and_show_work(self, text: str) -> dict[str, Any]:
        """The ids (bpe_idx), the words (tokens), and each word's way from bytes to ids (parts)."""
        words = split_words(text)
        parts = [self._part(word) for word in words]
        return {"bpe_idx": [i for part in parts for i in part["token_ix"]], "tokens": words, "parts": parts}

    def _part(self, word: str) -> dict[str, Any]:
        ids = self.tokenizer.encode(word)
        return {
            "token": word,
            "token_bytes": word.encode(),
            "token_translated": printable(word.encode()),
            "token_merged": [printable(self.tokenizer.pieces[i]) for i in ids],
            "token_ix": ids,
        }


def get_encoder() -> Encoder:
    return Encoder(open_tokenizer("gpt2"))


class BPETokenizer:
    """Text to a LongTensor (1, n), and a LongTensor (n) to text."""

    def __init__(self) -> None:
        self.encoder = get_encoder()

    def __call__(self, text: str, return_tensors: str = "pt") -> Tensor:
        if return_tensors != "pt":
            raise InvalidArgument(
                f"return_tensors='{return_tensors}': only 'pt', PyTorch's tensors, are made"
            )
        return torch.tensor([self.encoder.encode(text)], dtype=torch.long)

    def decode(self, idx: Tensor) -> str:
        if idx.ndim != 1:
            raise InvalidArgument(f"idx {tuple(idx.shape)}: one text (n) is wanted: take idx[0]")
        return self.encoder.decode(idx.tolist())
