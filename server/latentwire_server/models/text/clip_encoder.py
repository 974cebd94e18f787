"""A CLIP text encoder with its tokenizer.

Encodes prompts as diffusers' pipelines do or, if its options say so, with weights and in chunks.
``dropped`` and ``num_chunks`` may be called on any thread, everything else on the device thread.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

from latentwire_server.models.precision import to_device
from latentwire_server.models.text.prompt_reader import (
    PLAIN_PROMPTS,
    Chunk,
    PromptOptions,
    PromptReader,
    apply_weights,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class EncoderOutput(Protocol):
    """The output of transformers' network for one chunk."""

    hidden_states: Sequence[torch.Tensor]
    """One (1, tokens, features) per layer."""
    last_hidden_state: torch.Tensor
    text_embeds: torch.Tensor
    """(1, features), a summary of the chunk; only from a network with a projection."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPrompt:
    """The chunks of a prompt and the network's output for each of them."""

    chunks: Sequence[Chunk]
    outputs: Sequence[EncoderOutput]

    def embeds(self, choose: Callable[[EncoderOutput], torch.Tensor]) -> torch.Tensor:
        """Returns the prompt's weighted embeddings, (tokens, features).

        Args:
            choose: Returns the embeddings of one chunk, (1, tokens, features), from its output.
        """
        joined = torch.cat([choose(output)[0] for output in self.outputs])
        return apply_weights(joined, [weight for chunk in self.chunks for weight in chunk.weights])


class TextEncoder:
    """Encodes one prompt at a time."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        module: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        name: str = "text_encoder",
        options: PromptOptions = PLAIN_PROMPTS,
        has_embeddings: bool = False,
    ) -> None:
        """Creates an encoder.

        Args:
            tokenizer: The tokenizer that belongs to the network.
            module: The network.
            name: The network's folder in the model's folder.
            options: How prompts are read.
            has_embeddings: Whether textual inversion embeddings were loaded into both.
        """
        self.tokenizer = tokenizer
        self.module = module
        self.name = name
        # Rust tokenizers raise "Already borrowed" when two threads use one at the same time.
        self._lock = threading.Lock()
        self._reader = PromptReader(tokenizer, options, lock=self._lock)
        self._is_plain = options.are_plain
        self._has_embeddings = has_embeddings

    def with_options(self, options: PromptOptions, *, has_embeddings: bool = False) -> TextEncoder:
        """Returns an encoder with the same network that reads prompts in another way."""
        return TextEncoder(
            self.tokenizer,
            self.module,
            name=self.name,
            options=options,
            has_embeddings=has_embeddings,
        )

    def with_module(self, module: CLIPTextModel) -> TextEncoder:
        """Returns an encoder with the same tokenizer, and its lock, and another network."""
        twin = copy.copy(self)
        twin.module = module
        return twin

    def dropped(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that is not encoded, or ``""``."""
        prompt = self._expanded(prompt)
        if not self._is_plain:
            return self._reader.dropped(prompt)
        tokenizer = self.tokenizer
        with self._lock:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            # The last place belongs to the end-of-text token.
            dropped = ids[tokenizer.model_max_length - 1 : -1]
            return str(tokenizer.decode(dropped)).strip() if dropped else ""

    def num_chunks(self, prompt: str) -> int:
        """Returns how many chunks ``prompt`` takes, one call of the network each."""
        return 1 if self._is_plain else self._reader.num_chunks(self._expanded(prompt))

    def encode(self, prompt: str, *, num_chunks: int) -> EncodedPrompt:
        """Encodes a prompt chunk by chunk."""
        prompt = self._expanded(prompt)
        if self._is_plain:
            chunks = [self._plain_chunk(prompt)]
        else:
            chunks = self._reader.chunks(prompt, num_chunks=num_chunks)
        return EncodedPrompt(chunks=chunks, outputs=[self._output(chunk) for chunk in chunks])

    def _expanded(self, prompt: str) -> str:
        """Returns the prompt with the words of embeddings of several vectors repeated for each."""
        if not self._has_embeddings:
            return prompt
        with self._lock:
            return str(TextualInversionLoaderMixin().maybe_convert_prompt(prompt, self.tokenizer))

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

    def _output(self, chunk: Chunk) -> EncoderOutput:
        module = self.module
        # Stable Diffusion 2.x uses the mask, the others attend to the padding too.
        uses_mask = getattr(module.config, "use_attention_mask", False)
        mask = to_device(chunk.attention_mask, module.device) if uses_mask else None
        tokens = to_device(chunk.tokens, module.device)
        output: EncoderOutput = module(tokens, attention_mask=mask, output_hidden_states=True)
        return output
