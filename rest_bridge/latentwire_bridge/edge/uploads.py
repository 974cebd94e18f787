"""Pictures from callers: the parts of a form, or data URLs in JSON; and masks in OpenAI's sense.

``read_form`` reads the socket on the event loop; everything else is pure, and takes milliseconds
for a large picture: callers do it on a thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import re
import warnings
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import BodyPartReader, web
from PIL import ExifTags, Image, ImageOps

from latentwire_bridge.openai.errors import ApiError
from latentwire_bridge.openai.requests import Pictures
from latentwire_bridge.openai.schema import EditBody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from latentwire_bridge.openai.schema import GenerationBody

VARIATION_STRENGTH: Final = 0.6
"""Enough for other looks, and little enough for the picture to be known again."""

_MAX_PARTS: Final = 1_000
_MAX_SHOWN_CHARACTERS: Final = 64
_MAX_PIXELS: Final = 4096 * 4096
_FORM_TYPE: Final = "multipart/form-data"
IMAGE_FIELDS: Final = ("image", "image[]", "images", "images[]")
MASK_FIELDS: Final = ("mask", "mask_image")
"""OpenAI's name and diffusers'."""
DATA_URL_HEAD: Final = "[dD][aA][tT][aA]:[^,]{0,256},"
_DATA_URL: Final = re.compile(DATA_URL_HEAD)
_NESTED: Final = re.compile(r"(\w+)\[(\w+)\]")
BOOLEANS: Final = {"true": True, "false": False}
_BOOLEAN_FIELDS: Final = frozenset({"stream", "progress", "high_resolution_fix"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request with pictures, whether it came as a form or as JSON."""

    fields: Mapping[str, object]
    """What is no picture."""
    images: tuple[bytes, ...]
    mask: bytes | None


def is_form(request: web.Request) -> bool:
    """Whether the body is a form with files."""
    return request.content_type == _FORM_TYPE


