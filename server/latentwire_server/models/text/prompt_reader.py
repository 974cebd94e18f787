"""Reads prompts as diffusers' pipelines do not: with weights, and longer than the text encoder.

A prompt becomes chunks, each as long as the encoder reads and encoded by itself, and its tokens'
weights scale what the encoder makes of them: what diffusers' community pipeline ``lpw_stable_
diffusion`` does. Where nothing is weighed, a prompt that fits one chunk comes to what it comes to
without. ``num_chunks`` and ``dropped`` may be called on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.text.prompt_weights import WeightedText, chunked, weighted_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Lock

    from transformers import CLIPTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How far prompts go beyond diffusers' own."""

    is_weighted: bool = False
    """Whether brackets weigh what they hold."""
    max_chunks: int = 1
    """How often the encoder reads on."""

    @property
    def are_plain(self) -> bool:
        """Whether prompts are read as diffusers' pipelines read them."""
        return not self.is_weighted and self.max_chunks == 1


PLAIN_PROMPTS: Final = PromptOptions()
"""As diffusers' pipelines read them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """What the text encoder reads at once."""

    tokens: torch.Tensor
    """(1, tokens) int64."""
    attention_mask: torch.Tensor
    """(1, tokens) int64: 0 for the padding."""
    weights: Sequence[float]
    """One for each token."""


class PromptReader:
    """Turns prompts into chunks."""

    def __init__(self, tokenizer: CLIPTokenizer, options: PromptOptions, *, lock: Lock) -> None:
        """Takes the tokenizer with the lock that keeps threads from using it at the same time."""
        self._tokenizer = tokenizer
        self._options = options
        self._lock = lock
        # The first and the last place of a chunk are taken.
        self._chunk_size: int = tokenizer.model_max_length - 2

    def num_chunks(self, prompt: str) -> int:
        """Returns how many chunks a prompt fills, as far as it is read."""
        tokens, _ = self._read(prompt)
        return min(max(1, -(-len(tokens) // self._chunk_size)), self._options.max_chunks)

    def dropped(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that is not read, or ``""``."""
        tokens, _ = self._read(prompt)
        rest = tokens[self._chunk_size * self._options.max_chunks :]
        with self._lock:
            return str(self._tokenizer.decode(rest)).strip() if rest else ""

    def chunks(self, prompt: str, *, num_chunks: int) -> list[Chunk]:
        """Returns so many chunks; those that the prompt does not fill read nothing."""
        pieces = chunked(*self._read(prompt), size=self._chunk_size, num_chunks=num_chunks)
        return [self._chunk(tokens, weights) for tokens, weights in pieces]

    def _read(self, prompt: str) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        is_weighted = self._options.is_weighted
        plain = (WeightedText(text=prompt, weight=1.0),)
        for part in weighted_texts(prompt) if is_weighted else plain:
            with self._lock:
                read = self._tokenizer(part.text, truncation=False, verbose=False).input_ids[1:-1]
            tokens += read
            weights += [part.weight] * len(read)
        return tokens, weights

    def _chunk(self, tokens: Sequence[int], weights: Sequence[float]) -> Chunk:
        tokenizer, num_read = self._tokenizer, len(tokens) + 2
        num_missing = tokenizer.model_max_length - num_read
        padding = [tokenizer.pad_token_id] * num_missing
        framed = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *padding]
        return Chunk(
            tokens=torch.tensor([framed]),
            attention_mask=torch.tensor([[1] * num_read + [0] * num_missing]),
            weights=[1.0, *weights, *[1.0] * (num_missing + 1)],
        )


def weighed(embeds: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Returns embeddings, (tokens, features), scaled token by token, their mean kept."""
    if all(weight == 1.0 for weight in weights):
        return embeds
    factors = torch.tensor(weights, dtype=embeds.dtype, device=embeds.device)
    scaled = embeds * factors[:, None]
    return scaled * (embeds.float().mean() / scaled.float().mean()).to(embeds.dtype)
