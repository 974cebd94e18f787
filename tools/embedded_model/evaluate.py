"""Measures with the independent check how well a model follows the held-out prompts."""

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
    """Generates an image for each pair; prints the failures and the scores."""
    options = _options()
    torch.set_num_threads(options.threads)
    pairs = held_out_pairs()[:: options.every]
    pipeline = load_pipeline(options.model, scheduler=options.scheduler)
    started = time.monotonic()
    images = list(generate(pipeline, pairs, side=options.side, guidance_scale=options.guidance))
    elapsed_s = time.monotonic() - started
    kinds: Counter[tuple[str, bool]] = Counter()
    for number, (pair, image) in enumerate(zip(pairs, images, strict=True)):
        found = problems(image, pair.expected)
        kinds["pair" if pair.expected.axis else "single", not found] += 1
        if found:
            print(f"{pair.prompt} (seed {pair.seed}): {'; '.join(found)}")
        if options.save is not None:
            options.save.mkdir(parents=True, exist_ok=True)
            image.save(options.save / f"{number:03d}.png")
    for kind in ("single", "pair"):
        print(f"{kind}: {kinds[kind, True]} of {kinds[kind, True] + kinds[kind, False]}")
    expected = [pair.expected for pair in pairs]
    print(
        f"{options.scheduler} guidance={options.guidance} side={options.side}: "
        f"{score(images, expected):.1%} of {len(pairs)}, "
        f"shuffled {score(images, shuffled(pairs)):.1%}, {elapsed_s / len(pairs):.2f} s per image"
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.embedded_model.evaluate", description=__doc__
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scheduler", choices=("own", "dpmpp-2m"), default="own")
    parser.add_argument("--guidance", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="take only every n-th pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="folder for the images")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
