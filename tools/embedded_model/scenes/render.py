"""Renders a scene as an antialiased image.

Each shape is a few outlines on a unit disc, filled or cut out in order. They are rendered into a
mask at four times the size, which is then averaged down.
"""

import math
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tools.embedded_model.scenes.scene import Scene, SceneObject
from tools.embedded_model.scenes.vocabulary import COLOURS

Outline: TypeAlias = tuple[tuple[float, float], ...]

_SUPERSAMPLING = 4
_FILL, _CUT = 255, 0


def render(scene: Scene, *, width: int, height: int) -> Image.Image:
    """Renders the scene; shapes scale with the shorter side, positions with each side."""
    image = Image.new("RGB", (width, height), COLOURS[scene.background])
    for item in scene.objects:
        _paste(image, item)
    return image


def as_array(image: Image.Image) -> npt.NDArray[np.float32]:
    """Returns the autoencoder's input: (3, height, width) float32 in [-1, 1]."""
    pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _paste(image: Image.Image, item: SceneObject) -> None:
    width, height = image.size
    radius = item.radius * min(width, height)
    centre_x, centre_y = item.x * width, item.y * height
    left, top = math.floor(centre_x - radius) - 1, math.floor(centre_y - radius) - 1
    side = math.ceil(2 * radius) + 3
    mask = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for outline, ink in _OUTLINES[item.shape]:
        points = [
            (
                (centre_x - left + x * radius) * _SUPERSAMPLING,
                (centre_y - top + y * radius) * _SUPERSAMPLING,
            )
            for x, y in outline
        ]
        draw.polygon(points, fill=ink)
    image.paste(COLOURS[item.colour], (left, top), mask.reduce(_SUPERSAMPLING))


def _polar(degrees: float, radius: float = 1) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _circle(radius: float, *, centre_x: float = 0) -> Outline:
    points = (_polar(360 * k / 96, radius) for k in range(96))
    return tuple((centre_x + x, y) for x, y in points)


def _box(half_width: float, half_height: float) -> Outline:
    return (
        (-half_width, -half_height),
        (half_width, -half_height),
        (half_width, half_height),
        (-half_width, half_height),
    )


def _heart() -> Outline:
    """The usual sixteen-sine-cubed curve, shifted and scaled into the unit disc."""
    points = []
    for k in range(96):
        t = 2 * math.pi * k / 96
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 17))
    return tuple(points)


# Filled or cut out, in this order.
_OUTLINES: Final[dict[str, tuple[tuple[Outline, int], ...]]] = {
    "circle": ((_circle(1), _FILL),),
    "square": ((_box(0.82, 0.82), _FILL),),
    # Lowered so that its bounding box, not its centroid, lies in the middle.
    "triangle": ((tuple((x, y + 0.2) for x, y in map(_polar, (-90, 30, 150))), _FILL),),
    # Pointed and slightly large, because the autoencoder rounds the tips off.
    "star": ((tuple(_polar(36 * k - 90, 0.38 if k % 2 else 1.06) for k in range(10)), _FILL),),
    "heart": ((_heart(), _FILL),),
    "ring": ((_circle(1), _FILL), (_circle(0.52), _CUT)),
    "cross": ((_box(0.95, 0.3), _FILL), (_box(0.3, 0.95), _FILL)),
    "diamond": ((((0, -1), (0.8, 0), (0, 1), (-0.8, 0)), _FILL),),
    "crescent": ((_circle(1, centre_x=0.2), _FILL), (_circle(0.85, centre_x=0.7), _CUT)),
}
