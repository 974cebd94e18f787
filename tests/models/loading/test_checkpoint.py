"""Single-file checkpoints, under the tensor names with which Stable Diffusion was published."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire_server.models.errors import LoadError
from latentwire_server.models.protocol import DenoiserInput
from tests.support.engine.driving import pixels_of_file
from tests.support.models.folders import load_model, model_size, read_spec, source_of
from tests.support.models.oracle import Case, EngineImages, largest_difference
from tests.support.models.tiny_models import build_folder
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latentwire_server.models.families.stable_diffusion import StableDiffusion

# Of the tiny model: two levels of one layer in the UNet, four in the autoencoder.
UNET_NAMES = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^down_blocks\.(\d)\.resnets\.0\.", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.0."),
    (r"^down_blocks\.(\d)\.attentions\.0\.", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.1."),
    (r"^down_blocks\.0\.downsamplers\.0\.conv\.", "input_blocks.2.0.op."),
    (
        r"^up_blocks\.(\d)\.resnets\.(\d)\.",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0.",
    ),
    (
        r"^up_blocks\.(\d)\.attentions\.(\d)\.",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1.",
    ),
    (r"^up_blocks\.0\.upsamplers\.0\.", "output_blocks.1.1."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.(\d)\.", lambda m: f"middle_block.{2 * int(m[1])}."),
    (r"\.norm1\.(weight|bias)$", r".in_layers.0.\1"),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.(weight|bias)$", r".out_layers.0.\1"),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
VAE_NAMES = [
    (r"\.down_blocks\.(\d)\.resnets\.(\d)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".up.{3 - int(m[1])}.block.{m[2]}."),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".up.{3 - int(m[1])}.upsample."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
]
# Of the tiny XL model: its first up block has attention and an upsampler, its UNet more inputs.
XL_UNET_NAMES = [
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^up_blocks\.0\.upsamplers\.0\.", "output_blocks.1.2."),
    *UNET_NAMES,
]
OPEN_CLIP_NAMES = [
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
]
Names = list[tuple[str, "str | Callable[[re.Match[str]], str]"]]


def renamed(key: str, names: Names) -> str:
    for pattern, replacement in names:
        # Norms of transformer blocks keep their names, though residual blocks use the same ones.
        if "transformer_blocks" in key and "norm" in pattern:
            continue
        key = re.sub(pattern, replacement, key)
    return key


def vae_tensor(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    is_attention = ".attentions." in key and tensor.dim() == 2
    shaped = tensor[:, :, None, None].contiguous() if is_attention else tensor
    return {f"first_stage_model.{renamed(key, VAE_NAMES)}": shaped}


def write_checkpoint(folder: Path, path: Path) -> Path:
    """Writes the weights of a diffusers folder as one file with the original names."""
    tensors = {}
    for key, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        tensors[f"model.diffusion_model.{renamed(key, UNET_NAMES)}"] = tensor
    for key, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        tensors |= vae_tensor(key, tensor)
    for key, tensor in load_file(folder / "text_encoder/model.safetensors").items():
        name = key.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    save_file(tensors, path)
    return path


def write_xl_checkpoint(folder: Path, path: Path) -> Path:
    """Writes a Stable Diffusion XL folder's weights as one file with the original names."""
    kept = {}
    for key, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        kept |= vae_tensor(key, tensor)
    for key, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        kept[f"model.diffusion_model.{renamed(key, XL_UNET_NAMES)}"] = tensor
    first = folder / "text_encoder/model.safetensors"
    for key, tensor in load_file(first).items() if first.exists() else ():
        name = key.removeprefix("text_model.")
        kept[f"conditioner.embedders.0.transformer.text_model.{name}"] = tensor
    second = {
        key.removeprefix("text_model."): tensor
        for key, tensor in load_file(folder / "text_encoder_2/model.safetensors").items()
    }
    # A refiner has no first text encoder.
    prefix = f"conditioner.embedders.{int(first.exists())}.model."
    kept[f"{prefix}text_projection"] = second.pop("text_projection.weight").T.contiguous()
    for key, tensor in second.items():
        query = re.fullmatch(r"(.*\.self_attn\.)q_proj\.(weight|bias)", key)
        if query is not None:
            parts = [second[f"{query[1]}{part}_proj.{query[2]}"] for part in "qkv"]
            name = renamed(f"{query[1]}in_proj_{query[2]}", OPEN_CLIP_NAMES)
            kept[prefix + name] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", key):
            kept[prefix + renamed(key, OPEN_CLIP_NAMES)] = tensor
    save_file(kept, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return write_checkpoint(folder, folder.parent / "checkpoint.safetensors")


def load(path: Path, *, config: Path | None = None) -> StableDiffusion:
    return load_model(source_of(path, single_file_config=None if config is None else str(config)))


def test_a_checkpoint_gives_the_same_model_as_its_folder(folder: Path, checkpoint: Path) -> None:
    one, other = load(checkpoint, config=folder), load(folder)
    assert one.info.defaults == other.info.defaults
    assert one.info.revision.startswith("sha256:")
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    predictions = []
    for model in (one, other):
        conditioning = model.encode_prompt("a red circle", clip_skip=0)
        predictions.append(
            model.denoise(
                DenoiserInput(
                    latents=latents, timesteps=torch.tensor([500.0]), conditioning=[conditioning]
                )
            )
        )
    assert torch.allclose(*predictions, atol=1e-5)
    assert torch.allclose(one.decode(latents), other.decode(latents), atol=1e-5)


def test_a_checkpoints_spec_matches_the_loaded_model(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    configuration = shutil.copytree(
        folder, tmp_path / "configuration", ignore=shutil.ignore_patterns("*.safetensors")
    )
    source = source_of(checkpoint, single_file_config=str(configuration))
    spec = read_spec(source)
    assert spec is not None
    assert spec.info == load_model(source).info


def test_a_stable_diffusion_xl_checkpoint_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    folder = build_xl_folder(tmp_path / "xl")
    checkpoint = write_xl_checkpoint(folder, tmp_path / "xl.safetensors")
    models = [load(checkpoint, config=folder), load(folder)]
    assert [one.info.family for one in models] == ["stable-diffusion-xl"] * 2
    assert models[0].info.defaults == models[1].info.defaults
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    predictions = []
    for model in models:
        text = model.encode_prompt("a red circle", clip_skip=0)
        rows = DenoiserInput(
            latents=latents,
            timesteps=torch.tensor([500.0, 20.0]),
            conditioning=[text, model.encode_negative_prompt("")],
        )
        predictions.append(model.denoise(rows))
    assert torch.allclose(*predictions, atol=1e-5)


def test_a_single_file_refiner_generates_the_same_images_as_its_folder(tmp_path: Path) -> None:
    base = build_xl_folder(tmp_path / "base")
    folder = build_xl_folder(tmp_path / "refiner", is_refiner=True, seed=5)
    checkpoint = write_xl_checkpoint(folder, tmp_path / "refiner.safetensors")
    assert not any("embedders.1." in key for key in load_file(checkpoint))
    config = {"refiner_single_file_config": str(folder)}
    sources = [
        source_of(base, refiner=str(checkpoint), **config),
        source_of(base, refiner=str(folder)),
        source_of(
            write_xl_checkpoint(base, tmp_path / "base.safetensors"),
            single_file_config=str(base),
            refiner=str(checkpoint),
            **config,
        ),
    ]
    case = Case(name="one", high_noise_frac=0.5, negative_prompt="a blue square")
    generated = [EngineImages(model=load_model(source)).alone(case) for source in sources]
    expected = [pixels_of_file(data) for data in generated[1]["one"]]
    for files in (generated[0], generated[2]):
        assert largest_difference(files["one"], expected) <= 2
    sizes = [model_size(source).weights_bytes for source in sources]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.001)
    assert sizes[2] == pytest.approx(sizes[1], rel=0.001)


def test_without_the_hub_the_missing_setting_is_named(checkpoint: Path) -> None:
    with pytest.raises(LoadError, match="single_file_config"):
        load(checkpoint)


@pytest.mark.parametrize("prefix", ["first_stage_model.", "cond_stage_model.", "model.diffusion"])
def test_a_checkpoint_without_one_of_its_parts_is_refused(
    folder: Path, checkpoint: Path, tmp_path: Path, prefix: str
) -> None:
    tensors = {k: v for k, v in load_file(checkpoint).items() if not k.startswith(prefix)}
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(LoadError):
        load(tmp_path / "part.safetensors", config=folder)


@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.decoder.", "cond"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    folder: Path, checkpoint: Path, tmp_path: Path, part: str
) -> None:
    tensors = load_file(checkpoint)
    tensors.pop(max(key for key in tensors if key.startswith(part) and key.endswith(".weight")))
    save_file(tensors, tmp_path / "lacking.safetensors")
    with pytest.raises(LoadError):
        load(tmp_path / "lacking.safetensors", config=folder)
