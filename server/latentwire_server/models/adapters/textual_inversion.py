"""Textual inversion: embeddings for words of a prompt, from the operator's folder.

Only safetensors is read, recognised by its content; nothing is fetched. A file that does not fit
the model is left out and named in the log. Loading threads only, before the model is in use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from safetensors import SafetensorError
from safetensors.torch import load_file

from latentwire_server.models.components.component_set import LIBRARY_LOCK
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import PICKLES, check_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from latentwire_server.models.text.clip_encoder import TextEncoder

_LOGGER = logging.getLogger(__name__)

_WEIGHT_FILES: Final = (".safetensors", *PICKLES)
_UNNAMED: Final = ("emb_params", "*", "string_to_param")
"""Names of the tensor in files of one embedding whose word is the file's name."""
_BY_ENCODER: Final = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Names of the tensors in files for Stable Diffusion XL, and their text encoders."""
_NOT_IN_WORDS: Final = frozenset("()[]\\:")
"""Characters of the notation for weights in prompts."""
_MAX_VECTORS: Final = 75
_MAX_WORD_LENGTH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Embedding:
    """The vectors of a word."""

    word: str
    vectors: Mapping[str, torch.Tensor]
    """(vectors, features), by text encoder; a single one is for ``"text_encoder"``."""

    @property
    def num_vectors(self) -> int:
        """The number of tokens that the word takes in a prompt."""
        return max(map(len, self.vectors.values()))

    @property
    def tokens(self) -> set[str]:
        """The tokens of its vectors, and the one that would be taken for another vector."""
        return {self.word, *(f"{self.word}_{i}" for i in range(1, self.num_vectors + 1))}


class _UnfitError(Exception):
    """A file does not fit; the text says why."""


class _Loader(TextualInversionLoaderMixin):  # type: ignore[misc]  # untyped library
    """Diffusers' loader. Of a pipeline it only needs to know whether parts are offloaded."""

    hf_device_map = None
    components: Final[Mapping[str, torch.nn.Module]] = {}


def load_words(folder: Path, encoders: Sequence[TextEncoder]) -> tuple[str, ...]:
    """Loads the embeddings of a folder that fit into the text encoders; returns their words."""
    found, unfit = _fitting(folder, encoders)
    for name, reason in unfit.items():
        _LOGGER.warning("embedding not loaded file=%s reason=%s", name, reason)
    for encoder in encoders if found else ():
        # All at once: each call copies the network's table of embeddings.
        with LIBRARY_LOCK:
            _Loader().load_textual_inversion(
                [{one.word: one.vectors[encoder.name]} for one in found],
                token=[one.word for one in found],
                tokenizer=encoder.tokenizer,
                text_encoder=encoder.module,
            )
    for one in found:
        _LOGGER.info("embedding loaded word=%s vectors=%d", one.word, one.num_vectors)
    return tuple(one.word for one in found)


def words_in(folder: Path, encoders: Sequence[TextEncoder]) -> tuple[str, ...]:
    """Returns the words that ``load_words`` would load; the encoders need no weights."""
    found, _ = _fitting(folder, encoders)
    return tuple(one.word for one in found)


def _fitting(
    folder: Path, encoders: Sequence[TextEncoder]
) -> tuple[list[_Embedding], dict[str, str]]:
    """Returns the embeddings that fit and, by file name, why the others do not."""
    found: list[_Embedding] = []
    unfit: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _WEIGHT_FILES:
            continue
        try:
            embedding = _read(path, folder=folder)
        except (_UnfitError, LoadError) as error:
            unfit[path.name] = error.reason if isinstance(error, LoadError) else str(error)
            continue
        problem = next(_problems(embedding, encoders=encoders, others=found), None)
        if problem is None:
            found.append(embedding)
        else:
            unfit[path.name] = problem
    return found, unfit


def _read(path: Path, *, folder: Path) -> _Embedding:
    if not path.resolve().is_relative_to(folder.resolve()):
        message = "it is a link that leads out of the folder"
        raise _UnfitError(message)
    check_safetensors(path, source=str(folder))
    try:
        tensors = load_file(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        message = f"it cannot be read ({type(error).__name__})"
        raise _UnfitError(message) from None
    word, found = _parse(tensors, stem=path.stem)
    if any(one.ndim not in (1, 2) for one in found.values()):
        message = "it is neither a vector nor several vectors"
        raise _UnfitError(message)
    vectors = {name: one[None] if one.ndim == 1 else one for name, one in found.items()}
    return _Embedding(word=word, vectors=vectors)


def _parse(
    tensors: Mapping[str, torch.Tensor], *, stem: str
) -> tuple[str, dict[str, torch.Tensor]]:
    """Parses the formats of Stable Diffusion XL, Automatic1111 and diffusers: word and vectors."""
    if set(tensors) == set(_BY_ENCODER):
        return stem, {name: tensors[key] for key, name in _BY_ENCODER.items()}
    if len(tensors) != 1:
        message = f"it has {len(tensors)} tensors, which is not a known embedding format"
        raise _UnfitError(message)
    ((key, tensor),) = tensors.items()
    return (stem if key in _UNNAMED else key), {"text_encoder": tensor}


def _problems(
    embedding: _Embedding, *, encoders: Sequence[TextEncoder], others: Sequence[_Embedding]
) -> Iterator[str]:
    word, vectors = embedding.word, embedding.vectors
    is_word = 0 < len(word) <= _MAX_WORD_LENGTH and word.isprintable() and " " not in word
    if not is_word or _NOT_IN_WORDS.intersection(word):
        yield f"{word[:_MAX_WORD_LENGTH]!a} cannot be a word in a prompt"
    names = {encoder.name for encoder in encoders}
    # A refiner has only the second text encoder.
    if not names <= set(vectors) or (len(vectors) > 1 and "text_encoder_2" not in names):
        wanted, given = " and ".join(sorted(names)), " and ".join(sorted(vectors))
        yield f"it is for {given}, and the model has {wanted}"
        return
    for encoder in encoders:
        tensor, network = vectors[encoder.name], encoder.module
        size = network.get_input_embeddings().weight.shape[-1]
        if tensor.shape[1] != size:
            yield f"its shape is {[*tensor.shape]}, and the model's words have {size} features"
            return
        is_sane = tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
        if not is_sane or not 1 <= len(tensor) <= _MAX_VECTORS:
            yield f"needed: 1 to {_MAX_VECTORS} vectors of finite numbers"
        if len(tensor) != embedding.num_vectors:
            yield "its numbers of vectors differ between the text encoders"
        taken = {*encoder.tokenizer.get_vocab()}.union(*(one.tokens for one in others))
        if taken & embedding.tokens:
            yield f"{word!r} is already in use"
