"""The UNet and its text encoder as one module, with the noise schedule of their training.

v-prediction, on a schedule whose last timestep is nearly pure noise. With epsilon and Stable
Diffusion's own schedule the last timestep still contains the image's mean colour in training;
sampling starts without it, and flat colours come out wrong.
"""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextModel, CLIPTokenizer

from tools.embedded_model.training import checkpoint
from tools.embedded_model.training.text_encoder import WIDTH as TEXT_WIDTH
from tools.embedded_model.training.text_encoder import build_text_encoder

_FIRST_TEXT_SCALE = 0.2


class Denoiser(nn.Module):
    """The text encoder and the UNet, which share one optimizer and one EMA."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Returns the predicted v, shaped as `noisy`."""
        prompt_embeds = self.text_encoder(token_ids).last_hidden_state
        prediction: Tensor = self.unet(noisy, timesteps, prompt_embeds).sample
        return prediction


def build_scheduler() -> DDIMScheduler:
    """Builds the model's own scheduler, with the noise schedule of its training."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        # Unused with trailing spacing, but diffusers warns about any other value.
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build(text_encoder: CLIPTextModel) -> Denoiser:
    """Combines the text encoder with an untrained UNet."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        # Attention at the two lower levels: with the lowest alone, places and colours followed the
        # prompt, but every shape was a disc.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name
        use_linear_projection=True,
        # The tokens' mean is also added to the time embedding and so reaches every block. At
        # timestep 999, the loss with the right prompt against a wrong one was 0.97 : 1.08 after
        # 1000 steps of cross-attention alone, and 0.59 : 1.80 after 200 more with this.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        # Few groups: one channel a group would erase flat colour.
        norm_num_groups=8,
    )
    with torch.no_grad():
        unet.add_embedding.norm2.weight.mul_(_FIRST_TEXT_SCALE)
    return Denoiser(text_encoder, unet.to(memory_format=torch.channels_last))


def load_trained(path: Path, tokenizer: CLIPTokenizer) -> Denoiser:
    """Returns the averaged weights of the checkpoint, finished or not.

    Raises:
        FileNotFoundError: nothing was saved at `path` yet.
    """
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(path)
    average = AveragedModel(build(build_text_encoder(tokenizer)))
    average.load_state_dict(state["average"])
    denoiser: Denoiser = average.module.eval().requires_grad_(requires_grad=False)
    return denoiser
