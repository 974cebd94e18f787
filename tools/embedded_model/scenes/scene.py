"""The content of one image, chosen at random, and the rule that holds scenes out of training.

A scene is held out by a hash of its content, so that the split needs no list and never changes.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tools.embedded_model.scenes.vocabulary import (
    COLOURS,
    PAIR_OFFSET,
    PAIR_RADII,
    POSITIONS,
    SHAPES,
    SINGLE_RADII,
)

Axis: TypeAlias = Literal["horizontal", "vertical"]

PAIR_SHARE = 0.42
HELD_OUT_ONE_IN = 12
_SIZE_JITTER = 0.06
_POSITION_JITTER = 0.02
_EDGE_MARGIN = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One shape: its words; its centre and radius as shares of the sides and the shorter side."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One or two objects on a plain background.

    A lone object has a `position` and no `axis`; a pair has an `axis` and no `position`, and
    its first object is the left or the upper one.
    """

    objects: tuple[SceneObject, ...]
    background: str
    position: str | None = None
    axis: Axis | None = None

    @property
    def key(self) -> str:
        """The scene's content in words: equal for all prompts that ask for the same thing."""
        objects = ",".join(f"{item.colour} {item.shape}" for item in self.objects)
        return f"{objects}|{self.background}|{self.position or self.axis}"

    @property
    def is_held_out(self) -> bool:
        """Whether training must not see this scene."""
        return is_held_out(self.key)


def is_held_out(key: str) -> bool:
    """Returns whether a scene is held out: one key in twelve, by its SHA-256."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def random_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Returns a random scene from one side of the split."""
    while True:
        scene = _random_pair(rng) if rng.random() < PAIR_SHARE else _random_single(rng)
        if scene.is_held_out == held_out:
            return scene


def _random_single(rng: random.Random) -> Scene:
    background, colour = rng.sample(list(COLOURS), 2)
    size = rng.choices(list(SINGLE_RADII), weights=(3, 6, 3))[0]
    # A prompt without a position means the middle, so the middle needs more practice.
    position = "centre" if rng.random() < 0.4 else rng.choice(list(POSITIONS))
    x, y = POSITIONS[position]
    radius = SINGLE_RADII[size] * _jitter(rng, _SIZE_JITTER)
    item = SceneObject(
        shape=rng.choice(SHAPES),
        colour=colour,
        size=size,
        x=_inside(x + rng.uniform(-_POSITION_JITTER, _POSITION_JITTER), radius),
        y=_inside(y + rng.uniform(-_POSITION_JITTER, _POSITION_JITTER), radius),
        radius=radius,
    )
    return Scene(objects=(item,), background=background, position=position)


def _random_pair(rng: random.Random) -> Scene:
    background, *colours = rng.sample(list(COLOURS), 3)
    if rng.random() < 0.08:
        colours[1] = colours[0]
    shapes = rng.sample(SHAPES, 2) if rng.random() < 0.9 else [rng.choice(SHAPES)] * 2
    axis: Axis = "horizontal" if rng.random() < 0.55 else "vertical"
    has_sizes = rng.random() < 0.2
    objects = []
    for index in range(2):
        size = rng.choice(list(PAIR_RADII)) if has_sizes else "medium"
        along = (PAIR_OFFSET, 1 - PAIR_OFFSET)[index]
        along += rng.uniform(-_POSITION_JITTER, _POSITION_JITTER)
        across = 0.5 + rng.uniform(-_POSITION_JITTER, _POSITION_JITTER)
        x, y = (along, across) if axis == "horizontal" else (across, along)
        objects.append(
            SceneObject(
                shape=shapes[index],
                colour=colours[index],
                size=size,
                x=x,
                y=y,
                radius=PAIR_RADII[size] * _jitter(rng, _SIZE_JITTER),
            )
        )
    return Scene(objects=tuple(objects), background=background, axis=axis)


def _jitter(rng: random.Random, amount: float) -> float:
    return 1 + rng.uniform(-amount, amount)


def _inside(centre: float, radius: float) -> float:
    return min(max(centre, radius + _EDGE_MARGIN), 1 - radius - _EDGE_MARGIN)
