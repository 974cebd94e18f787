"""Trains the embedded model from scratch and exports it: autoencoder, text encoder, UNet.

An interrupted run continues where it stopped. Designed for two CPU cores without a GPU.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

from tools.embedded_model import contact_sheet
from tools.embedded_model.export import export
from tools.embedded_model.training import autoencoder, denoiser_training, text_training
from tools.embedded_model.training.denoiser import load_trained
from tools.embedded_model.training.text_encoder import build_tokenizer


def main() -> int:
    """Runs the stages of training that are not finished, then exports the model."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.work / "denoiser.pt"
    tokenizer_folder = options.work / "tokenizer"
    tokenizer = build_tokenizer(tokenizer_folder)
    vae = autoencoder.train(options.work / "autoencoder.pt", seed=options.seed)
    if options.export_only:
        trained = load_trained(checkpoint, tokenizer)
    else:
        trained = denoiser_training.train(
            checkpoint,
            vae=vae,
            tokenizer=tokenizer,
            text_encoder=text_training.train(
                options.work / "text.pt", tokenizer, seed=options.seed
            ),
            num_steps=options.steps,
            seed=options.seed,
        )
    export(options.out, vae=vae, tokenizer_folder=tokenizer_folder, trained=trained)
    contact_sheet.write(options.out, options.sheet)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.embedded_model", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/embedded_model"))
    parser.add_argument("--out", type=Path, default=Path("server/latentwire_server/embedded/model"))
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/embedded_model.png"))
    parser.add_argument("--steps", type=int, default=denoiser_training.NUM_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--export-only", action="store_true", help="export the denoiser as far as it is trained"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
