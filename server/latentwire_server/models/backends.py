"""How a UNet is called: as it is, or compiled for a few shapes before anything is served.

Compiling takes seconds to minutes a shape and slows down whatever runs beside it, so it happens in
``prepare`` alone: a shape that was not prepared runs as it is. A compiled shape is used only if it
agrees with the UNet as it is. Device thread, or the loading thread before there is one.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import UNet2DConditionModel

_LOGGER = logging.getLogger(__name__)

_TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far a compiled UNet may be off, as a part of the largest value."""

UNKNOWN_SHAPE = "eager_on_recompile"
"""What torch does where it finds nothing compiled: it never compiles beside a running step."""

_MOST_SHAPES: Final = 64
_OPENVINO_HINTS: Final = {torch.bfloat16: "bf16", torch.float32: "f32"}


class BackendError(Exception):
    """A backend cannot be had here; the text says which and why."""


class DenoiserBackend(StrEnum):
    """Ways to run the denoiser."""

    AUTO = "auto"
    """The best one that needs no compiling: it is always there at once."""
    EAGER = "eager"
    INDUCTOR = "inductor"
    OPENVINO = "openvino"


class UnetInput(NamedTuple):
    """What a UNet is called with; all of one device, the tensors of one dtype."""

    latents: torch.Tensor
    """(rows, channels, height, width)."""
    timesteps: torch.Tensor
    """(rows,) float32."""
    prompt_embeds: torch.Tensor
    """(rows, tokens, features)."""


class Unet(Protocol):
    """A UNet, however it is run."""

    def __call__(self, rows: UnetInput) -> torch.Tensor:
        """Returns (rows, channels, height, width)."""


class PreparedUnet:
    """A UNet that is compiled for the shapes that were prepared."""

    def __init__(
        self, unet: UNet2DConditionModel, *, backend: DenoiserBackend = DenoiserBackend.EAGER
    ) -> None:
        """Takes the UNet, on its device.

        Raises:
            BackendError: the backend cannot be had here.
        """
        self.backend = DenoiserBackend.EAGER if backend is DenoiserBackend.AUTO else backend
        self._eager = _eager(unet)
        self._compile = _compiler(unet, backend)
        self._compiled: dict[torch.Size, Unet] = {}

    @property
    def shapes(self) -> tuple[str, ...]:
        """The latent shapes that are compiled, such as ``"8x4x64x64"``."""
        return tuple("x".join(map(str, shape)) for shape in list(self._compiled))

    def prepare(self, rows: UnetInput) -> None:
        """Compiles for the shape of ``rows``, whose values must be like those of real calls."""
        if self._compile is None or rows.latents.shape in self._compiled:
            return
        started = time.monotonic()
        expected = self._eager(rows)
        compiled = self._compile(rows)
        difference = (compiled(rows) - expected).abs().max() / expected.abs().max()
        shape = "x".join(map(str, rows.latents.shape))
        # Not `>`: NaN must not pass.
        if not bool(difference <= _TOLERANCES[rows.latents.dtype]):
            _LOGGER.warning("compiled denoiser is off by %.2g, unused shape=%s", difference, shape)
            return
        self._compiled[rows.latents.shape] = compiled
        _LOGGER.info("compiled denoiser shape=%s in_s=%.1f", shape, time.monotonic() - started)

    def __call__(self, rows: UnetInput) -> torch.Tensor:
        """Returns (rows, channels, height, width)."""
        return self._compiled.get(rows.latents.shape, self._eager)(rows)


def user_cache() -> Path:
    """Returns the user's folder for what can be made again (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentwire"


def _eager(unet: Callable[..., tuple[torch.Tensor, ...]]) -> Unet:
    def call(rows: UnetInput) -> torch.Tensor:
        return unet(
            rows.latents,
            rows.timesteps,
            encoder_hidden_states=rows.prompt_embeds,
            return_dict=False,
        )[0]

    return call


def _compiler(
    unet: UNet2DConditionModel, backend: DenoiserBackend
) -> Callable[[UnetInput], Unet] | None:
    match backend:
        case DenoiserBackend.AUTO | DenoiserBackend.EAGER:
            return None
        case DenoiserBackend.INDUCTOR:
            return _inductor(unet)
        case DenoiserBackend.OPENVINO:
            return _OpenVino(unet)


def _inductor(unet: UNet2DConditionModel) -> Callable[[UnetInput], Unet]:
    # Here, since it takes its time to import.
    from torch._dynamo import config as dynamo_config  # noqa: PLC0415

    # torch's own choice is a temporary folder, which a restart may find empty.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
    # Freezing folds constants and packs weights for the CPU's kernels; GPUs gain nothing by it.
    options = {"freezing": unet.device.type == "cpu"}
    compiled = _eager(torch.compile(unet, dynamic=False, options=options))

    def call(rows: UnetInput) -> torch.Tensor:
        with torch.compiler.set_stance(UNKNOWN_SHAPE):
            return compiled(rows)

    def compile_for(rows: UnetInput) -> Unet:
        with dynamo_config.patch(recompile_limit=_MOST_SHAPES):
            compiled(rows)
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(rows)
        return call

    return compile_for


class _OpenVino:
    """Converts once, and compiles for each shape. float32 goes in and comes out."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        try:
            import openvino  # noqa: PLC0415 - an optional extra
        except ImportError:
            message = (
                "denoiser_backend='openvino': it is not installed; pip install"
                " 'latentwire[openvino]'"
            )
            raise BackendError(message) from None
        if unet.device.type != "cpu":
            message = f"denoiser_backend='openvino': needs device='cpu', not {str(unet.device)!r}"
            raise BackendError(message)
        self._openvino = openvino
        self._unet = unet
        self._converted: Any = None

    def __call__(self, rows: UnetInput) -> Unet:
        if self._converted is None:
            # A copy in float32, which computes in the shorter format where the processor has it:
            # converted from bfloat16, it gave NaN.
            unet = _Positional(copy.deepcopy(self._unet).float())
            example = tuple(tensor.float() for tensor in rows)
            # The tracer warns of every `if` over a shape, and shapes are fixed here.
            with warnings.catch_warnings(action="ignore"):
                self._converted = self._openvino.convert_model(unet, example_input=example)
        self._converted.reshape({port: list(tensor.shape) for port, tensor in enumerate(rows)})
        compiled = self._openvino.Core().compile_model(
            self._converted,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS[rows.latents.dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )

        def call(rows: UnetInput) -> torch.Tensor:
            (result,) = compiled(tuple(tensor.float().numpy() for tensor in rows)).values()
            return torch.from_numpy(result).to(rows.latents.dtype)

        return call


class _Positional(torch.nn.Module):
    """A UNet called with positions alone, as OpenVINO's converter wants it."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        return _eager(self.unet)(UnetInput(latents, timesteps, prompt_embeds))
