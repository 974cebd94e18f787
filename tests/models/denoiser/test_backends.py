"""Compiled denoisers: the same images, and only the prepared shapes are compiled."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import torch
from torch._dynamo.utils import counters

from latentwire_server.models.denoiser import backends, compiled_unet, inductor
from latentwire_server.models.denoiser import openvino as openvino_unet
from latentwire_server.models.denoiser.backends import DenoiserBackend
from latentwire_server.models.denoiser.compiled_unet import CompiledUnet
from latentwire_server.models.denoiser.unet_call import UnetInput, eager
from latentwire_server.models.errors import BackendError
from latentwire_server.models.protocol import Conditioning, DenoiserInput
from tests.support.models.folders import load_model, source_of
from tests.support.models.oracle import (
    SIDE,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latentwire_server.models.architectures.unet_model import UnetModel
    from latentwire_server.models.denoiser.unet_call import Unet
    from latentwire_server.models.protocol import DiffusionModel

pytestmark = [
    # Inductor's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# Inductor takes most of a minute for each size.
PREPARED_ROWS = {"inductor": (4,), "openvino": (4, 2)}
COMPILED_SHAPES = {"inductor": ("4x4x8x8",), "openvino": ("any", "4x4x8x8", "2x4x8x8")}
CASES = [
    Case(name="guided", guidance_scale=5.0),
    Case(name="euler-a", scheduler="euler-a", seed=3, prompt="a green star"),
    Case(name="unprepared size", width=2 * SIDE, scheduler="dpmpp-2m"),
    Case(name="a side that cannot be halved", height=SIDE + 8),
    Case(name="unprepared rows", guidance_scale=1.0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sensitive_folder(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, *, cache: Path | None = None, **options: str) -> UnetModel:
    """Loads the model; with the default cache each UNet is converted once for all tests."""
    cache = cache or folder.with_name("cache")
    return load_model(source_of(folder, **options), denoiser_cache=cache)


def skip_without_compiler() -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("inductor needs a C++ compiler")


@pytest.fixture(
    scope="module", params=[pytest.param("inductor", marks=pytest.mark.soak), "openvino"]
)
def compiled(folder: Path, request: pytest.FixtureRequest) -> Iterator[DiffusionModel]:
    if request.param == "inductor":
        skip_without_compiler()
    model = load(folder, denoiser_backend=request.param)
    for num_rows in PREPARED_ROWS[request.param]:
        model.prepare(num_rows)
    yield model
    torch.compiler.reset()


def rows_of(model: DiffusionModel, num_rows: int) -> DenoiserInput:
    shape = model.latent_shape(width=SIDE, height=SIDE)
    return DenoiserInput(
        latents=torch.randn((num_rows, *shape), generator=torch.Generator().manual_seed(1)),
        timesteps=torch.linspace(10, 900, num_rows),
        conditioning=[model.encode_prompt("a red circle", clip_skip=0)] * num_rows,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_denoiser_generates_the_pipelines_images(
    folder: Path, compiled: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fails if the engine's thread finds nothing compiled for a prepared shape.
    monkeypatch.setattr(inductor, "UNKNOWN_SHAPE", "fail_on_recompile")
    oracle = Oracle(folder)
    assert compiled.compiled_shapes == COMPILED_SHAPES[compiled.backend_name]
    for generated in (
        EngineImages(model=compiled, max_rows=4).alone(*CASES),
        EngineImages(model=compiled, max_rows=4).crowd(*CASES),
    ):
        for case in CASES:
            assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_unprepared_shapes_are_not_compiled_during_calls(
    folder: Path, compiled: DiffusionModel
) -> None:
    reference = load(folder, denoiser_backend="eager")
    before = counters["stats"]["unique_graphs"], compiled.compiled_shapes
    for num_rows in (1, 5, 8):
        rows = rows_of(reference, num_rows)
        torch.testing.assert_close(
            compiled.denoise(rows), reference.denoise(rows), atol=1e-4, rtol=1e-4
        )
    prompt = reference.encode_prompt("a red circle", clip_skip=0).prompt_embeds
    longer = [Conditioning(prompt_embeds=torch.cat([prompt, prompt]))] * 2
    rows = replace(rows_of(reference, 2), conditioning=longer)
    torch.testing.assert_close(
        compiled.denoise(rows), reference.denoise(rows), atol=1e-4, rtol=1e-4
    )
    assert (counters["stats"]["unique_graphs"], compiled.compiled_shapes) == before


class SmallUnet(torch.nn.Module):
    """A few operations that depend on every input of a UNet, and compile in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        shift = timesteps.sin() + encoder_hidden_states.mean((1, 2))
        return (self.conv(latents).relu() + shift.view(-1, 1, 1, 1),)


