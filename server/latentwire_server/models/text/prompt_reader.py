"""Splits prompts into weighted chunks, which diffusers' own pipelines do not do.

Each chunk is as long as the text encoder's input and encoded by itself; the weights of its tokens
scale the encoder's output, as in diffusers' community pipeline ``lpw_stable_diffusion``. An
unweighted prompt that fits into one chunk gives what it gives without this module.
``num_chunks`` and ``dropped`` may be called on any thread.
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
    """What prompts may contain beyond diffusers' own."""

    is_weighted: bool = False
    """Whether brackets weight their content."""
    max_chunks: int = 1
    """The most chunks of a prompt that are encoded."""

    @property
    def are_plain(self) -> bool:
        """Whether prompts are read as diffusers' pipelines read them."""
        return not self.is_weighted and self.max_chunks == 1


PLAIN_PROMPTS: Final = PromptOptions()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """The input of one call of the text encoder."""

    tokens: torch.Tensor
    """(1, tokens) int64."""
    attention_mask: torch.Tensor
    """(1, tokens) int64: 0 for the padding."""
    weights: Sequence[float]
    """One per token."""


class PromptReader:
    """Turns prompts into chunks."""

    def __init__(self, tokenizer: CLIPTokenizer, options: PromptOptions, *, lock: Lock) -> None:
        """Creates a reader; every use of ``tokenizer`` must hold ``lock``."""
        self._tokenizer = tokenizer
        self._options = options
        self._lock = lock
        # The start and end tokens take the first and the last place of a chunk.
        self._chunk_size: int = tokenizer.model_max_length - 2

    def num_chunks(self, prompt: str) -> int:
        """Returns how many chunks a prompt fills, ``max_chunks`` at most."""
        tokens, _ = self._tokens(prompt)
        return min(max(1, -(-len(tokens) // self._chunk_size)), self._options.max_chunks)

    def dropped(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that is beyond the last chunk, or ``""``."""
        tokens, _ = self._tokens(prompt)
        rest = tokens[self._chunk_size * self._options.max_chunks :]
        with self._lock:
            return str(self._tokenizer.decode(rest)).strip() if rest else ""

    def chunks(self, prompt: str, *, num_chunks: int) -> list[Chunk]:
        """Returns ``num_chunks`` chunks; those beyond the prompt's end are empty."""
        pieces = chunked(*self._tokens(prompt), size=self._chunk_size, num_chunks=num_chunks)
        return [self._chunk(tokens, weights) for tokens, weights in pieces]

    def _tokens(self, prompt: str) -> tuple[list[int], list[float]]:
        """Returns the prompt's tokens, without start and end, and their weights."""
        tokens: list[int] = []
        weights: list[float] = []
        plain = (WeightedText(text=prompt, weight=1.0),)
        for part in weighted_texts(prompt) if self._options.is_weighted else plain:
            with self._lock:
                ids = self._tokenizer(part.text, truncation=False, verbose=False).input_ids[1:-1]
            tokens += ids
            weights += [part.weight] * len(ids)
        return tokens, weights

    def _chunk(self, tokens: Sequence[int], weights: Sequence[float]) -> Chunk:
        tokenizer, num_used = self._tokenizer, len(tokens) + 2
        num_padding = tokenizer.model_max_length - num_used
        padding = [tokenizer.pad_token_id] * num_padding
        framed = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *padding]
        return Chunk(
            tokens=torch.tensor([framed]),
            attention_mask=torch.tensor([[1] * num_used + [0] * num_padding]),
            weights=[1.0, *weights, *[1.0] * (num_padding + 1)],
        )


def apply_weights(embeds: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Returns embeddings, (tokens, features), scaled token by token; their mean stays the same."""
    if all(weight == 1.0 for weight in weights):
        return embeds
    factors = torch.tensor(weights, dtype=embeds.dtype, device=embeds.device)
    scaled = embeds * factors[:, None]
    return scaled * (embeds.float().mean() / scaled.float().mean()).to(embeds.dtype)
