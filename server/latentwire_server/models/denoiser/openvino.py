"""Compiles a UNet with OpenVINO, for CPUs: for any shape, and faster for single shapes.

Inputs and outputs are float32, whatever the program computes in. The sines and cosines of the
timesteps are computed outside: a program in bfloat16 computes them from rounded timesteps, which
made a small model's predictions 20 % wrong. Converting takes 6 s for a small UNet and 40 s for
Stable Diffusion 1.5's, so converted UNets are kept in a cache folder; compiling takes seconds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.denoiser.unet_call import Unet, UnetInput, eager
from latentwire_server.models.errors import BackendError

if TYPE_CHECKING:
    import openvino
    from diffusers import UNet2DConditionModel

_LOGGER = logging.getLogger(__name__)

_HINTS: Final = {torch.bfloat16: "bf16", torch.float32: "f32"}
_RECIPE: Final = 2
"""The version of the conversion: part of the names in the cache."""
_MODEL_FILE: Final = "unet.xml"
"""In a folder of the cache; the weights are beside it in ``unet.bin``."""
_WEIGHTS: Final = re.compile(rb'offset="(\d+)" size="(\d+)"')
"""Where in the weights' file a constant is, as the model's file says."""
_SMALL_UNET_BYTES: Final = 256 * 2**20
"""Up to this size each shape is worth a program of its own, with a copy of the weights. Measured
at 256x256 in float32 on two AVX2 cores: a UNet of 17 MB gains 40 % at 2 rows and 20 % at 32, Stable
Diffusion 1.5's 5 % and 2 %, for 3.3 GB a shape."""

_PROGRAM_BYTES: Final = 64 * 2**20
"""Per program, besides its copy of the weights. Measured: 28 MB for a UNet of 701 operations, 53 MB
for one of 1282, and 320 MB with its first call of two rows for Stable Diffusion 1.5's."""
_EXPECTED_SHAPES: Final = 8
"""The number of programs for a small UNet if 16 rows pay off, which is not measured yet."""


def expected_openvino_bytes(unet_bytes: int) -> int:
    """Returns the expected size of all programs of a UNet with weights of ``unet_bytes``."""
    num_programs = 1 + (_EXPECTED_SHAPES if unet_bytes <= _SMALL_UNET_BYTES else 0)
    return num_programs * (unet_bytes + _PROGRAM_BYTES)


def silence_openvino() -> None:
    """Disables OpenVINO's telemetry; must be called before OpenVINO is imported.

    Unless the user has opted out in a file, it reports each import and conversion from a child
    process, which is forked while gRPC's threads run. Without the package ``openvino_telemetry`` it
    uses a stub of its own, which does nothing.
    """
    # None makes `import` raise ImportError (Python's reference, 5.3.1).
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


