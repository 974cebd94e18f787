"""Measures how well a model follows the held-out prompts, with the independent check."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.support.embedded.generation import (
    GUIDANCE_SCALE,
    MODEL,
    generate,
    held_out_pairs,
    load_pipeline,
    score,
    shuffled,
)
from tests.support.embedded.image_check import problems


def main() -> int:
    """Generates an image per pair; prints each failure and the scores."""
    options = _options()
    torch.set_num_threads(options.threads)
    pairs = held_out_pairs()[:: options.every]
    pipeline = load_pipeline(options.model, scheduler=options.scheduler)
    started = time.monotonic()
    generated = generate(pipeline, pairs, side=options.side, guidance_scale=options.guidance)
    pictures = list(generated)
    elapsed_s = time.monotonic() - started
    kinds: Counter[tuple[str, bool]] = Counter()
    for number, (pair, picture) in enumerate(zip(pairs, pictures, strict=True)):
        wrong = problems(picture, pair.expected)
        kinds["pair" if pair.expected.axis else "single", not wrong] += 1
        if wrong:
            _say(f"{pair.prompt} (seed {pair.seed}): {'; '.join(wrong)}")
        if options.save is not None:
            options.save.mkdir(parents=True, exist_ok=True)
            picture.save(options.save / f"{number:03d}.png")
    for kind in ("single", "pair"):
        _say(f"{kind}: {kinds[kind, True]} of {kinds[kind, True] + kinds[kind, False]}")
    expected = [pair.expected for pair in pairs]
    _say(
        f"{options.scheduler} guidance={options.guidance} side={options.side}: "
        f"{score(pictures, expected):.1%} of {len(pairs)}, "
        f"shuffled {score(pictures, shuffled(pairs)):.1%}, {elapsed_s / len(pairs):.2f} s per image"
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scheduler", choices=("own", "dpmpp-2m"), default="own")
    parser.add_argument("--guidance", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="only take every n-th pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="folder for the images")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
