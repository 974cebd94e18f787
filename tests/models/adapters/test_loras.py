"""Adapters, in a crowd with and without other adapters, against diffusers' own pipeline."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import output_capturing

from latentwire_server.engine.device.prompt_encoding import PromptEncoder
from latentwire_server.engine.diffusion.trajectory import Trajectory
from latentwire_server.engine.errors import LoraUnusable
from latentwire_server.engine.settings import Batching
from latentwire_server.models.adapters import lora_networks as lora_store
from latentwire_server.models.errors import LoadError
from tests.support.engine.driving import Driver
from tests.support.models.folders import load_model, source_of
from tests.support.models.images import coloured_blobs
from tests.support.models.lora_files import write_diffusers, write_kohya
from tests.support.models.oracle import (
    SIDE,
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
    request_of,
)
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latentwire_server.models.protocol import DiffusionModel

pytestmark = pytest.mark.timeout(300)


STYLE, PERSON, WORDS = "style", "person", "words"
CASES = [
    Case(name="none"),
    Case(name="style", loras=((STYLE, 1.0),)),
    Case(name="less of it", loras=((STYLE, 0.4),), num_images=2, scheduler="euler-a"),
    Case(name="person", loras=((PERSON, 0.8),), scheduler="dpmpp-2m"),
    Case(name="both", loras=((STYLE, 0.7), (PERSON, 0.5))),
    Case(name="both, turned", loras=((PERSON, -0.6), (STYLE, 0.5)), negative_prompt="a red square"),
    Case(name="negative", loras=((STYLE, -1.0),), guidance_scale=3.0, seed=5),
    Case(name="nothing of it", loras=((STYLE, 0.0), (PERSON, 0.0))),
    Case(name="one of two", loras=((STYLE, 0.0), (PERSON, 1.2)), seed=3),
    Case(name="without guidance", loras=((PERSON, 1.0),), guidance_scale=1.0),
    Case(name="words", loras=((WORDS, 1.0),), clip_skip=1),
    Case(name="three", loras=((WORDS, 0.5), (STYLE, 0.5), (PERSON, 0.5)), width=2 * SIDE),
    Case(name="from an image", loras=((STYLE, 1.0),), image=coloured_blobs(1), strength=0.6),
    Case(name="none, without guidance", guidance_scale=1.0, scheduler="ddim"),
]


def load(folder: Path, loras: Path | None, **options: Any) -> DiffusionModel:
    return load_model(source_of(folder, lora_folder=loras, **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sensitive_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain_model(folder: Path) -> DiffusionModel:
    return load(folder, None)


@pytest.fixture(scope="module")
def loras(plain_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, parts = tmp_path_factory.mktemp("loras"), plain_model._parts
    write_diffusers(path / f"{STYLE}.safetensors", parts, seed=1)
    write_kohya(path / f"{PERSON}.safetensors", parts, seed=2)
    write_diffusers(path / f"{WORDS}.safetensors", parts, seed=3, of=("text_encoder",))
    return path


@pytest.fixture(scope="module")
def model(folder: Path, loras: Path) -> DiffusionModel:
    return load(folder, loras)


@pytest.fixture(scope="module")
def oracle(folder: Path, loras: Path) -> Oracle:
    oracle = Oracle(folder)
    oracle.load_loras(loras)
    return oracle


@pytest.fixture(scope="module")
def crowd(model) -> dict[str, list[bytes]]:
    return EngineImages(model=model).crowd(*CASES)


def test_the_model_lists_the_loras_that_fit(model, plain_model) -> None:
    assert {lora.id for lora in model.info.loras} == {STYLE, PERSON, WORDS}
    assert "lora" in model.info.capabilities
    assert plain_model.info.loras == ()
    assert "lora" not in plain_model.info.capabilities


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_beside_other_adapters_it_generates_the_pipelines_images(
    oracle: Oracle, crowd, case: Case
) -> None:
    assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE


def test_different_adapters_and_scales_give_different_images(oracle: Oracle) -> None:
    """Otherwise the comparison above would pass for an engine that ignores them."""
    base = Case(name="none")
    cases = [base, *(replace(base, name=case.name, loras=case.loras) for case in CASES[1:9])]
    generated = {
        case.name: oracle.generate(replace(case, name=f"bare {case.name}")) for case in cases
    }
    nothing = generated.pop("nothing of it")
    assert abs(nothing[0] - generated["none"][0]).max() <= TOLERANCE
    names = list(generated)
    for index, name in enumerate(names):
        for other in names[:index]:
            assert abs(generated[name][0] - generated[other][0]).max() > 4 * TOLERANCE, (
                name,
                other,
            )


def test_requests_without_adapters_get_the_same_bytes_as_a_model_without_loras(
    model, plain_model
) -> None:
    options: dict[str, Any] = {"batching": Batching.REPRODUCIBLE, "max_rows": 4}
    without = [case for case in CASES if not case.loras]
    among = EngineImages(model=model, **options).crowd(*CASES)
    alone = EngineImages(model=plain_model, **options).alone(*without)
    assert alone == {case.name: among[case.name] for case in without}


def test_adapters_are_reloaded_in_bounded_memory_and_generate_the_same_images(
    model, oracle: Oracle
) -> None:
    sizes = {lora.id: lora.num_bytes for lora in model.info.loras}
    capacity = sizes[STYLE] + sizes[PERSON]
    style, person, both = CASES[1], CASES[3], CASES[4]

    async def generate() -> list[list[bytes]]:
        driver = Driver(model, lora_bytes=capacity)
        await driver.engine.start()
        adapters = driver.engine._device_loop.adapters
        files = []
        try:
            for case in (style, both, person, style):
                result = await driver.run(request_of(case, model))
                assert result.is_complete, result.error
                assert adapters.num_bytes <= capacity
                files.append([image.data for image in result.images])
            assert adapters.num_loads == 4
            await driver.run(request_of(replace(style, seed=99), model))
            assert adapters.num_loads == 4
        finally:
            await driver.engine.aclose()
        return files

    first, *_, again = asyncio.run(generate())
    assert first == again
    assert largest_difference(again, oracle.generate(style)) <= TOLERANCE


def test_a_crowd_waits_for_adapter_memory_and_gets_the_pipelines_images(
    model, oracle: Oracle
) -> None:
    sizes = {lora.id: lora.num_bytes for lora in model.info.loras}
    cases = [case for case in CASES[:7] if len(case.loras) < 2]
    images = EngineImages(model=model, lora_bytes=max(sizes[STYLE], sizes[PERSON]))
    generated = images.crowd(*cases)
    for case in cases:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE, (
            case.name
        )


def test_a_cancelled_generation_does_not_change_the_others_images(model, oracle: Oracle) -> None:
    cases = [replace(case, num_inference_steps=5) for case in CASES[:5]]
    victim = request_of(replace(CASES[6], num_inference_steps=50), model)

    async def generate() -> dict[str, list[bytes]]:
        driver = Driver(model)
        await driver.engine.start()
        try:
            rest = asyncio.create_task(driver.run_all(*(request_of(case, model) for case in cases)))
            async with driver.submit(victim) as events:
                async for event in events:
                    if getattr(event, "step", 0) == 2:
                        break
            results = await rest
        finally:
            await driver.engine.aclose()
        return {
            case.name: [image.data for image in result.images]
            for case, result in zip(cases, results, strict=True)
        }

    generated = asyncio.run(generate())
    for case in cases:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE, (
            case.name
        )


def sharing_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Trajectory.group.fget
    assert group is not None
    monkeypatch.setattr(
        Trajectory, "group", property(lambda self: replace(group(self), adapters=()))
    )


def keeping_the_first_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    set_scales = lora_store._Scalable.set_scales

    def once(self: lora_store._Scalable, scales: dict[str, float]) -> None:
        set_scales(self, self._scales or scales)

    monkeypatch.setattr(lora_store._Scalable, "set_scales", once)


def remembering_prompts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = PromptEncoder._encoded

    def forgetful(self: PromptEncoder, model: DiffusionModel, key: Any) -> Any:
        owner, model_id, _, *rest = key
        return encode(self, model, (owner, model_id, (), *rest))

    monkeypatch.setattr(PromptEncoder, "_encoded", forgetful)


@pytest.mark.parametrize(
    "break_engine", [sharing_calls, keeping_the_first_scales, remembering_prompts_for_all]
)
def test_an_engine_whose_adapters_leak_is_caught(
    model,
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
    break_engine: Callable[[pytest.MonkeyPatch], None],
) -> None:
    cases = [
        Case(name="none"),
        Case(name="a", loras=((STYLE, 1.0),)),
        Case(name="b", loras=((STYLE, -0.5),)),
        Case(name="c", loras=((PERSON, 1.0),)),
    ]
    break_engine(monkeypatch)
    generated = EngineImages(model=model).crowd(*cases)
    worst = max(
        largest_difference(
            generated[case.name], oracle.generate(replace(case, name=f"leak {case.name}"))
        )
        for case in cases
    )
    assert worst > TOLERANCE


def changed(path: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, target)


def first(tensors: dict[str, torch.Tensor], part: str = "") -> str:
    return next(name for name in tensors if part in name)


def set_first(part: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, part)
        tensors[name] = value(tensors[name])

    return change


def renamed(old: str, new: str) -> Callable[..., None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


MISFITS: dict[str, tuple[str, Callable[..., object], str]] = {
    "wide": (STYLE, set_first("lora_A", lambda t: torch.zeros(4, t.shape[1] + 1)), "do not fit"),
    "tall": (PERSON, set_first("lora_up", lambda t: torch.zeros(t.shape[0] + 1, 4)), "do not fit"),
    "ranks": (STYLE, set_first("lora_B", lambda t: torch.zeros(t.shape[0], 5)), "do not fit"),
    "rank": (
        STYLE,
        lambda t: [t.__setitem__(n, torch.zeros(5000, v.shape[1])) for n, v in [*t.items()][:1]],
        "rank is 5000",
    ),
    "half": (STYLE, lambda t: t.pop(first(t, "lora_B")), "half of the pair is missing"),
    "half kohya": (PERSON, lambda t: t.pop(first(t, "lora_up")), "not named as a LoRA's"),
    "stranger": (STYLE, renamed("unet.", "transformer."), "no network of the model"),
    "no layer": (STYLE, renamed("down_blocks.0", "down_blocks.9"), "has no layer"),
    "not linear": (STYLE, renamed("attn1.to_q", "norm1"), "takes no LoRA"),
    "dora": (STYLE, lambda t: t.update({"unet.x.lora_magnitude_vector": torch.ones(2)}), "DoRA"),
    "lokr": (STYLE, renamed("lora_A", "lokr_w1"), "LoKr"),
    "integers": (STYLE, set_first("lora_A", lambda t: t.int()), "is I32"),
    "nan alpha": (PERSON, set_first("alpha", lambda t: t * float("nan")), "NaN or infinity"),
    "empty": (STYLE, lambda t: t.clear(), "0 tensors"),
}


@pytest.fixture(scope="module")
def misfits(loras: Path, plain_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that do not fit, beside one that does."""
    path = tmp_path_factory.mktemp("misfits")
    write_diffusers(path / f"{STYLE}.safetensors", plain_model._parts, seed=1)
    for name, (origin, change, _) in MISFITS.items():
        changed(loras / f"{origin}.safetensors", path / f"{name}.safetensors", change)
    good = (loras / f"{STYLE}.safetensors").read_bytes()
    (path / "short.safetensors").write_bytes(good[: len(good) // 2])
    torch.save(load_file(loras / f"{STYLE}.safetensors"), path / "pickle.safetensors")
    for name, reason in {
        "other kind": {"unet.r": 4, "unet.use_dora": True},
        "patterns": {"unet.r": 4, "unet.rank_pattern": {"(a+)+$": 4}},
        "no number": {"unet.r": "4"},
    }.items():
        save_file(
            load_file(loras / f"{STYLE}.safetensors"),
            path / f"{name}.safetensors",
            metadata={"lora_adapter_metadata": json.dumps(reason)},
        )
    changed(
        loras / f"{STYLE}.safetensors",
        path / "nan.safetensors",
        set_first("lora_A", lambda t: t * float("nan")),
    )
    return path


def test_files_that_do_not_fit_are_reported_with_the_reason(folder: Path, misfits: Path) -> None:
    info = load(folder, misfits).info
    expected = {name.replace(" ", "-"): reason for name, (_, _, reason) in MISFITS.items()}
    expected |= {
        "short": "cannot be read as safetensors",
        "pickle": "is a pickle",
        "other-kind": "made with use_dora",
        "patterns": "an invalid rank_pattern",
        "no-number": "an invalid r",
    }
    # Bad values are only found when the weights are read.
    assert {lora.id for lora in info.loras} == {STYLE, "nan"}
    assert info.unfit_loras.keys() == expected.keys()
    for id_, reason in expected.items():
        assert reason in info.unfit_loras[id_], id_
        assert str(misfits) not in info.unfit_loras[id_]


def test_a_file_with_bad_weights_ends_only_its_own_generation(
    folder: Path, misfits: Path, oracle: Oracle
) -> None:
    model = load(folder, misfits)
    style, none, bad = CASES[1], CASES[0], Case(name="bad", loras=(("nan", 1.0),))
    generated = EngineImages(model=model).crowd(style, bad, none, failing={"bad": LoraUnusable})
    for case in (style, none):
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE
    assert generated["bad"] == []


def test_a_file_changed_after_inspection_is_not_used(
    folder: Path, plain_model, tmp_path: Path
) -> None:
    path = tmp_path / f"{STYLE}.safetensors"
    write_diffusers(path, plain_model._parts, seed=1)
    model = load(folder, tmp_path)
    write_diffusers(path, plain_model._parts, seed=7)
    generated = EngineImages(model=model).crowd(CASES[1], failing={"style": LoraUnusable})
    assert generated["style"] == []


def test_a_link_out_of_the_folder_is_refused(folder: Path, loras: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to(loras / f"{STYLE}.safetensors")
    with pytest.raises(LoadError, match="leads out of the folder"):
        load(folder, tmp_path)


def test_alphas_in_diffusers_metadata_are_applied(
    folder: Path, loras: Path, tmp_path: Path
) -> None:
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    reason = {"unet.r": 4, "unet.lora_alpha": 10, "unet.target_modules": layers}
    save_file(
        load_file(loras / f"{STYLE}.safetensors"),
        tmp_path / f"{STYLE}.safetensors",
        metadata={"lora_adapter_metadata": json.dumps(reason)},
    )
    case = Case(name="alpha", loras=((STYLE, 0.3),))
    oracle = Oracle(folder)
    oracle.load_loras(tmp_path)
    generated = EngineImages(model=load(folder, tmp_path)).alone(case)
    assert largest_difference(generated["alpha"], oracle.generate(case)) <= TOLERANCE


def test_calls_with_adapters_run_eagerly_beside_a_compiled_denoiser(
    folder: Path, loras: Path, oracle: Oracle
) -> None:
    pytest.importorskip("openvino")
    model = load(folder, loras, denoiser_backend="openvino")
    model.prepare(2)
    assert model.compiled_shapes
    generated = EngineImages(model=model).crowd(*CASES[:4])
    for case in CASES[:4]:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= 2 * TOLERANCE, (
            case.name
        )
    assert model.with_loras([STYLE]).scaled({STYLE: 1.0}).backend_name == "eager"


def test_stable_diffusion_xl_takes_adapters_in_both_its_text_encoders(tmp_path: Path) -> None:
    folder, loras = build_xl_folder(tmp_path / "xl"), tmp_path / "loras"
    loras.mkdir()
    parts = load(folder, None)._parts
    everywhere = ("unet", "text_encoder", "text_encoder_2")
    write_diffusers(loras / f"{STYLE}.safetensors", parts, seed=1, of=everywhere)
    write_kohya(loras / f"{PERSON}.safetensors", parts, seed=2, of=everywhere)
    oracle = Oracle(folder, pipelines=STABLE_DIFFUSION_XL)
    oracle.load_loras(loras)
    # Weaker ones: the rounding errors of float32 grow with the changes.
    cases = [
        Case(name="none"),
        Case(name="style", loras=((STYLE, 0.2),)),
        Case(name="person", loras=((PERSON, 0.3),), guidance_scale=1.0),
        Case(name="both", loras=((PERSON, -0.2), (STYLE, 0.2)), negative_prompt="a square"),
    ]
    generated = EngineImages(model=load(folder, loras)).crowd(*cases)
    for case in cases:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE, (
            case.name
        )
    assert abs(oracle.generate(cases[0])[0] - oracle.generate(cases[1])[0]).max() > 4 * TOLERANCE


def test_loras_that_load_during_the_first_prompt_change_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loras = build_xl_folder(tmp_path / "xl"), tmp_path / "loras"
    loras.mkdir()
    everywhere = ("unet", "text_encoder", "text_encoder_2")
    parts = load(folder, None)._parts
    write_diffusers(loras / f"{STYLE}.safetensors", parts, seed=1, of=everywhere)

    def encoded_with_style(model: DiffusionModel) -> torch.Tensor:
        adapters = model.with_loras([STYLE])
        with torch.inference_mode():
            scaled = adapters.scaled({STYLE: 1.0})
            return scaled.encode_prompt("a red circle", clip_skip=0).prompt_embeds

    expected = encoded_with_style(load(folder, loras))
    model = load(folder, loras)
    begun, install = threading.Event(), output_capturing.recursively_install_hooks

    def install_slowly(module: torch.nn.Module, name: str, *arguments: Any) -> None:
        """Leaves time between the last hook and the mark that they are all there."""
        install(module, name, *arguments)
        if not name:
            begun.set()
            time.sleep(2)

    monkeypatch.setattr(output_capturing, "recursively_install_hooks", install_slowly)
    with ThreadPoolExecutor(1) as device_thread:
        first = device_thread.submit(model.encode_prompt, "a blue star", clip_skip=0)
        assert begun.wait(20)
        loaded = encoded_with_style(model)
        first.result()
    assert torch.equal(loaded, expected)
