"""Learned words from a folder, against the pipeline with ``load_textual_inversion``."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from latentwire_server.models.components.component_set import LIBRARY_LOCK
from tests.support.models.folders import load_model, read_spec, source_of
from tests.support.models.tiny_models import WIDTH, build_folder
from tests.support.models.tiny_xl_models import SECOND_WIDTH, build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.protocol import DiffusionModel

A1111, DIFFUSERS = "many.safetensors", "learned_embeds.safetensors"
PROMPTS = ["a <cat-toy> on blue", "many, circle", "<cat-toy> many <cat-toy>", "a red circle"]


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word in each format, beside a file that is not an embedding."""
    words = tmp_path_factory.mktemp("words")
    save_file({"emb_params": vectors(3, WIDTH)}, words / A1111)
    save_file({"<cat-toy>": vectors(WIDTH, seed=1)}, words / DIFFUSERS)
    (words / "README.md").write_text("Whose they are.")
    return words


@pytest.fixture(scope="module")
def model(folder: Path, words: Path) -> DiffusionModel:
    return load_model(source_of(folder, embeddings_folder=words))


def test_token_embeddings_are_resized_under_the_library_lock(
    folder: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading on another thread patches torch, and would leave the embeddings without storage."""
    could_enter: list[bool] = []
    resize = transformers.CLIPTextModel.resize_token_embeddings

    def watched(self, *args, **options):
        other = threading.Thread(
            target=lambda: could_enter.append(LIBRARY_LOCK.acquire(blocking=False))
        )
        other.start()
        other.join()
        return resize(self, *args, **options)

    monkeypatch.setattr(transformers.CLIPTextModel, "resize_token_embeddings", watched)
    assert load_model(source_of(folder, embeddings_folder=words)).info.capabilities
    assert could_enter == [False]


@pytest.fixture(scope="module")
def pipeline(folder: Path, words: Path) -> diffusers.StableDiffusionPipeline:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_textual_inversion(str(words / DIFFUSERS), local_files_only=True)
    pipeline.load_textual_inversion(str(words / A1111), token="many", local_files_only=True)
    return pipeline


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_learned_word_is_encoded_as_by_the_pipeline(
    model: DiffusionModel, pipeline: diffusers.StableDiffusionPipeline, prompt: str
) -> None:
    expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(model.encode_prompt(prompt, clip_skip=0).prompt_embeds, expected[0])


def test_prompts_without_learned_words_are_unchanged(model: DiffusionModel, folder: Path) -> None:
    without = load_model(source_of(folder))
    for prompt in ("a red circle", ""):
        plain, ours = (one.encode_prompt(prompt, clip_skip=0) for one in (without, model))
        assert torch.equal(plain.prompt_embeds, ours.prompt_embeds)
    plain, ours = (one.encode_prompt("a many", clip_skip=0) for one in (without, model))
    assert not torch.equal(plain.prompt_embeds, ours.prompt_embeds)


def test_a_word_takes_one_token_per_vector_with_or_without_weights(
    folder: Path, words: Path, model: DiffusionModel
) -> None:
    assert model.dropped_text("many " * 25) == ""
    assert model.dropped_text("many " * 26).replace(" ", "") == "manymany_1many_2"
    weighted = load_model(source_of(folder, embeddings_folder=words, prompt_weighting=True))
    plain = model.encode_prompt("a many circle", clip_skip=0).prompt_embeds
    assert torch.equal(weighted.encode_prompt("a many circle", clip_skip=0).prompt_embeds, plain)
    heavy = weighted.encode_prompt("a (many:1.5) circle", clip_skip=0).prompt_embeds
    factor = (heavy[1] / plain[1]).mean()
    assert torch.allclose(heavy[2:5], plain[2:5] * 1.5 * factor, rtol=1e-3, atol=1e-5)


def test_a_spec_lists_textual_inversion_without_loading_embeddings(
    folder: Path, words: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        spec = read_spec(source_of(folder, embeddings_folder=words))
    assert spec is not None
    assert "textual-inversion" in spec.info.capabilities
    assert not any("embedding" in one for one in caplog.messages)


def test_unusable_embeddings_are_logged_and_the_rest_are_loaded(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"emb_params": vectors(2, WIDTH)}
    bad = {
        "wide.safetensors": ({"emb_params": vectors(2, WIDTH + 1)}, "have 32 features"),
        "nan.safetensors": ({"emb_params": vectors(2, WIDTH) * float("nan")}, "finite"),
        "xl.safetensors": ({"clip_l": vectors(2, 8), "clip_g": vectors(2, 9)}, "text_encoder_2"),
        "deep.safetensors": ({"emb_params": vectors(1, 2, WIDTH)}, "neither a vector"),
        "two.safetensors": (
            {"a": vectors(WIDTH), "b": vectors(WIDTH)},
            "not a known embedding format",
        ),
        "a b.safetensors": (good, "cannot be a word in a prompt"),
        "(c).safetensors": (good, "cannot be a word in a prompt"),
        "red.safetensors": ({"red</w>": vectors(WIDTH)}, "is already in use"),
        "good_1.safetensors": (good, "is already in use"),
    }
    for name, (tensors, _) in bad.items():
        save_file(tensors, tmp_path / name)
    save_file(good, tmp_path / "good.safetensors")
    torch.save(good, tmp_path / "pickle.pt")
    torch.save(good, tmp_path / "clothed.safetensors")
    (tmp_path / "out.safetensors").symlink_to(folder / "unet/diffusion_pytorch_model.safetensors")
    with caplog.at_level(logging.INFO):
        model = load_model(source_of(folder, embeddings_folder=tmp_path))
    assert "embedding loaded word=good vectors=2" in caplog.messages
    refused = {one for one in caplog.messages if one.startswith("embedding not loaded")}
    expected = {name: because for name, (_, because) in bad.items()}
    expected |= {
        "pickle.pt": "is a pickle",
        "clothed.safetensors": "is a pickle",
        "out.safetensors": "leads out of the folder",
    }
    assert len(refused) == len(expected)
    for name, because in expected.items():
        assert [one for one in refused if f"file={name} " in one and because in one], name
    plain = load_model(source_of(folder)).encode_prompt("good", clip_skip=0).prompt_embeds
    assert not torch.equal(model.encode_prompt("good", clip_skip=0).prompt_embeds, plain)


def test_an_xl_model_learns_a_word_in_both_text_encoders_and_a_refiner_in_its_one(
    tmp_path: Path, words: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taught = {"clip_l": vectors(2, WIDTH), "clip_g": vectors(2, SECOND_WIDTH, seed=1)}
    (tmp_path / "words").mkdir()
    save_file(taught, tmp_path / "words" / "style.safetensors")
    base = build_xl_folder(tmp_path / "base")
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(base)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            {"style": taught[key]},
            token="style",
            tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
            text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
        )
    expected, _, pooled, _ = pipeline.encode_prompt(
        "a red circle, style", device="cpu", do_classifier_free_guidance=False
    )
    model = load_model(source_of(base, embeddings_folder=tmp_path / "words"))
    ours = model.encode_prompt("a red circle, style", clip_skip=0)
    assert torch.equal(ours.prompt_embeds, expected[0])
    assert ours.pooled_prompt_embeds is not None
    assert torch.equal(ours.pooled_prompt_embeds, pooled[0])

    refiner = build_xl_folder(tmp_path / "refiner", is_refiner=True)
    with caplog.at_level(logging.INFO):
        load_model(source_of(refiner, embeddings_folder=tmp_path / "words"))
        load_model(source_of(base, embeddings_folder=words))
    assert "embedding loaded word=style vectors=2" in caplog.messages
    assert any("it is for text_encoder, and the model has" in one for one in caplog.messages)
