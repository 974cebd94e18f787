"""Checks from the pixels alone whether an image shows what its prompt asks for.

Independent of the code that renders the training images, and imports nothing from it: the colours,
shapes and places below are this file's own idea of the words. Regions are found by colour; a
region's shape is the template that covers it best.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

Mask: TypeAlias = npt.NDArray[np.bool_]
Pixels: TypeAlias = npt.NDArray[np.float64]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "orange": (250, 140, 15),
    "yellow": (255, 222, 40),
    "green": (35, 155, 60),
    "cyan": (65, 205, 220),
    "blue": (30, 80, 220),
    "purple": (128, 45, 175),
    "pink": (250, 145, 190),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "black": (0, 0, 0),
}

MIN_OVERLAP = 0.7
_GRID = 64
_MIN_AREA = 0.006  # of the image
_MAX_STRAY = 0.01  # of the image
_MAX_COLOUR_ERROR = 75.0  # in RGB, between a region's median and the table


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedObject:
    """A shape, its colour, and its size if the prompt names one."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a prompt asks for.

    One object with a place ("centre", "top left", ...), or two with an axis, of which the first
    is the left ("horizontal") or the upper ("vertical") one. No two colours are the same.
    """

    objects: tuple[ExpectedObject, ...]
    background: str
    place: str | None = None
    axis: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A connected piece of one colour: its mask, cropped, and where it lies in the image."""

    mask: Mask
    x: float
    y: float
    diameter: float


