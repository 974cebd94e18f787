"""A CLIP text encoder with its tokenizer.

Reads as diffusers' pipelines do, or, where it is told to, with weights and in chunks.
``dropped`` and ``num_chunks`` may be called on any thread, everything else on the device thread.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from latentwire_server.models.adapters.textual_inversion import spelled_out
from latentwire_server.models.precision import to_device
from latentwire_server.models.text.prompt_reader import (
    PLAIN_PROMPTS,
    Chunk,
    PromptOptions,
    PromptReader,
    weighed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class States(Protocol):
    """What the network makes of one chunk."""

    hidden_states: Sequence[torch.Tensor]
    """Of each layer, (1, tokens, features)."""
    last_hidden_state: torch.Tensor
    text_embeds: torch.Tensor
    """(1, features), a summary; only of a network with a projection."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What the network makes of a prompt."""

    chunks: Sequence[Chunk]
    states: Sequence[States]
    """One for each chunk."""

    def embeds(self, embeds_of: Callable[[States], torch.Tensor]) -> torch.Tensor:
        """Returns the prompt's embeddings, (tokens, features), weighed.

        Args:
            embeds_of: takes them, (1, tokens, features), from what is made of one chunk.
        """
        read = torch.cat([embeds_of(states)[0] for states in self.states])
        return weighed(read, [weight for chunk in self.chunks for weight in chunk.weights])


class TextEncoder:
    """Turns one prompt into what its network makes of it."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        module: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        name: str = "text_encoder",
        options: PromptOptions = PLAIN_PROMPTS,
        has_words: bool = False,
    ) -> None:
        """Takes both parts, the network's name in the model's folder, and how prompts are read.

        ``has_words`` says that they have learnt words by textual inversion.
        """
        self.tokenizer = tokenizer
        self.module = module
        self.name = name
        # Rust tokenizers raise "Already borrowed" when two threads use one at the same time.
        self._lock = threading.Lock()
        self._reader = PromptReader(tokenizer, options, lock=self._lock)
        self._is_plain = options.are_plain
        self._has_words = has_words

    def reading(self, options: PromptOptions, *, has_words: bool = False) -> TextEncoder:
        """Returns one that reads prompts in another way."""
        return TextEncoder(
            self.tokenizer, self.module, name=self.name, options=options, has_words=has_words
        )

    def with_module(self, module: CLIPTextModel) -> TextEncoder:
        """Returns one with the same tokenizer and another network."""
        # With the same lock, too.
        twin = copy.copy(self)
        twin.module = module
        return twin

    def dropped(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that is not read, or ``""``."""
        prompt = self._spelled_out(prompt)
        if not self._is_plain:
            return self._reader.dropped(prompt)
        tokenizer = self.tokenizer
        with self._lock:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            # The last place belongs to the end-of-text token.
            dropped = ids[tokenizer.model_max_length - 1 : -1]
            return str(tokenizer.decode(dropped)).strip() if dropped else ""

    def num_chunks(self, prompt: str) -> int:
        """Returns how often the network must be asked to read ``prompt``."""
        return 1 if self._is_plain else self._reader.num_chunks(self._spelled_out(prompt))

    def read(self, prompt: str, *, num_chunks: int) -> Reading:
        """Returns what the network makes of a prompt, chunk by chunk."""
        prompt = self._spelled_out(prompt)
        if self._is_plain:
            chunks = [self._plain_chunk(prompt)]
        else:
            chunks = self._reader.chunks(prompt, num_chunks=num_chunks)
        return Reading(chunks=chunks, states=[self._states(chunk) for chunk in chunks])

    def _spelled_out(self, prompt: str) -> str:
        """Returns a prompt in which words of several vectors have all their places."""
        if not self._has_words:
            return prompt
        with self._lock:
            return spelled_out(prompt, self.tokenizer)

    def _plain_chunk(self, prompt: str) -> Chunk:
        tokenizer = self.tokenizer
        with self._lock:
            encoded = tokenizer(
                prompt,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
        return Chunk(tokens=encoded.input_ids, attention_mask=encoded.attention_mask, weights=())

    def _states(self, chunk: Chunk) -> States:
        module = self.module
        # Stable Diffusion 2.x asks for the mask, the others attend to the padding too.
        uses_mask = getattr(module.config, "use_attention_mask", False)
        mask = to_device(chunk.attention_mask, module.device) if uses_mask else None
        tokens = to_device(chunk.tokens, module.device)
        states: States = module(tokens, attention_mask=mask, output_hidden_states=True)
        return states
