"""Loading model folders, and the errors for invalid ones."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from latentwire_server.models.errors import LoadError
from latentwire_server.models.model_options import ModelEntry
from tests.support.models.folders import UNET, edit, load_model, refused, source_of
from tests.support.models.tiny_models import build_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_folder(tmp_path / "model")


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_folder_is_loaded_with_its_own_size_and_scheduler(folder: Path) -> None:
    model = load_model(source_of(folder, aliases=("other",)))
    assert (model.info.defaults.width, model.info.defaults.height) == (64, 64)
    assert model.info.defaults.scheduler.id == "pndm"
    assert model.info.limits.max_clip_skip == 2
    assert model.info.aliases == ("other",)
    assert (model.device_name, model.dtype_name) == ("cpu", "float32")


def test_the_embedded_model_is_loaded_like_any_other() -> None:
    model = load_model(ModelEntry(source="embedded", device="cpu", dtype="float32"))
    assert model.info.id == "embedded"
    assert model.info.defaults.width == 256


def test_the_revision_identifies_the_weights(folder: Path, tmp_path: Path) -> None:
    revision = load_model(source_of(folder)).info.revision
    other = build_folder(tmp_path / "other", seed=1)
    assert revision.startswith("sha256:")
    assert load_model(source_of(folder)).info.revision == revision
    assert load_model(source_of(other)).info.revision != revision


@pytest.mark.parametrize("max_shard_size", ["10GB", "40KB"])
def test_a_variant_is_loaded_whole_or_in_shards(tmp_path: Path, max_shard_size: str) -> None:
    folder = build_folder(tmp_path / "model", variant="fp16", max_shard_size=max_shard_size)
    has_shards = len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert has_shards == (max_shard_size == "40KB")
    assert load_model(source_of(folder, variant="fp16")).dtype_name == "float32"
    refused(folder, variant="bf16", because="variant 'bf16'")
    refused(folder, because="of the variant fp16 only; set variant")


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("./nowhere", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("nowhere", "no such folder"),
        ("org/name", "cache"),
        ("org/na me", "hub id"),
    ],
)
def test_a_missing_model_is_reported_in_one_line(name: str, because: str) -> None:
    refused(name, because=because)


HUB_FILES = [
    *("README.md", "model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt"),
    *("safety_checker/config.json", "safety_checker/model.safetensors"),
    "safety_checker/model.fp16.safetensors",
    *("feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json"),
    *("tokenizer/merges.txt", "tokenizer/vocab.json", "text_encoder/config.json"),
    *("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
    *("text_encoder/pytorch_model.bin", "unet/config.json"),
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *("vae/diffusion_pytorch_model.fp16.safetensors", "vae/onnx/model.json"),
]
ALWAYS = {name for name in HUB_FILES if name.count("/") == 1 and name.endswith((".json", ".txt"))}
ALWAYS -= {name for name in ALWAYS if ".index." in name}
ALWAYS |= {"model_index.json"}


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (
            None,
            {
                "text_encoder/model.safetensors",
                "unet/diffusion_pytorch_model.safetensors.index.json",
                "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
                "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "safety_checker/model.safetensors",
            },
        ),
        (
            "fp16",
            {
                "text_encoder/model.fp16.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
                "safety_checker/model.fp16.safetensors",
            },
        ),
    ],
)
def test_only_the_files_in_use_are_downloaded_from_a_hub_repository(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None, weights: set[str]
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        snapshot = folder.parent / "snapshots" / "c0ffee"
        snapshot.parent.mkdir()
        shutil.copytree(folder, snapshot)
        return str(snapshot)

    monkeypatch.setattr("latentwire_server.models.files.hub.snapshot_download", download)
    for part in ("unet", "vae", "text_encoder") if variant else ():
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(f".{variant}.safetensors"))
    model = load_model(source_of("org/name", variant=variant, revision="main"))
    assert model.info.revision == "c0ffee"
    assert (asked["repository"], asked["revision"]) == ("org/name", "main")
    files = filter_repo_objects(
        HUB_FILES, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert set(files) == ALWAYS | weights


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, because=r"no model_index\.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    change_weights(
        folder / UNET, lambda tensors: tensors["conv_in.weight"].view(-1)[:1].fill_(value)
    )
    refused(folder, because="unet has NaN or infinity in conv_in.weight")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (UNET, "conv_in.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
        ("text_encoder/model.safetensors", None),
    ],
)
def test_a_missing_tensor_is_refused(folder: Path, path: str, key: str | None) -> None:
    change_weights(folder / path, lambda tensors: tensors.pop(key or max(tensors)))
    refused(folder, because="missing|does not load")


@pytest.mark.parametrize("path", [UNET, "text_encoder/model.safetensors"])
def test_a_tensor_of_another_shape_is_refused(folder: Path, path: str) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        key = max(tensors)
        tensors[key] = torch.zeros(7, *tensors[key].shape[1:])

    change_weights(folder / path, grow)
    refused(folder, because="mismatched|does not load")


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"in_channels": 5}, "served: the latents'|mismatched|does not load"),
        ({"time_cond_proj_dim": 8}, "LCM|missing|does not load"),
    ],
)
def test_a_unet_of_another_kind_is_refused(
    folder: Path, changes: dict[str, object], because: str
) -> None:
    edit(folder / "unet/config.json", lambda config: config.update(changes))
    refused(folder, because=because)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer/tokenizer_config.json", lambda config: config.pop("model_max_length"))
    refused(folder, because="model_max_length")


def test_a_scheduler_configuration_of_an_unknown_class_is_refused(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    edit(path, lambda config: config.update(_class_name="EvilScheduler"))
    refused(folder, because="EvilScheduler")


def test_a_prediction_type_that_half_of_the_schedulers_lack_is_refused(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    edit(path, lambda config: config.update(prediction_type="sample"))
    refused(folder, because="prediction_type 'sample'")


def test_a_folder_can_name_its_defaults(folder: Path) -> None:
    settings = {
        "display_name": "Tiny",
        "defaults": {"num_inference_steps": 9, "scheduler": {"id": "euler", "sigmas": "karras"}},
        "limits": {"max_images": 2},
    }
    (folder / "latentwire.json").write_text(json.dumps(settings))
    info = load_model(source_of(folder)).info
    assert info.display_name == "Tiny"
    assert info.defaults.num_inference_steps == 9
    assert (info.defaults.scheduler.id, info.defaults.scheduler.sigmas) == ("euler", "karras")
    assert info.limits.max_images == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"defaults": 7}, "defaults=7"),
        ({"defaults": {"no_such": 1}}, "defaults.no_such=1"),
        ({"defaults": {"scheduler": 3}}, "defaults.scheduler=3"),
        ({"defaults": {"num_inference_steps": "20"}}, "defaults.num_inference_steps='20'"),
        ({"defaults": {"num_inference_steps": 1000}}, "defaults.num_inference_steps=1000"),
        ({"defaults": {"width": 65}}, "defaults.width=65"),
        ({"defaults": {"scheduler": {"id": "none"}}}, "defaults.scheduler=none default"),
        ({"limits": {"max_side": -8}}, "limits.max_side=-8"),
        ({"display_name": ""}, "display_name=''"),
    ],
)
def test_invalid_settings_are_refused_by_name(folder: Path, settings: object, named: str) -> None:
    (folder / "latentwire.json").write_text(json.dumps(settings))
    refused(folder, because=rf"latentwire\.json: {re.escape(named)}")


@pytest.mark.parametrize(
    ("settings", "expected_problems"),
    [
        (
            {"defaults": {"steps": 1, "width": "x"}, "limit": {}},
            [
                "defaults.width='x': Input should be a valid integer",
                "defaults.steps=1: there is no such field, only: width, height, num_inference",
                "limit={}: there is no such field, only: display_name, defaults, limits",
            ],
        ),
        (
            {"defaults": {"scheduler": {"name": "euler"}}},
            [
                "defaults.scheduler.id=",
                "defaults.scheduler.name='euler': there is no such field, only: id, sigmas",
            ],
        ),
        (
            {"defaults": {"width": 65, "num_inference_steps": 1000, "guidance_scale": 999.0}},
            [
                "defaults.width=65: needed: ",
                "defaults.num_inference_steps=1000: needed: up to",
                "defaults.guidance_scale=999.0: needed: up to",
            ],
        ),
    ],
)
def test_all_invalid_settings_are_reported_with_the_alternatives(
    folder: Path, settings: object, expected_problems: list[str]
) -> None:
    (folder / "latentwire.json").write_text(json.dumps(settings))
    with pytest.raises(LoadError) as caught:
        load_model(source_of(folder))
    _, _, problems = caught.value.reason.partition("latentwire.json: ")
    for one, expected in zip(problems.split("; "), expected_problems, strict=True):
        assert one.startswith(expected)


def test_the_operators_options_override_the_folders(folder: Path) -> None:
    settings = {
        "display_name": "Tiny",
        "defaults": {"num_inference_steps": 9, "guidance_scale": 3.0},
    }
    (folder / "latentwire.json").write_text(json.dumps(settings))
    own = {"defaults": {"num_inference_steps": 12}, "limits": {"max_images": 2}}
    info = load_model(source_of(folder, **own, display_name="Mine")).info
    assert info.display_name == "Mine"
    assert (info.defaults.num_inference_steps, info.defaults.guidance_scale) == (12, 3.0)
    assert info.limits.max_images == 2


def test_an_operators_default_that_breaks_the_models_limits_is_refused(folder: Path) -> None:
    because = r"\[\[models\]\]: defaults.width=65: needed: "
    refused(folder, because=because, defaults={"width": 65})