async def read_form(request: web.Request, *, timeout_s: float) -> Sent:
    """Returns what a form holds; file names and types are ignored, as clients make them up.

    Raises:
        ApiError: it is no form, or does not arrive in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            parts = [part async for part in _parts(request)]
    except TimeoutError:
        message = f"the request body did not arrive within {timeout_s:g} s"
        raise ApiError(
            message, status=HTTPStatus.REQUEST_TIMEOUT, code="request_timeout", is_final=True
        ) from None
    except web.HTTPException:
        raise
    except Exception:  # Border: aiohttp's parser of hostile bytes
        message = "the request body is no multipart form"
        raise ApiError(message, code="invalid_body") from None
    return await asyncio.to_thread(_from_form, parts)


async def _parts(request: web.Request) -> AsyncIterator[tuple[str, bytes]]:
    """Yields the parts by their names; ``request.post()`` takes a nameless file for text."""
    num_parts = 0
    async for part in await request.multipart():
        num_parts += 1
        if num_parts > _MAX_PARTS or request.content.total_bytes > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size)
        if not isinstance(part, BodyPartReader) or part.name is None:
            message = "a part has no name, or has parts itself"
            raise ValueError(message)
        yield part.name, bytes(await part.read(decode=True))


def _from_form(parts: list[tuple[str, bytes]]) -> Sent:
    images: list[bytes] = []
    mask: bytes | None = None
    fields: dict[str, object] = {}
    for name, data in parts:
        if not data and name in (*IMAGE_FIELDS, *MASK_FIELDS):
            continue  # What a page sends where nobody has chosen a file.
        if name in IMAGE_FIELDS:
            images.append(_picture_in(data, name=name))
        elif name in MASK_FIELDS:
            if mask is not None:
                message = f"'{name}': a mask was sent twice"
                raise ApiError(message, param=name, code="invalid_value")
            mask = _picture_in(data, name=name)
        else:
            _set(fields, name, _text_in(data, name=name))
    return Sent(fields=fields, images=tuple(images), mask=mask)


def _picture_in(data: bytes, *, name: str) -> bytes:
    if not data.startswith(b"data:"):
        return data
    return _from_data_url(data.decode("ascii", errors="replace"), name=name)


def _text_in(data: bytes, *, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        shown = ascii(name[:_MAX_SHOWN_CHARACTERS])
        message = f"{shown}: is no text in UTF-8"
        raise ApiError(message, param=name, code="invalid_value") from None


def _set(fields: dict[str, object], name: str, text: str) -> None:
    nested = _NESTED.fullmatch(name)
    if nested is not None:
        inner = fields.setdefault(nested[1], {})
        if isinstance(inner, dict):
            inner[nested[2]] = text
    elif name in _BOOLEAN_FIELDS:
        fields[name] = BOOLEANS.get(text.strip().lower(), text)
    else:
        fields[name] = text


def from_json(sent: Mapping[str, object]) -> Sent:
    """Returns what a JSON object holds: pictures as data URLs.

    Raises:
        ApiError: a picture is none, or lies elsewhere: nothing is fetched on a caller's word.
    """
    pictures = (*IMAGE_FIELDS, *MASK_FIELDS)
    images = [
        _referenced(one, name=name) for name in IMAGE_FIELDS for one in _listed(sent.get(name))
    ]
    masks = [
        _referenced(sent[name], name=name)
        for name in MASK_FIELDS
        if sent.get(name) not in (None, "")
    ]
    if len(masks) > 1:
        message = "'mask_image': contradicts 'mask'; send one of them"
        raise ApiError(message, param="mask_image", code="invalid_value")
    return Sent(
        fields={name: value for name, value in sent.items() if name not in pictures},
        images=tuple(images),
        mask=masks[0] if masks else None,
    )


def _listed(value: object) -> Iterator[object]:
    if isinstance(value, list):
        yield from value
    elif value is not None:
        yield value


def _referenced(value: object, *, name: str) -> bytes:
    url = value.get("image_url") if isinstance(value, dict) else value
    if isinstance(value, dict) and url is None and "file_id" in value:
        message = f"'{name}': this server keeps no files; send the picture as a data: URL"
        raise ApiError(message, param=name, code="unsupported_parameter")
    if not isinstance(url, str):
        message = f'\'{name}\': needed: {{"image_url": "data:image/png;base64,..."}}'
        raise ApiError(message, param=name, code="invalid_value")
    if not url.lower().startswith("data:"):
        message = (
            f"'{name}': this server fetches nothing on a caller's word;"
            " send the picture as a data: URL"
        )
        raise ApiError(message, param=name, code="invalid_value")
    return _from_data_url(url, name=name)


def _from_data_url(url: str, *, name: str = "image") -> bytes:
    """Returns the bytes of a data URL (RFC 2397) in base64."""
    head = _DATA_URL.match(url)
    if head is not None and head[0].lower().endswith(";base64,"):
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            pass
    message = f"'{name}': is no data: URL in base64, such as data:image/png;base64,iVBORw0..."
    raise ApiError(message, param=name, code="invalid_value")


def pictures_of(sent: Sent, body: GenerationBody, *, is_variation: bool = False) -> Pictures:
    """Returns what the server shall start from.

    A mask counts by its transparency, as OpenAI's do; one without any by its white. Without a mask
    what is transparent in the image itself is redrawn, as with OpenAI's older models.

    Raises:
        ApiError: there is no picture, or more than a model takes.
    """
    if not sent.images:
        message = "'image': is required"
        raise ApiError(message, param="image", code="missing_required_parameter")
    if len(sent.images) > 1:
        message = f"'image': the model starts from 1 picture; got {len(sent.images)}"
        raise ApiError(message, param="image", code="invalid_value")
    (image,) = sent.images
    strength = body.strength if isinstance(body, EditBody) else None
    if is_variation:
        if sent.mask is not None:
            message = "'mask': belongs to /v1/images/edits"
            raise ApiError(message, param="mask", code="unsupported_parameter")
        return Pictures(image=image, strength=strength or VARIATION_STRENGTH)
    if sent.mask is None:
        return Pictures(image=image, mask=white_where_transparent(image), strength=strength)
    mask = white_where_transparent(sent.mask) or sent.mask
    return Pictures(image=image, mask=mask, strength=strength)


def white_where_transparent(data: bytes) -> bytes | None:
    """Returns OpenAI's mask as the server's: a PNG that is white where ``data`` is transparent.

    OpenAI edits where alpha is 0. None where nothing is transparent: then a mask speaks by its
    colours, and a picture by itself is no mask. Also None for what is no picture, which the server
    tells better.
    """
    with warnings.catch_warnings():
        # Of large pictures and broken metadata.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
                if image.width * image.height > _MAX_PIXELS or not image.has_transparency_data:
                    return None
                alpha = _upright(image.convert("RGBA").getchannel("A"), image)
        except Exception:  # Border: Pillow's parsers of hostile bytes
            return None
    mask = alpha.point([255] + [0] * 255)
    if mask.getbbox() is None:
        return None
    out = io.BytesIO()
    mask.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _upright(channel: Image.Image, image: Image.Image) -> Image.Image:
    """Returns a channel as the EXIF orientation of the whole picture says."""
    tag, alone = ExifTags.Base.Orientation, Image.Exif()
    with contextlib.suppress(Exception):  # Pillow's parser of hostile tags
        alone[tag] = image.getexif().get(tag, 1)
        channel.info["exif"] = alone.tobytes()
        ImageOps.exif_transpose(channel, in_place=True)
    return channel