class ForOneShape:
    """Compiles nothing, and returns the given UNet."""

    def __init__(self, unet: Unet, *, takes_minutes: bool = False) -> None:
        self._unet = unet
        self.takes_minutes = takes_minutes

    def for_any_shape(self, rows: UnetInput) -> None:
        pass

    def for_shape(self, rows: UnetInput) -> Unet:
        return self._unet


def random_input(num_rows: int) -> UnetInput:
    return UnetInput(
        torch.randn(num_rows, 4, 8, 8), torch.rand(num_rows), torch.randn(num_rows, 5, 6)
    )


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(1, None), (2, 2), (3, None), (6, None), (7, 8), (8, 8), (9, None)]
)
def test_a_call_is_padded_to_a_compiled_size(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, expected: int | None
) -> None:
    sizes = []
    unet = SmallUnet().eval().requires_grad_(requires_grad=False)

    def compiled(rows: UnetInput) -> torch.Tensor:
        sizes.append(len(rows.latents))
        return eager(unet)(rows)

    monkeypatch.setattr(compiled_unet, "compiler_of", lambda *_, **__: ForOneShape(compiled))
    prepared = CompiledUnet(unet)
    for size in (8, 2):
        prepared.prepare(random_input(size))
    sizes.clear()
    rows = random_input(num_rows)
    torch.testing.assert_close(prepared(rows), eager(unet)(rows))
    assert sizes == ([] if expected is None else [expected])
    # Another image size is not padded to this one.
    prepared(rows._replace(latents=torch.randn(num_rows, 4, 4, 16)))
    assert len(sizes) == (expected is not None)


@pytest.mark.parametrize(
    ("takes_minutes", "expected"),
    [
        (False, ("28x4x8x8", "24x4x8x8", "16x4x8x8", "12x4x8x8")),
        (True, ("28x4x8x8", "16x4x8x8")),
    ],
)
def test_sizes_between_powers_of_two_are_compiled_only_if_that_is_quick(
    monkeypatch: pytest.MonkeyPatch, expected: tuple[str, ...], *, takes_minutes: bool
) -> None:
    unet = SmallUnet().eval().requires_grad_(requires_grad=False)
    compiler = ForOneShape(eager(unet), takes_minutes=takes_minutes)
    monkeypatch.setattr(compiled_unet, "compiler_of", lambda *_, **__: compiler)
    prepared = CompiledUnet(unet, backend=DenoiserBackend.INDUCTOR)
    for size in (28, 24, 16, 12):
        prepared.prepare(random_input(size))
    assert prepared.shapes == expected


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_inductor_runs_only_prepared_shapes_on_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without_compiler()
    unet = SmallUnet().eval().requires_grad_(requires_grad=False)
    with torch.inference_mode():
        prepared = CompiledUnet(unet, backend=DenoiserBackend.INDUCTOR)
        prepared.prepare(random_input(2))
    assert prepared.shapes == ("2x4x8x8",)
    num_graphs = counters["stats"]["unique_graphs"]
    monkeypatch.setattr(inductor, "UNKNOWN_SHAPE", "fail_on_recompile")

    def call() -> None:
        with torch.inference_mode():
            for wanted in map(random_input, (2, 3, 2, 4)):
                torch.testing.assert_close(prepared(wanted), eager(unet)(wanted))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()
    assert counters["stats"]["unique_graphs"] == num_graphs > 0
    torch.compiler.reset()


@pytest.mark.slow
def test_openvino_takes_and_returns_the_models_own_dtype(folder: Path) -> None:
    predicted = {}
    for backend in ("eager", "openvino"):
        model = load(folder, denoiser_backend=backend, dtype="bfloat16")
        model.prepare(2)
        assert bool(model.compiled_shapes) == (backend == "openvino")
        predicted[backend] = model.denoise(rows_of(model, 2))
    torch.testing.assert_close(predicted["openvino"], predicted["eager"], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_an_inexact_compiled_denoiser_is_not_used(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    factor: float,
) -> None:
    monkeypatch.setattr(
        backends,
        "InductorCompiler",
        lambda unet: ForOneShape(lambda rows: eager(unet)(rows) * factor),
    )
    model = load(folder, denoiser_backend="inductor")
    with caplog.at_level(logging.WARNING):
        model.prepare(2)
    assert model.compiled_shapes == ()
    assert "shape=2x4x8x8" in caplog.text
    reference = load(folder, denoiser_backend="eager")
    rows = rows_of(reference, 2)
    assert torch.equal(model.denoise(rows), reference.denoise(rows))


def test_a_missing_backend_is_reported_with_the_install_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"'openvino'.*pip install 'latentwire\[openvino\]'"):
        load(folder, denoiser_backend="openvino")


