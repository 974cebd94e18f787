"""`python -m benchmarks.profile`: profiles the operations of a denoiser call with torch."""

from __future__ import annotations

import argparse
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.systems.architectures import model_folder
from latentwire_server.models.loading.model_files import ModelFiles
from latentwire_server.models.model_options import ModelEntry
from latentwire_server.models.protocol import DenoiserInput
from latentwire_server.settings.files import user_cache

_NUM_CALLS = 5


@torch.inference_mode()
def main() -> int:
    """Prints the slowest operations, over a few calls after the first."""
    options = _options()
    entry = ModelEntry(
        id=options.model, source=str(model_folder(options.model)), denoiser_backend=options.backend
    )
    model = ModelFiles.open(entry).load(denoiser_cache=user_cache() / "openvino")
    shape = model.latent_shape(width=options.side, height=options.side)
    rows = DenoiserInput(
        latents=torch.randn((options.rows, *shape), generator=torch.Generator().manual_seed(0)),
        timesteps=torch.full((options.rows,), 500.0),
        conditioning=[model.encode_prompt("a red circle", clip_skip=0)] * options.rows,
    )
    model.prepare(options.rows)
    model.denoise(rows)
    activities = [ProfilerActivity.CPU]
    if model.device_name.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(_NUM_CALLS):
            model.denoise(rows).cpu()
    order = "self_device_time_total" if len(activities) > 1 else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=options.limit)
    sys.stdout.write(f"{table}\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--model", choices=("embedded", "sd15"), default="embedded")
    parser.add_argument("--side", type=int, default=256, help="of the image, in pixels")
    parser.add_argument("--rows", type=int, default=8, help="of a call")
    parser.add_argument("--backend", default="eager", help="eager or inductor")
    parser.add_argument("--limit", type=int, default=15, help="rows of the table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
