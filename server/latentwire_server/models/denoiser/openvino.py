"""A UNet in OpenVINO, for CPUs: a program that takes any shape, and faster ones for single shapes.

float32 goes in and comes out, whatever it computes in. The timesteps' sines and cosines are made
outside of it: a program in bfloat16 computes them from rounded timesteps, which made a small
model's predictions 20 % wrong. Converting takes 6 s for a small UNet and 40 s for Stable Diffusion
1.5's, so the result is kept in the user's cache folder; compiling takes seconds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
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
"""Of the conversion: another number, other files in the cache."""
_SMALL_UNET_BYTES: Final = 256 * 2**20
"""Up to here each shape is worth a program of its own, with its own copy of the weights. Measured
at 256x256 in float32 on two AVX2 cores: a UNet of 17 MB gains 40 % at 2 rows and 20 % at 32, Stable
Diffusion 1.5's 5 % and 2 %, for 3.3 GB a shape."""

_PROGRAM_BYTES: Final = 64 * 2**20
"""Of a program besides its copy of the weights. Measured: 28 MB for a UNet of 701 operations, 53 MB
for one of 1282, and 320 MB with its first call of two rows for Stable Diffusion 1.5's."""
_EXPECTED_SHAPES: Final = 8
"""As many as are compiled for a small UNet where 16 rows pay, which is not measured yet."""


def expected_openvino_bytes(unet_bytes: int) -> int:
    """Returns what the programs of a UNet are expected to take, from what its weights do."""
    num_programs = 1 + (_EXPECTED_SHAPES if unet_bytes <= _SMALL_UNET_BYTES else 0)
    return num_programs * (unet_bytes + _PROGRAM_BYTES)


def silence_openvino() -> None:
    """Keeps OpenVINO, which is imported next, from reporting its use.

    It tells its makers of each import and conversion, unless the user has said otherwise in a file,
    from a child that is forked while gRPC's threads run. Where the package that reports is missing,
    it takes a stand-in of its own, which does nothing.
    """
    # What `import` raises ImportError for (Python's reference, 5.3.1).
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


class OpenVinoCompiler:
    """Converts once, then compiles."""

    takes_minutes = False

    def __init__(self, unet: UNet2DConditionModel, *, cache: Path) -> None:
        """Takes the UNet and the folder where converted ones are kept.

        Raises:
            BackendError: OpenVINO is not installed, or the UNet is not on a CPU.
        """
        silence_openvino()
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
        if unet.config.time_cond_proj_dim is not None:
            message = "denoiser_backend='openvino': not for a UNet that is told the guidance scale"
            raise BackendError(message)
        self._openvino = openvino
        self._unet = unet
        self._cache = cache
        self._converted: openvino.Model | None = None
        weights_bytes = sum(one.nbytes for one in unet.parameters())
        self._is_small = weights_bytes <= _SMALL_UNET_BYTES
        # Its weights are in the format that it computes in, the UNet's own. The converted ones, in
        # float32, are pages of a file.
        self.program_bytes = weights_bytes + _PROGRAM_BYTES

    def for_any_shape(self, rows: UnetInput) -> Unet:
        """Returns one program for all rows and sizes."""
        latents, *others = self._inputs(rows)
        of_others = [[-1, *tensor.shape[1:]] for tensor in others]
        compiled = self._compiled(rows, [[-1, latents.shape[1], -1, -1], *of_others])
        as_it_is = eager(self._unet)
        # Sides that cannot be halved so often take another way through the UNet than the one that
        # was converted.
        factor = 2**self._unet.num_upsamplers

        def call(rows: UnetInput) -> torch.Tensor:
            is_even = all(side % factor == 0 for side in rows.latents.shape[-2:])
            return (compiled if is_even else as_it_is)(rows)

        return call

    def for_shape(self, rows: UnetInput) -> Unet | None:
        """Returns a program of its own for a small UNet."""
        return self.for_one_shape(rows) if self._is_small else None

    def for_one_shape(self, rows: UnetInput) -> Unet:
        """Returns a program for the shape of ``rows`` alone, whatever the size of the UNet."""
        return self._compiled(rows, [list(tensor.shape) for tensor in self._inputs(rows)])

    def _inputs(self, rows: UnetInput) -> tuple[torch.Tensor, ...]:
        """Returns what the program is called with, in float32."""
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
            # The next one can be read again.
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
        path = self._cache / f"{self._digest()}.xml"
        read = self._read(path)
        if read is not None:
            return read
        converted = self._convert(rows)
        try:
            self._keep(converted, path)
        except (OSError, RuntimeError):
            _LOGGER.warning("converted denoiser is not kept path=%s", path, exc_info=True)
        # Read again, its weights are pages of the file, which the system may drop and share.
        return self._read(path) or converted

    def _read(self, path: Path) -> openvino.Model | None:
        if not path.exists():
            return None
        try:
            return self._openvino.Core().read_model(path)
        except RuntimeError:
            _LOGGER.warning("converted denoiser cannot be read path=%s", path, exc_info=True)
            return None

    def _convert(self, rows: UnetInput) -> openvino.Model:
        # A copy in float32, which computes in the shorter format where the processor has it:
        # converted from bfloat16, it gave NaN.
        unet = _Positional(copy.deepcopy(self._unet).float())
        # The tracer warns of every `if` over a shape.
        with warnings.catch_warnings(action="ignore"):
            return self._openvino.convert_model(unet, example_input=self._inputs(rows))

    def _keep(self, converted: openvino.Model, path: Path) -> None:
        """Writes the model; the file that is looked for comes last."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, path.name)
            self._openvino.save_model(converted, written, compress_to_fp16=False)
            for file in (written.with_suffix(".bin"), written):
                file.replace(path.with_name(file.name))

    def _digest(self) -> str:
        """Returns a name for what conversion depends on: the weights, and who converts."""
        versions = (_RECIPE, torch.__version__, self._openvino.__version__)
        known = json.dumps([*versions, dict(self._unet.config)], sort_keys=True, default=str)
        digest = hashlib.sha256(known.encode())
        for name, tensor in self._unet.state_dict().items():
            digest.update(name.encode())
            # As bytes: numpy has no bfloat16.
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]


class _Positional(torch.nn.Module):
    """A UNet called with positions alone, as OpenVINO's converter wants it, and sines for times."""

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