def test_auto_falls_back_to_eager_without_openvino(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    model = load(folder, denoiser_backend="auto")
    model.prepare(2)
    assert (model.backend_name, model.compiled_shapes) == ("eager", ())


@pytest.mark.parametrize("is_faster", [True, False])
def test_auto_chooses_openvino_if_it_is_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_faster: bool
) -> None:
    seconds = [1.0, 2.0] if is_faster else [2.0, 1.0]
    timed = iter(2 * seconds)
    monkeypatch.setattr(compiled_unet, "_seconds_of", lambda *_: next(timed))
    model = load(folder, denoiser_backend="auto")
    assert model.backend_name == "eager"
    model.prepare(2)
    assert list(timed) == []
    expected = ("openvino", ("any", "2x4x8x8")) if is_faster else ("eager", ())
    assert (model.backend_name, model.compiled_shapes) == expected


def test_a_large_unet_has_one_program_for_all_shapes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_unet, "_SMALL_UNET_BYTES", 0)
    model = load(folder, denoiser_backend="openvino")
    for num_rows in (2, 4):
        model.prepare(num_rows)
    assert model.compiled_shapes == ("any",)


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is an optional extra")
def test_openvino_starts_no_telemetry_process(tmp_path: Path) -> None:
    # In its own process: this one may have imported it already.
    program = """
import os
os.register_at_fork(before=lambda: print("forked"))
from latentwire_server.models.denoiser.openvino import silence_openvino
silence_openvino()
import openvino
openvino.convert_model
from openvino.tools.ovc.telemetry_utils import tm
print(tm.__name__)
"""
    environment = {**os.environ, "HOME": str(tmp_path), "CI": ""}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        check=True,
        text=True,
    )
    assert run.stdout.split() == ["openvino.tools.ovc.telemetry_stub"]


def test_a_converted_denoiser_is_cached_for_the_next_start(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    openvino = pytest.importorskip("openvino")
    cache = tmp_path / "cache"
    convert, num_converted = openvino.convert_model, []

    def converts(*arguments: object, **options: object) -> object:
        num_converted.append(1)
        return convert(*arguments, **options)

    monkeypatch.setattr(openvino, "convert_model", converts)

    def start(source: Path) -> torch.Tensor:
        model = load(source, denoiser_backend="openvino", cache=cache)
        model.prepare(2)
        assert model.compiled_shapes == ("any", "2x4x8x8")
        return model.denoise(rows_of(model, 2))

    first, second = start(folder), start(folder)
    assert len(num_converted) == 1
    assert torch.equal(first, second)
    # Other weights are another model.
    other = build_sensitive_folder(tmp_path / "other", seed=1)
    assert not torch.allclose(start(other), first)
    assert len(num_converted) == 2
    # A broken file is converted again.
    for file in cache.glob("*/unet.xml"):
        file.write_text("<broken")
    torch.testing.assert_close(start(folder), first)
    assert len(num_converted) == 3
    assert "converted denoiser cannot be read" in caplog.text


def test_converted_unets_are_put_in_place_whole_and_made_anew_where_they_are_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    openvino = pytest.importorskip("openvino")
    cache = tmp_path / "cache"
    convert, meanwhile = openvino.convert_model, []

    def converts(*arguments: object, **options: object) -> object:
        converted = convert(*arguments, **options)
        meanwhile.pop()()
        return converted

    monkeypatch.setattr(openvino, "convert_model", converts)

    def start() -> torch.Tensor:
        model = load(folder, denoiser_backend="openvino", cache=cache)
        model.prepare(2)
        return model.denoise(rows_of(model, 2))

    def files() -> dict[str, int]:
        return {str(path.relative_to(cache)): path.stat().st_ino for path in cache.rglob("*.*")}

    meanwhile.append(lambda: None)
    first = start()
    (weights,) = cache.glob("*/unet.bin")
    whole, other = files(), tmp_path / "other"
    assert len(whole) == 2
    # Another process puts its files in place while this one converts: they stay.
    weights.parent.rename(other)
    meanwhile.append(lambda: other.rename(weights.parent))
    assert torch.equal(start(), first)
    assert files() == whole
    assert not caplog.records
    # Reading mapped weights beyond the end of their file would end the process.
    os.truncate(weights, weights.stat().st_size // 2)
    meanwhile.append(lambda: None)
    torch.testing.assert_close(start(), first)
    assert "it is cut off" in caplog.text
    assert files().keys() == whole.keys()
    # As version 0.1.0 has kept them.
    for file in weights.parent.iterdir():
        file.rename(weights.parent.with_suffix(file.suffix))
    assert torch.equal(start(), first)
    assert not meanwhile