class OpenVinoCompiler:
    """Converts the UNet once, then compiles it for shapes."""

    takes_minutes = False

    def __init__(self, unet: UNet2DConditionModel, *, cache: Path | None) -> None:
        """Creates a compiler.

        Args:
            unet: diffusers' UNet, on a CPU.
            cache: The folder where converted UNets are kept; None: they are not.

        Raises:
            BackendError: OpenVINO is not installed, or cannot run this UNet.
        """
        silence_openvino()
        try:
            import openvino  # noqa: PLC0415 - an optional extra
        except ImportError:
            message = (
                "denoiser_backend='openvino': OpenVINO is not installed; pip install"
                " 'latentwire[openvino]'"
            )
            raise BackendError(message) from None
        if unet.device.type != "cpu":
            message = f"denoiser_backend='openvino': needs device='cpu', not {str(unet.device)!r}"
            raise BackendError(message)
        if unet.config.time_cond_proj_dim is not None:
            message = "denoiser_backend='openvino': cannot run a UNet that takes the guidance scale"
            raise BackendError(message)
        self._openvino = openvino
        self._unet = unet
        self._cache = cache
        self._converted: openvino.Model | None = None
        weights_bytes = sum(one.nbytes for one in unet.parameters())
        self._is_small = weights_bytes <= _SMALL_UNET_BYTES
        # A program's weights have the UNet's own dtype. The converted ones, in float32, are mapped
        # from a file.
        self.program_bytes = weights_bytes + _PROGRAM_BYTES

    def for_any_shape(self, rows: UnetInput) -> Unet:
        """Compiles one program for all numbers of rows and all sizes."""
        latents, *others = self._inputs(rows)
        of_others = [[-1, *tensor.shape[1:]] for tensor in others]
        compiled = self._compiled(rows, [[-1, latents.shape[1], -1, -1], *of_others])
        uncompiled = eager(self._unet)
        # Sides that cannot be halved this often take another path through the UNet than the
        # converted one.
        factor = 2**self._unet.num_upsamplers

        def call(rows: UnetInput) -> torch.Tensor:
            is_even = all(side % factor == 0 for side in rows.latents.shape[-2:])
            return (compiled if is_even else uncompiled)(rows)

        return call

    def for_shape(self, rows: UnetInput) -> Unet | None:
        """Compiles for the shape of ``rows`` alone if the UNet is small."""
        return self.for_one_shape(rows) if self._is_small else None

    def for_one_shape(self, rows: UnetInput) -> Unet:
        """Compiles for the shape of ``rows`` alone, whatever the size of the UNet."""
        return self._compiled(rows, [list(tensor.shape) for tensor in self._inputs(rows)])

    def _inputs(self, rows: UnetInput) -> tuple[torch.Tensor, ...]:
        """Returns the program's inputs, in float32."""
        unet = self._unet
        inputs = [rows.latents, unet.time_proj(rows.timesteps), rows.prompt_embeds]
        if rows.text_embeds is not None and rows.time_ids is not None:
            sines = unet.add_time_proj(rows.time_ids.flatten().float())
            inputs += [rows.text_embeds, sines.reshape(len(rows.time_ids), -1)]
        return tuple(one.float() for one in inputs)

    def _compiled(self, rows: UnetInput, shapes: list[list[int]]) -> Unet:
        if self._converted is None:
            self._converted = self._read_or_convert(rows)
        converted = self._converted
        if not self._is_small:
            # It can be read again for the next program.
            self._converted = None
        converted.reshape(dict(enumerate(shapes)))
        compiled = self._openvino.Core().compile_model(
            converted,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _HINTS[rows.latents.dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )

        def call(rows: UnetInput) -> torch.Tensor:
            (result,) = compiled(tuple(one.numpy() for one in self._inputs(rows))).values()
            return torch.from_numpy(result).to(rows.latents.dtype)

        return call

    def _read_or_convert(self, rows: UnetInput) -> openvino.Model:
        if self._cache is None:
            return self._convert(rows)
        folder = self._cache / self._digest()
        # Up to version 0.1.0 the two files lay in the cache itself.
        read = self._read(folder / _MODEL_FILE) or self._read(folder.with_suffix(".xml"))
        if read is not None:
            return read
        converted = self._convert(rows)
        try:
            self._keep(converted, folder)
        except (OSError, RuntimeError):
            _LOGGER.warning("converted denoiser cannot be kept path=%s", folder, exc_info=True)
        # Read from the file, its weights are mapped pages, which the system may drop and share.
        return self._read(folder / _MODEL_FILE) or converted

    def _read(self, path: Path) -> openvino.Model | None:
        if not path.exists():
            return None
        try:
            # The weights are mapped: reading beyond the end of a file would kill the process.
            ends = [int(start) + int(size) for start, size in _WEIGHTS.findall(path.read_bytes())]
            if path.with_suffix(".bin").stat().st_size >= max(ends, default=0):
                return self._openvino.Core().read_model(path)
            _LOGGER.warning("converted denoiser cannot be read path=%s: it is cut off", path)
        except (OSError, RuntimeError):
            _LOGGER.warning("converted denoiser cannot be read path=%s", path, exc_info=True)
        return None

    def _convert(self, rows: UnetInput) -> openvino.Model:
        # A copy in float32, which still computes in bfloat16 where the processor has it: converted
        # from bfloat16, it gave NaN.
        unet = _Positional(copy.deepcopy(self._unet).float())
        # The tracer warns about every `if` over a shape.
        with warnings.catch_warnings(action="ignore"):
            return self._openvino.convert_model(unet, example_input=self._inputs(rows))

    def _keep(self, converted: openvino.Model, folder: Path) -> None:
        """Writes the model, and puts its two files in place together.

        What another process has put there meanwhile stays, unless it cannot be read.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            written, damaged = Path(scratch, "written"), Path(scratch, "damaged")
            written.mkdir()
            self._openvino.save_model(converted, written / _MODEL_FILE, compress_to_fp16=False)
            if self._read(folder / _MODEL_FILE) is None:
                if folder.exists():
                    folder.rename(damaged)
                written.rename(folder)

    def _digest(self) -> str:
        """Returns a digest of what the conversion depends on: weights, settings and versions."""
        versions = (_RECIPE, torch.__version__, self._openvino.__version__)
        settings = json.dumps([*versions, dict(self._unet.config)], sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode())
        for name, tensor in self._unet.state_dict().items():
            digest.update(name.encode())
            # As bytes: numpy has no bfloat16.
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]


class _Positional(torch.nn.Module):
    """A UNet with positional inputs, as OpenVINO's converter needs, and embedded timesteps."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        unet.get_time_embed = lambda sample, timestep: timestep.to(sample.dtype)
        unet.add_time_proj = torch.nn.Identity()

    def forward(
        self,
        latents: torch.Tensor,
        time_embeds: torch.Tensor,
        prompt_embeds: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        id_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows = UnetInput(latents, time_embeds, prompt_embeds, text_embeds, id_embeds)
        return eager(self.unet)(rows)