def problems(image: Image.Image, expected: Expectation) -> list[str]:
    """Returns the mistakes in the image, none if it shows what the prompt asks for."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    colours = [expected.background, *(item.colour for item in expected.objects)]
    labels = _nearest(pixels, colours)
    found = [*_background_problems(pixels, expected.background), *_stray_problems(pixels, colours)]
    regions = []
    for number, item in enumerate(expected.objects, start=1):
        region_problems, region = _object_problems(pixels, labels == number, item)
        found.extend(region_problems)
        if region is not None and item.size is not None:
            found.extend(_size_problems(region, item, num_objects=len(expected.objects)))
        regions.append(region)
    present = [region for region in regions if region is not None]
    if len(present) == len(expected.objects):
        found.extend(_place_problems(present, expected))
    return found


def classify_shape(mask: Mask) -> tuple[str, float]:
    """Returns the template that covers the cropped mask best, with intersection over union."""
    scaled = Image.fromarray(mask).convert("L").resize((_GRID, _GRID), Image.Resampling.BOX)
    grid = np.asarray(scaled) > 127
    overlaps = {name: _overlap(grid, template) for name, template in _templates().items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best, overlaps[best]


def _nearest(pixels: Pixels, names: list[str]) -> npt.NDArray[np.intp]:
    nearest: npt.NDArray[np.intp] = np.argmin(_distances(pixels, names), axis=-1)
    return nearest


def _distances(pixels: Pixels, names: list[str]) -> Pixels:
    table = np.array([PALETTE[name] for name in names], dtype=np.float64)
    distances: Pixels = np.linalg.norm(pixels[..., None, :] - table, axis=-1)
    return distances


def _colour_problems(pixels: Pixels, colour: str, where: str) -> list[str]:
    median = np.median(pixels.reshape(-1, 3), axis=0)
    names = list(PALETTE)
    distances = _distances(median, names)
    nearest = names[int(np.argmin(distances))]
    if nearest != colour or distances.min() > _MAX_COLOUR_ERROR:
        return [f"{where} is {nearest} {median.round().tolist()}, not {colour}"]
    return []


def _background_problems(pixels: Pixels, background: str) -> list[str]:
    edge = max(2, min(pixels.shape[:2]) // 40)
    rim = np.ones(pixels.shape[:2], dtype=bool)
    rim[edge:-edge, edge:-edge] = False
    wrong = _colour_problems(pixels[rim], background, "background")
    share = float((_distances(pixels[rim], [background])[..., 0] < _MAX_COLOUR_ERROR).mean())
    if not wrong and share < 0.95:
        wrong = [f"only {share:.0%} of the rim is {background}"]
    return wrong


def _stray_problems(pixels: Pixels, colours: list[str]) -> list[str]:
    """Pixels of no expected colour, thin edges between two colours aside."""
    stray = _distances(pixels, colours).min(axis=-1) > 1.2 * _MAX_COLOUR_ERROR
    width = 2 * max(1, min(stray.shape) // 128) + 1
    share = float(ndimage.binary_opening(stray, np.ones((width, width))).mean())
    return [f"{share:.1%} of the image has another colour"] if share > _MAX_STRAY else []


def _object_problems(
    pixels: Pixels, mask: Mask, item: ExpectedObject
) -> tuple[list[str], Region | None]:
    name = f"{item.colour} {item.shape}"
    pieces, count = ndimage.label(mask)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:] / mask.size
    if count == 0 or areas.max() < _MIN_AREA:
        return [f"no {item.colour} region for the {name}"], None
    largest = pieces == int(np.argmax(areas)) + 1
    wrong = _colour_problems(pixels[largest], item.colour, name)
    if np.sort(areas)[:-1].sum() > _MAX_STRAY + 0.25 * areas.max():
        wrong.append(f"more than one {item.colour} region")
    region = _region(largest)
    shape, overlap = classify_shape(region.mask)
    if shape != item.shape or overlap < MIN_OVERLAP:
        wrong.append(f"{name} looks like a {shape} ({overlap:.2f})")
    return wrong, region


def _region(mask: Mask) -> Region:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    height, width = mask.shape
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(
        mask=cropped,
        x=float(columns[0] + columns[-1] + 1) / 2 / width,
        y=float(rows[0] + rows[-1] + 1) / 2 / height,
        diameter=max(cropped.shape) / min(height, width),
    )


def _size_problems(region: Region, item: ExpectedObject, *, num_objects: int) -> list[str]:
    """Small and large are meant for the room there is: two objects have less."""
    below, above = (0.35, 0.45) if num_objects == 1 else (0.3, 0.33)
    fits = region.diameter < below if item.size == "small" else region.diameter > above
    if fits:
        return []
    return [f"{item.colour} {item.shape} is not {item.size}: {region.diameter:.2f} of the side"]


def _place_problems(regions: list[Region], expected: Expectation) -> list[str]:
    if expected.axis is not None:
        first, second = regions
        along, across = second.x - first.x, abs(second.y - first.y)
        if expected.axis == "vertical":
            along, across = second.y - first.y, abs(second.x - first.x)
        return [] if along > 0.2 and across < 0.2 else [f"objects are not {expected.axis}"]
    (region,) = regions
    place = expected.place or "centre"
    wanted_x = _side(place, low="left", high="right")
    wanted_y = _side(place, low="top", high="bottom")
    if _matches(region.x, wanted_x) and _matches(region.y, wanted_y):
        return []
    return [f"object at ({region.x:.2f}, {region.y:.2f}), not {place}"]


def _side(place: str, *, low: str, high: str) -> int:
    words = place.split()
    return (high in words) - (low in words)


def _matches(coordinate: float, side: int) -> bool:
    if side == 0:
        return 0.38 < coordinate < 0.62
    return coordinate < 0.42 if side < 0 else coordinate > 0.58


def _overlap(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


@cache
def _templates() -> dict[str, Mask]:
    """Each shape filling a square grid, drawn from this file's own definitions."""
    side = 512

    def blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (side, side))
        return image, ImageDraw.Draw(image)

    images: dict[str, Image.Image] = {}
    for name in ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond"):
        images[name], draw = blank()
        match name:
            case "circle":
                draw.ellipse((0, 0, side, side), fill=255)
            case "square":
                draw.rectangle((0, 0, side, side), fill=255)
            case "triangle":
                draw.polygon([(side / 2, 0), (side, side), (0, side)], fill=255)
            case "star":
                draw.polygon(_pentagram(side), fill=255)
            case "heart":
                draw.ellipse((0, 0, side * 0.53, side * 0.55), fill=255)
                draw.ellipse((side * 0.47, 0, side, side * 0.55), fill=255)
                draw.polygon(
                    [(side * x, side * y) for x, y in ((0.03, 0.38), (0.5, 0.2), (0.97, 0.38))]
                    + [(side / 2, side)],
                    fill=255,
                )
            case "ring":
                draw.ellipse((0, 0, side, side), fill=255)
                draw.ellipse((side / 4, side / 4, side * 3 / 4, side * 3 / 4), fill=0)
            case "cross":
                draw.rectangle((side / 3, 0, side * 2 / 3, side), fill=255)
                draw.rectangle((0, side / 3, side, side * 2 / 3), fill=255)
            case "diamond":
                half = side / 2
                draw.polygon([(half, 0), (side, half), (half, side), (0, half)], fill=255)
    images["crescent"], draw = blank()
    draw.ellipse((0, 0, side * 4 / 3, side), fill=255)
    draw.ellipse((side * 0.45, side * 0.07, side * 1.6, side * 0.93), fill=0)
    return {name: np.asarray(image.resize((_GRID, _GRID))) > 127 for name, image in images.items()}


def _pentagram(side: int) -> list[tuple[float, float]]:
    """A regular five-pointed star, stretched to fill the square."""
    inner = math.sin(math.radians(18)) / math.sin(math.radians(54))
    points = []
    for k in range(10):
        radius = inner if k % 2 else 1.0
        angle = math.radians(36 * k)
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    xs, ys = zip(*points, strict=True)
    return [
        (
            (x - min(xs)) / (max(xs) - min(xs)) * side,
            (y - min(ys)) / (max(ys) - min(ys)) * side,
        )
        for x, y in points
    ]
