"""Hostile model folders: no code in them runs, and no file outside them is read."""

from __future__ import annotations

import json
import os
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch

from latentwire_server.models.errors import LoadError
from tests.support.models.folders import UNET, edit, load_model, model_size, refused, source_of
from tests.support.models.tiny_models import build_folder

if TYPE_CHECKING:
    from pathlib import Path


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_folder(tmp_path / "model")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_unpickling_the_bomb_runs_its_code(canary: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(canary)))  # noqa: S301 - the negative control
    assert canary.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "StableDiffusionXLPipeline"),
        ("_class_name", ["pipeline", "StableDiffusionPipeline"]),
        ("_class_name", None),
        ("unet", ["os", "system"]),
        ("unet", ["pipeline", "UNet2DConditionModel"]),
        ("unet", "UNet2DConditionModel"),
        ("unet", [["diffusers"], {"a": 1}]),
        ("vae", [None, None]),
        ("scheduler", ["my_module", "DDIMScheduler"]),
    ],
)
def test_a_foreign_class_is_refused(folder: Path, canary: Path, key: str, value: object) -> None:
    for name in ("pipeline.py", "unet/pipeline.py", "my_module.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    edit(folder / "model_index.json", lambda index: index.update({key: value}))
    refused(folder, because="supported")
    assert not canary.exists()


def test_code_in_a_folder_is_not_run(folder: Path, canary: Path) -> None:
    for name in ("pipeline.py", "unet/unet.py", "text_encoder/modeling.py", "tokenizer/code.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    automatic = {"auto_map": {"AutoModel": "modeling.CLIPTextModel", "AutoTokenizer": "code.T"}}
    edit(folder / "text_encoder/config.json", lambda config: config.update(automatic))
    edit(folder / "tokenizer/tokenizer_config.json", lambda config: config.update(automatic))
    edit(folder / "model_index.json", lambda index: index.update(custom_pipeline="pipeline"))
    assert load_model(source_of(folder)).info.id == "tiny"
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.SAFETENSORS"]
)
def test_a_pickle_instead_of_weights_is_refused(folder: Path, canary: Path, name: str) -> None:
    (folder / UNET).unlink()
    torch.save({"a": Bomb(canary)}, folder / "unet" / name)
    refused(folder, because="no .safetensors weights")
    assert not canary.exists()


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_pickle_named_as_safetensors_is_refused(
    folder: Path, canary: Path, component: str
) -> None:
    [weights] = (folder / component).glob("*.safetensors")
    torch.save({"a": Bomb(canary)}, weights)
    refused(folder, because="is a pickle, which can run code")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_pickled_checkpoint_is_refused_with_the_reason(
    tmp_path: Path, canary: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": Bomb(canary)}))
    refused(path, because=f"{name} is a pickle, which can run code")
    assert not canary.exists()


def test_a_checkpoint_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"GIF89a" * 100)
    refused(path, because="not a safetensors file")


@pytest.mark.parametrize("stem", ["unet/diffusion_pytorch_model", "text_encoder/model"])
@pytest.mark.parametrize("shard", ["evil.bin", "../evil.bin", "../../outside.safetensors", None])
def test_an_index_cannot_lead_to_other_files(
    folder: Path, canary: Path, stem: str, shard: str | None
) -> None:
    weights = folder / f"{stem}.safetensors"
    part = weights.with_name("part.safetensors")
    weights.rename(part)
    if shard is not None:
        torch.save({"a": Bomb(canary)}, part.parent / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "part.safetensors", "b": shard}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    refused(folder, because="no weights file there")
    assert not canary.exists()


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("key", ["transformers_weights", "quantization_config"])
def test_a_configuration_cannot_lead_to_other_weights(
    folder: Path, component: str, key: str
) -> None:
    edit(folder / component / "config.json", lambda config: config.update({key: "evil.bin"}))
    refused(folder, because=key)


def test_an_adapter_configuration_is_not_followed(folder: Path, canary: Path) -> None:
    (folder / "text_encoder/adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/evil", "peft_type": "LORA"})
    )
    torch.save({"a": Bomb(canary)}, folder / "text_encoder/adapter_model.bin")
    refused(folder, because="adapter")
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 4, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]",
     struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 40_000) + b"[" * 40_000],
    ids=["empty", "short", "length 2^60", "a list", "no JSON", "deep"],
)  # fmt: skip
def test_a_malformed_header_is_refused(folder: Path, content: bytes) -> None:
    (folder / UNET).write_bytes(content)
    refused(folder, because="not a safetensors file")
    refused(folder / UNET, because="not a safetensors file")


def test_a_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[: len(content) // 2])
    refused(folder, because="does not load")


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "unet", "model_index.json"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    refused(folder, because="link that leads out")


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / UNET).rename(folder / "blob")
    (folder / UNET).symlink_to(folder / "blob")
    assert load_model(source_of(folder)).info.id == "tiny"


def test_a_truncated_file_is_named_when_the_size_is_read(folder: Path) -> None:
    weights = folder / UNET
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(LoadError, match=rf"{UNET} is cut off or damaged"):
        model_size(source_of(folder))
