"""The words that the embedded model knows, and the meaning of each one in an image.

The renderer and the prompts share this data.
"""

from typing import Final, TypeAlias

Rgb: TypeAlias = tuple[int, int, int]

COLOURS: Final[dict[str, Rgb]] = {
    "red": (221, 44, 44),
    "orange": (245, 138, 31),
    "yellow": (250, 217, 49),
    "green": (46, 160, 67),
    "cyan": (58, 200, 214),
    "blue": (38, 84, 214),
    "purple": (130, 54, 180),
    "pink": (247, 140, 190),
    "white": (248, 248, 248),
    "gray": (128, 128, 128),
    "black": (18, 18, 18),
}

SHAPES: Final[tuple[str, ...]] = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "diamond",
    "crescent",
)

# The radius of the circle around the shape, as a share of the image's shorter side.
SINGLE_RADII: Final[dict[str, float]] = {"small": 0.14, "medium": 0.24, "large": 0.35}
PAIR_RADII: Final[dict[str, float]] = {"small": 0.135, "medium": 0.19, "large": 0.225}

# The centre of a single object, as shares of the image's width and height.
POSITIONS: Final[dict[str, tuple[float, float]]] = {
    "centre": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}

# The distance of a pair's two objects from the image's edges along their axis.
PAIR_OFFSET: Final = 0.26

COLOUR_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "purple": ("violet",),
    "cyan": ("turquoise", "teal"),
    "gray": ("grey",),
}

SHAPE_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("disc", "ball", "dot"),
    "square": ("box",),
    "ring": ("donut",),
    "cross": ("plus",),
    "diamond": ("rhombus",),
    "crescent": ("moon",),
}

SIZE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("",),
    "large": ("large", "big", "huge"),
}

POSITION_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "centre": ("in the centre", "in the center", "in the middle"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on the top", "near the top"),
    "bottom": ("at the bottom", "on the bottom", "near the bottom"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom right": (
        "in the bottom right corner",
        "at the bottom right",
        "in the lower right corner",
    ),
}

# For the object that is named first; a scene's first object is the left or upper one.
FIRST_IS_LEFT: Final[tuple[str, ...]] = ("left of", "to the left of", "on the left of")
FIRST_IS_RIGHT: Final[tuple[str, ...]] = ("right of", "to the right of", "on the right of")
FIRST_IS_ABOVE: Final[tuple[str, ...]] = ("above", "over")
FIRST_IS_BELOW: Final[tuple[str, ...]] = ("below", "under", "beneath")
# Without a side: the object that is named first is on the left.
SIDE_BY_SIDE: Final[tuple[str, ...]] = ("next to", "beside", "and", "with")

STYLE_PREFIXES: Final[tuple[str, ...]] = (
    "a photo of",
    "a picture of",
    "an image of",
    "a drawing of",
    "an illustration of",
    "a painting of",
    "oil painting of",
    "watercolor of",
    "digital art of",
    "draw",
    "please draw",
    "show me",
    "a render of",
)

STYLE_SUFFIXES: Final[tuple[str, ...]] = (
    "4k",
    "8k",
    "highly detailed",
    "high quality",
    "masterpiece",
    "minimalist",
    "flat design",
    "simple",
    "vector art",
    "trending on artstation",
    "sharp focus",
    "beautiful",
    "in the style of van gogh",
    "studio lighting",
    "photorealistic",
)

UNKNOWN_WORDS: Final[tuple[str, ...]] = tuple(
    word
    for line in (
        "cute baby sea otter cat dog house mountain river city tree flower bird",
        "robot astronaut riding horse car bicycle sunset beach forest castle dragon",
        "wizard coffee table chair portrait woman man child smiling old young",
        "ancient future space planet galaxy storm wearing hat holding book walking",
        "running sleeping eating blurry ugly low quality bad anatomy watermark text",
        "signature deformed golden silver wooden glass metal stone paper playing",
        "guitar piano football snow rain fire water cloud sky night morning dream",
    )
    for word in line.split()
)


def known_words() -> list[str]:
    """Returns every word that is one token, in a fixed order."""
    phrases: list[str] = [*COLOURS, *SHAPES, "background", "backdrop", "a", "an", "the", "on", "of"]
    for table in (COLOUR_SYNONYMS, SHAPE_SYNONYMS, SIZE_WORDS, POSITION_PHRASES):
        for variants in table.values():
            phrases.extend(variants)
    for variants in (FIRST_IS_LEFT, FIRST_IS_RIGHT, FIRST_IS_ABOVE, FIRST_IS_BELOW, SIDE_BY_SIDE):
        phrases.extend(variants)
    phrases.extend((*STYLE_PREFIXES, *STYLE_SUFFIXES))
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))
