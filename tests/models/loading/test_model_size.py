"""The memory of a model: expected before loading, and counted afterwards."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.models.folders import UNET, load_model, model_size, source_of
from tests.support.models.tiny_models import (
    WIDTH,
    build_folder,
    build_parts,
    build_safety_parts,
    pipeline_of,
)
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

VECTORS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("sized"))


def bytes_of(module: torch.nn.Module) -> int:
    return sum(one.nbytes for one in (*module.parameters(), *module.buffers()))


def test_a_separate_autoencoder_replaces_the_models_own(folder: Path, tmp_path: Path) -> None:
    other = build_folder(tmp_path, vae="AutoencoderTiny") / "vae"
    without, source = load_model(source_of(folder)), source_of(folder, vae=str(other))
    model = load_model(source)
    mine, theirs = (bytes_of(one._parts.vae) for one in (model, without))
    assert model.memory_bytes == without.memory_bytes - theirs + mine
    both = model_size(source_of(folder)).weights_bytes + mine
    assert model_size(source).weights_bytes == pytest.approx(both, rel=0.02), "both are read"


def test_embeddings_count(folder: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(VECTORS, WIDTH)}, tmp_path / "many.safetensors")
    without, source = source_of(folder), source_of(folder, embeddings_folder=tmp_path)
    numbers = VECTORS * WIDTH * torch.float32.itemsize
    assert load_model(source).memory_bytes - load_model(without).memory_bytes == numbers
    assert model_size(source).weights_bytes - model_size(without).weights_bytes >= numbers


def test_a_safety_checker_counts_in_float32(tmp_path: Path) -> None:
    dark, light = (np.full((64, 64, 3), level, np.uint8) for level in (0, 200))
    checker = build_safety_parts(unsafe=dark, safe=light)
    parts = build_parts(tmp_path)
    pipeline = pipeline_of(parts)
    pipeline.register_modules(**checker)
    pipeline.save_pretrained(tmp_path)
    sizes = [
        (load_model(source).memory_bytes, model_size(source).weights_bytes)
        for source in (source_of(tmp_path), source_of(tmp_path, safety_checker=False))
    ]
    (with_held, with_expected), (held, expected) = sizes
    taken = bytes_of(checker["safety_checker"])
    assert with_held - held == pytest.approx(taken, rel=0.01)
    assert with_expected - expected == pytest.approx(taken, rel=0.01)


@pytest.mark.parametrize(("seed", "num_shared"), [(0, 2), (5, 1)], ids=["same text", "other text"])
def test_networks_shared_by_base_and_refiner_count_once(
    tmp_path: Path, seed: int, num_shared: int
) -> None:
    base = build_xl_folder(tmp_path / "base", seed=0)
    refiner = build_xl_folder(tmp_path / "refiner", is_refiner=True, seed=seed)
    model = load_model(source_of(base, refiner=str(refiner)))
    networks = [
        network for one in (model, model.refiner) for network in one._parts.networks.values()
    ]
    distinct = set(networks)
    assert len(networks) - len(distinct) == num_shared
    assert model.memory_bytes == sum(map(bytes_of, distinct))


def test_each_compiled_program_counts(folder: Path) -> None:
    pytest.importorskip("openvino")
    source = source_of(folder, denoiser_backend="openvino")
    model = load_model(source)
    weights = model.memory_bytes
    model.prepare(2)
    assert model.compiled_shapes == ("any", "2x4x8x8")
    two = model.memory_bytes - weights
    assert two > 2 * bytes_of(model._parts.unet)
    model.prepare(4)
    assert model.memory_bytes - weights == 3 * two // 2


@pytest.mark.parametrize("place", ["folder", "checkpoint"])
def test_programs_are_expected_if_a_model_is_compiled(folder: Path, place: str) -> None:
    path = folder if place == "folder" else folder / UNET
    eager, inductor, openvino = (
        model_size(source_of(path, denoiser_backend=name))
        for name in ("eager", "inductor", "openvino")
    )
    assert eager.weights_bytes == inductor.weights_bytes == openvino.weights_bytes > 0
    assert eager.programs_bytes == 0 < inductor.programs_bytes
    has_openvino = importlib.util.find_spec("openvino") is not None
    assert (openvino.programs_bytes > inductor.programs_bytes) is has_openvino


def test_a_large_denoiser_is_expected_to_have_one_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    small = model_size(source_of(folder, denoiser_backend="openvino")).programs_bytes
    monkeypatch.setattr("latentwire_server.models.denoiser.openvino._SMALL_UNET_BYTES", 0)
    assert model_size(source_of(folder, denoiser_backend="openvino")).programs_bytes == small // 9
