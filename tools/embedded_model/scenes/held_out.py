"""Writes the 200 prompt/seed pairs for the model's evaluation; none of them was in training.

The file is committed, so that the check reads plain data and shares no code with training.
``python -m tools.embedded_model.scenes.held_out`` writes it.
"""

import json
import random
from pathlib import Path
from typing import Final, TypedDict

from tools.embedded_model.scenes.prompts import plain_prompt
from tools.embedded_model.scenes.scene import Scene, random_scene

NUM_PAIRS: Final = 200
PATH: Final = Path("tests/support/embedded/held_out.json")


class ObjectRecord(TypedDict):
    """One expected object; `size` is null if the prompt names none."""

    shape: str
    colour: str
    size: str | None


class Record(TypedDict):
    """A prompt, its seed, and the expected content of the image."""

    prompt: str
    seed: int
    objects: list[ObjectRecord]
    background: str
    place: str | None
    axis: str | None


def records() -> list[Record]:
    """Returns the pairs, always the same ones."""
    rng = random.Random("held out pairs")
    chosen: list[Record] = []
    while len(chosen) < NUM_PAIRS:
        scene = random_scene(rng, held_out=True)
        colours = {item.colour for item in scene.objects}
        # The check separates regions by colour, so it can't judge two objects of one colour.
        if len(colours) == len(scene.objects):
            chosen.append(_record(scene, seed=1000 + len(chosen), reverse=rng.random() < 0.5))
    return chosen


def _record(scene: Scene, *, seed: int, reverse: bool) -> Record:
    return Record(
        prompt=plain_prompt(scene, reverse=reverse),
        seed=seed,
        objects=[
            ObjectRecord(
                shape=item.shape,
                colour=item.colour,
                size=None if item.size == "medium" else item.size,
            )
            for item in scene.objects
        ],
        background=scene.background,
        place=scene.position,
        axis=scene.axis,
    )


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(record) for record in records())
    PATH.write_text(f"[\n{lines}\n]\n")
