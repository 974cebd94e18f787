"""Weights and long prompts, against the formula of diffusers' lpw_stable_diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.models.folders import load_model, source_of
from tests.support.models.oracle import Case, EngineImages, Oracle, build_sensitive_folder
from tests.support.models.oracle import largest_difference as difference

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.protocol import DiffusionModel

Parts = list[tuple[str, float]]

LONG = "a red circle on a blue background " * 12
PROMPTS: dict[str, Parts] = {
    "(red:1.3) circle": [("red", 1.3), (" circle", 1.0)],
    "a ((blue)) [square]": [("a ", 1.0), ("blue", 1.21), (" ", 1.0), ("square", 1 / 1.1)],
    LONG: [(LONG, 1.0)],
    f"{LONG}(small:1.4) circle": [(LONG, 1.0), ("small", 1.4), (" circle", 1.0)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_sensitive_folder(tmp_path_factory.mktemp("tiny"))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    # A newly initialised encoder's output has a mean of zero, by which the formula would divide.
    (bias,) = (key for key in tensors if key.endswith("final_layer_norm.bias"))
    tensors[bias].uniform_(0, 1, generator=torch.Generator().manual_seed(3))
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionModel:
    return load_model(source_of(folder, prompt_weighting=True, max_prompt_chunks=3))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def by_formula(
    oracle: Oracle, parts: Parts, *, num_chunks: int, clip_skip: int = 0
) -> torch.Tensor:
    """Returns (1, tokens, features): each 75 tokens between start and end, then scaled."""
    pipeline = oracle.pipeline
    start, end = pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id
    tokens, weights = [], []
    for text, weight in parts:
        read = pipeline.tokenizer(text, verbose=False).input_ids[1:-1]
        tokens += read
        weights += [weight] * len(read)
    embeds, factors = [], []
    for at in range(0, num_chunks * 75, 75):
        part = tokens[at : at + 75]
        ids = torch.tensor([[start, *part, *[end] * (76 - len(part))]])
        with torch.inference_mode():
            states = pipeline.text_encoder(ids, output_hidden_states=True)
            layer = states.last_hidden_state
            if clip_skip:
                hidden = states.hidden_states[-(clip_skip + 1)]
                layer = pipeline.text_encoder.text_model.final_layer_norm(hidden)
        embeds.append(layer)
        factors += [1.0, *weights[at : at + 75], *[1.0] * (76 - len(part))]
    whole = torch.cat(embeds, dim=1)
    scaled = whole * torch.tensor(factors)[None, :, None]
    return scaled * (whole.mean() / scaled.mean())


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_encoded_by_the_formula(
    model: DiffusionModel, oracle: Oracle, prompt: str, clip_skip: int
) -> None:
    num_chunks = model.num_chunks(prompt)
    assert num_chunks == (2 if prompt.startswith(LONG) else 1)
    ours = model.encode_prompt(prompt, clip_skip=clip_skip, num_chunks=num_chunks).prompt_embeds
    expected = by_formula(oracle, PROMPTS[prompt], num_chunks=num_chunks, clip_skip=clip_skip)
    assert ours.shape == (77 * num_chunks, 32)
    assert torch.allclose(ours, expected[0], atol=1e-5)


@pytest.mark.parametrize("prompt", ["", "a red circle, on blue", r"a \(red\) circle"])
def test_a_short_unweighted_prompt_is_encoded_as_by_the_pipeline(
    model: DiffusionModel, oracle: Oracle, prompt: str
) -> None:
    plain = prompt.replace("\\", "")
    expected, _ = oracle.pipeline.encode_prompt(plain, "cpu", 1, do_classifier_free_guidance=False)
    ours = model.encode_prompt(prompt, clip_skip=0, num_chunks=1).prompt_embeds
    assert torch.equal(ours, expected[0])


def test_weighting_and_long_prompts_are_independent_settings(folder: Path, oracle: Oracle) -> None:
    def plain(prompt: str) -> torch.Tensor:
        return oracle.pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]

    only_long = load_model(source_of(folder, max_prompt_chunks=2))
    bracketed = only_long.encode_prompt("(red:1.3) circle", clip_skip=0).prompt_embeds
    assert torch.equal(bracketed, plain("(red:1.3) circle")[0])
    assert only_long.num_chunks(LONG) == 2
    only_weighted = load_model(source_of(folder, prompt_weighting=True))
    assert only_weighted.num_chunks(LONG) == 1
    assert torch.equal(only_weighted.encode_prompt(LONG, clip_skip=0).prompt_embeds, plain(LONG)[0])


def test_only_text_beyond_the_last_chunk_is_dropped(model: DiffusionModel) -> None:
    words = ["small", "circle"] * 150
    assert model.dropped_text(" ".join(words[:225])) == ""
    assert model.num_chunks(" ".join(words)) == 3
    assert model.dropped_text("(" + " ".join(words) + ":1.2)") == " ".join(words[225:])


def test_images_do_not_depend_on_the_length_of_other_prompts(
    model: DiffusionModel, oracle: Oracle
) -> None:
    cases = [
        Case(name="short"),
        Case(name="long", prompt=LONG, negative_prompt="blue"),
        Case(name="long negative", negative_prompt=LONG),
        Case(name="weighted", prompt="(red:1.3) circle"),
        Case(name="longer", prompt=f"{LONG}(small:1.4) circle", num_inference_steps=4),
    ]
    generated = EngineImages(model=model).crowd(*cases)
    for case in cases:
        sides = [PROMPTS.get(text, [(text, 1.0)]) for text in (case.prompt, case.negative_prompt)]
        num_chunks = 1 if case.name in ("short", "weighted") else 2
        embeds, negative = (by_formula(oracle, side, num_chunks=num_chunks) for side in sides)
        assert (
            difference(generated[case.name], oracle.generate_encoded(case, embeds, negative)) <= 2
        )
    distinct = {np.asarray(oracle.generate(case)[0]).tobytes() for case in cases}
    assert len(distinct) == len(cases)
