"""Describes a scene in words, in many ways.

In training, prompts leave out details at random, so that the model learns to choose them. Size and
position are never left out, so that a prompt without them means a medium object in the middle.
"""

import random
import string

from tools.embedded_model.scenes.scene import Scene, SceneObject
from tools.embedded_model.scenes.vocabulary import (
    COLOUR_SYNONYMS,
    FIRST_IS_ABOVE,
    FIRST_IS_BELOW,
    FIRST_IS_LEFT,
    FIRST_IS_RIGHT,
    POSITION_PHRASES,
    SHAPE_SYNONYMS,
    SIDE_BY_SIDE,
    SIZE_WORDS,
    STYLE_PREFIXES,
    STYLE_SUFFIXES,
    UNKNOWN_WORDS,
)

EMPTY_SHARE = 0.1
JUNK_ONLY_SHARE = 0.015
JUNK_SHARE = 0.12
_SYNONYM_SHARE = 0.12
_NO_COLOUR_SHARE = 0.04
_NO_BACKGROUND_SHARE = 0.1


def random_prompt(scene: Scene, rng: random.Random) -> str:
    """Returns one of many prompts for the scene, sometimes with junk words, sometimes empty."""
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return ""
    if kind < EMPTY_SHARE + JUNK_ONLY_SHARE:
        return _junk(rng, rng.randint(1, 8))
    prompt = _single(scene, rng) if len(scene.objects) == 1 else _pair(scene, rng)
    if rng.random() < JUNK_SHARE:
        prompt = _with_junk(prompt, rng)
    return prompt


def plain_prompt(scene: Scene, *, reverse: bool = False) -> str:
    """Returns the most natural prompt for the scene.

    A pair can be described from either side: "A above B" or, reversed, "B below A".
    """
    background = f"on {_with_article(scene.background)} background"
    if scene.position is not None:
        words = _plain_words(scene.objects[0])
        if scene.position != "centre":
            words = f"{words} {POSITION_PHRASES[scene.position][0]}"
        return f"{words} {background}"
    first, second = (_plain_words(item) for item in scene.objects)
    horizontal = scene.axis == "horizontal"
    if reverse:
        relation = "to the right of" if horizontal else "below"
        return f"{second} {relation} {first} {background}"
    relation = "to the left of" if horizontal else "above"
    return f"{first} {relation} {second} {background}"


def _plain_words(item: SceneObject) -> str:
    size = SIZE_WORDS[item.size][0]
    return _with_article(" ".join(word for word in (size, item.colour, item.shape) if word))


def _single(scene: Scene, rng: random.Random) -> str:
    parts = [_object_words(scene.objects[0], rng)]
    if scene.position != "centre" or rng.random() < 0.2:
        parts.append(rng.choice(POSITION_PHRASES[str(scene.position)]))
    return _with_background(parts, scene.background, rng)


def _pair(scene: Scene, rng: random.Random) -> str:
    first, second = (_object_words(item, rng) for item in scene.objects)
    horizontal = scene.axis == "horizontal"
    choice = rng.random()
    if horizontal and choice < 0.2:
        words = f"{first} {rng.choice(SIDE_BY_SIDE)} {second}"
    elif choice < 0.6:
        relation = rng.choice(FIRST_IS_LEFT if horizontal else FIRST_IS_ABOVE)
        words = f"{first} {relation} {second}"
    else:
        relation = rng.choice(FIRST_IS_RIGHT if horizontal else FIRST_IS_BELOW)
        words = f"{second} {relation} {first}"
    return _with_background([words], scene.background, rng)


def _object_words(item: SceneObject, rng: random.Random) -> str:
    shape = _maybe_synonym(item.shape, SHAPE_SYNONYMS, rng)
    colour = _maybe_synonym(item.colour, COLOUR_SYNONYMS, rng)
    if rng.random() < _NO_COLOUR_SHARE:
        colour = ""
    words = [rng.choice(SIZE_WORDS[item.size]), colour, shape]
    if rng.random() < 0.05:
        words[0], words[1] = words[1], words[0]
    words = [word for word in words if word]
    if rng.random() < 0.75:
        article = rng.choice(("a", "a", "a", "the", "one"))
        return _with_article(" ".join(words)) if article == "a" else " ".join([article, *words])
    return " ".join(words)


def _with_background(parts: list[str], background: str, rng: random.Random) -> str:
    if rng.random() < _NO_BACKGROUND_SHARE:
        return " ".join(parts)
    colour = _maybe_synonym(background, COLOUR_SYNONYMS, rng)
    with_article = _with_article(colour)
    phrase = rng.choice(
        (
            *(f"on {with_article} background",) * 5,
            f"on {colour} background",
            f"on {colour}",
            f"against {with_article} background",
            f"with {with_article} background",
            f"{colour} background",
            f"on {with_article} backdrop",
        )
    )
    order = rng.random()
    if order < 0.7:
        return " ".join([*parts, phrase])
    if order < 0.85:
        return ", ".join([*parts, phrase])
    return ", ".join([phrase, *parts])


def _with_article(words: str) -> str:
    return f"an {words}" if words.startswith("orange") else f"a {words}"


def _maybe_synonym(word: str, synonyms: dict[str, tuple[str, ...]], rng: random.Random) -> str:
    if word in synonyms and rng.random() < _SYNONYM_SHARE:
        return rng.choice(synonyms[word])
    return word


def _with_junk(prompt: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        prompt = f"{rng.choice(STYLE_PREFIXES)} {prompt}"
    for _ in range(rng.randint(0, 3)):
        prompt = f"{prompt}, {rng.choice(STYLE_SUFFIXES)}"
    if rng.random() < 0.4:
        junk = _junk(rng, rng.randint(1, 3))
        prompt = f"{junk} {prompt}" if rng.random() < 0.5 else f"{prompt} {junk}"
    return prompt


def _junk(rng: random.Random, num_words: int) -> str:
    return " ".join(
        rng.choice(UNKNOWN_WORDS) if rng.random() < 0.6 else _random_word(rng)
        for _ in range(num_words)
    )


def _random_word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))
