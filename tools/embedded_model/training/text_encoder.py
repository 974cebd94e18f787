"""Builds the tokenizer and the untrained text encoder.

The tokenizer uses byte pairs in CLIP's format, with merges learned from the vocabulary alone: each
known word is one token, and any other text is split into letters or bytes.
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.embedded_model.scenes.vocabulary import known_words

MAX_LENGTH = 77
WIDTH = 128
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SUFFIX = "</w>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json and merges.txt, which every CLIP tokenizer reads, and loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = _learn_merges(known_words())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + _SUFFIX for letter in letters)]
    tokens += ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(tokens), _START, _END]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Loads the files that `build_tokenizer` wrote."""
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=MAX_LENGTH,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Builds the untrained two-layer encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Returns (rows, 77) int64, padded and truncated as in the pipelines."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=MAX_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    return torch.as_tensor(encoded.input_ids)


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Learns byte-pair merges until each of the words, letters only, is one token.

    The most frequent pair comes first, ties in alphabetical order. The `tokenizers` trainer breaks
    ties differently in each process, which would give every run other token ids.
    """
    spelled = [[*word[:-1], word[-1] + _SUFFIX] for word in words if word.isalpha()]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(symbols, best) for symbols in spelled]
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
