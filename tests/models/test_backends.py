"""Compiled denoisers: the same pictures, for the shapes that were prepared and nothing else."""

from __future__ import annotations

import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from torch._dynamo.utils import counters

from latentwire_server.models import backends
from latentwire_server.models.backends import (
    BackendError,
    DenoiserBackend,
    PreparedUnet,
    UnetInput,
)
from latentwire_server.models.loading import ModelSource, load_model
from latentwire_server.models.model import DenoiserInput
from tests.models.oracle import (
    SIDE,
    Case,
    EngineDrawings,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latentwire_server.models.model import DiffusionModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    # Inductor's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TOLERANCE = 2
# Inductor takes most of a minute for each.
PREPARED_ROWS = {"inductor": (4,), "openvino": (4, 2)}
CASES = [
    Case(name="guided", guidance_scale=5.0),
    Case(name="euler-a", scheduler="euler-a", seed=3, prompt="a green star"),
    Case(name="unprepared size", width=2 * SIDE, scheduler="dpmpp-2m"),
    Case(name="unprepared rows", guidance_scale=1.0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sensitive_folder(tmp_path_factory.mktemp("tiny"))


def source_of(folder: Path, *, backend: str, dtype: str = "float32") -> ModelSource:
    return ModelSource(id="tiny", source=str(folder), device="cpu", dtype=dtype, backend=backend)


def skip_without_compiler() -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("inductor needs a C++ compiler")


@pytest.fixture(
    scope="module", params=[pytest.param("inductor", marks=pytest.mark.soak), "openvino"]
)
def compiled(folder: Path, request: pytest.FixtureRequest) -> Iterator[DiffusionModel]:
    if request.param == "inductor":
        skip_without_compiler()
    model = load_model(source_of(folder, backend=request.param))
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
def test_a_compiled_denoiser_draws_the_pipelines_pictures(
    folder: Path, compiled: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fails where the engine's thread finds nothing compiled for a prepared shape.
    monkeypatch.setattr(backends, "UNKNOWN_SHAPE", "fail_on_recompile")
    oracle = Oracle(folder)
    assert compiled.compiled_shapes == tuple(
        f"{num_rows}x4x{SIDE // 8}x{SIDE // 8}" for num_rows in PREPARED_ROWS[compiled.backend_name]
    )
    for drawn in (
        EngineDrawings(model=compiled, max_rows=4).alone(*CASES),
        EngineDrawings(model=compiled, max_rows=4).crowd(*CASES),
    ):
        for case in CASES:
            assert largest_difference(drawn[case.name], oracle.draw(case)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_not_prepared_is_not_compiled_on_the_way(
    folder: Path, compiled: DiffusionModel
) -> None:
    eager = load_model(source_of(folder, backend="eager"))
    before = counters["stats"]["unique_graphs"], compiled.compiled_shapes
    for num_rows in (1, 3, 8):
        rows = rows_of(eager, num_rows)
        torch.testing.assert_close(compiled.denoise(rows), eager.denoise(rows))
    assert (counters["stats"]["unique_graphs"], compiled.compiled_shapes) == before


class SmallUnet(torch.nn.Module):
    """A few operations that depend on everything a UNet is given; they compile in seconds."""

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


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_inductor_runs_a_prepared_shape_on_another_thread_and_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without_compiler()

    def rows(num_rows: int) -> UnetInput:
        return UnetInput(
            torch.randn(num_rows, 4, 8, 8), torch.rand(num_rows), torch.randn(num_rows, 5, 6)
        )

    unet = SmallUnet().eval().requires_grad_(requires_grad=False)
    with torch.inference_mode():
        prepared = PreparedUnet(unet, backend=DenoiserBackend.INDUCTOR)
        prepared.prepare(rows(2))
    assert prepared.shapes == ("2x4x8x8",)
    num_graphs = counters["stats"]["unique_graphs"]
    monkeypatch.setattr(backends, "UNKNOWN_SHAPE", "fail_on_recompile")

    def call() -> None:
        with torch.inference_mode():
            for wanted in (rows(2), rows(3), rows(2), rows(4)):
                torch.testing.assert_close(prepared(wanted), backends._eager(unet)(wanted))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()
    assert counters["stats"]["unique_graphs"] == num_graphs > 0
    torch.compiler.reset()


@pytest.mark.slow
def test_openvino_takes_and_gives_the_models_own_dtype(folder: Path) -> None:
    predicted = {}
    for backend in ("eager", "openvino"):
        source = source_of(folder, backend=backend, dtype="bfloat16")
        model = load_model(source)
        model.prepare(2)
        assert len(model.compiled_shapes) == (backend == "openvino")
        predicted[backend] = model.denoise(rows_of(model, 2))
    torch.testing.assert_close(predicted["openvino"], predicted["eager"], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_compiled_denoiser_that_is_off_is_not_used(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    factor: float,
) -> None:
    def off(unet: object) -> object:
        return lambda _: lambda rows: backends._eager(unet)(rows) * factor

    monkeypatch.setattr(backends, "_inductor", off)
    model = load_model(source_of(folder, backend="inductor"))
    with caplog.at_level(logging.WARNING):
        model.prepare(2)
    assert model.compiled_shapes == ()
    assert "shape=2x4x8x8" in caplog.text
    eager = load_model(source_of(folder, backend="eager"))
    rows = rows_of(eager, 2)
    assert torch.equal(model.denoise(rows), eager.denoise(rows))


def test_where_a_backend_is_not_installed_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"'openvino'.*pip install 'latentwire\[openvino\]'"):
        load_model(source_of(folder, backend="openvino"))


def test_auto_compiles_nothing(folder: Path) -> None:
    model = load_model(source_of(folder, backend="auto"))
    model.prepare(2)
    assert (model.backend_name, model.compiled_shapes) == ("eager", ())
