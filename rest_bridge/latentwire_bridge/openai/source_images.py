"""The images that edits start from: the parts of a form or data: URLs in JSON, and OpenAI's masks.

Pure. Decoding a large image takes milliseconds: callers use a thread.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import ExifTags, Image, ImageOps

from latentwire_bridge.openai.errors import ApiError, Problem, invalid_request, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

IMAGE_FIELDS: Final = ("image", "image[]", "images", "images[]")
MASK_FIELDS: Final = ("mask", "mask_image")
"""OpenAI's name and diffusers'."""

_MAX_PIXELS: Final = 4096 * 4096
_DATA_URL_HEAD: Final = re.compile("data:[^,]{0,256};base64,", re.IGNORECASE)
_NESTED: Final = re.compile(r"(\w+)\[(\w+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A request body with images, sent as a form or as JSON."""

    fields: Mapping[str, object]
    """The other fields."""
    images: tuple[bytes, ...]
    mask: bytes | None
    is_form: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImages:
    """What the server starts from."""

    image: bytes
    mask: bytes | None
    """White where the image is edited."""


def from_form(parts: Iterable[tuple[str, bytes]]) -> Upload:
    """Returns the upload that a form's named parts make.

    File names and content types do not matter: clients make them up.

    Raises:
        ApiError: A part is wrong.
    """
    images: list[bytes] = []
    mask: bytes | None = None
    fields: dict[str, object] = {}
    for name, data in parts:
        if name in (*IMAGE_FIELDS, *MASK_FIELDS):
            if not data:
                continue  # A file input of a web page in which no file was chosen.
            if data.startswith(b"data:"):
                data = _from_data_url(data.decode("ascii", errors="replace"), name=name)  # noqa: PLW2901
            if name in IMAGE_FIELDS:
                images.append(data)
            elif mask is None:
                mask = data
            else:
                raise invalid_request([Problem(param=name, message="only one mask can be sent")])
            continue
        try:
            text = data.decode()
        except UnicodeDecodeError:
            message = f"{shown(name)}: is not UTF-8 text"
            raise ApiError(message, param=name, code="invalid_value") from None
        nested = _NESTED.fullmatch(name)
        if nested is None:
            fields[name] = text
        elif isinstance(inner := fields.setdefault(nested[1], {}), dict):
            inner[nested[2]] = text
    return Upload(fields=fields, images=tuple(images), mask=mask, is_form=True)


def from_json(sent: Mapping[str, object]) -> Upload:
    """Returns the upload that a JSON object makes, whose images are data: URLs.

    Raises:
        ApiError: An image is not a data: URL. Other URLs are refused: the bridge fetches nothing.
    """
    images: list[bytes] = []
    for name in IMAGE_FIELDS:
        value = sent.get(name)
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            images += [_referenced(one, name=name) for one in listed]
    masks = [
        _referenced(sent[name], name=name)
        for name in MASK_FIELDS
        if sent.get(name) not in (None, "")
    ]
    if len(masks) > 1:
        raise invalid_request(
            [Problem(param="mask_image", message="contradicts 'mask'; send only one of them")]
        )
    return Upload(
        fields={
            name: value for name, value in sent.items() if name not in (*IMAGE_FIELDS, *MASK_FIELDS)
        },
        images=tuple(images),
        mask=masks[0] if masks else None,
        is_form=False,
    )


def _referenced(value: object, *, name: str) -> bytes:
    url = value.get("image_url") if isinstance(value, dict) else value
    if isinstance(value, dict) and url is None and "file_id" in value:
        message = "this server keeps no files; send the image as a data: URL"
        raise invalid_request([Problem(param=name, message=message, code="unsupported_parameter")])
    if not isinstance(url, str):
        raise invalid_request(
            [Problem(param=name, message='should be {"image_url": "data:image/png;base64,..."}')]
        )
    if not url.lower().startswith("data:"):
        message = "this server does not fetch URLs; send the image as a data: URL"
        raise invalid_request([Problem(param=name, message=message)])
    return _from_data_url(url, name=name)


def _from_data_url(url: str, *, name: str) -> bytes:
    """Returns the bytes of a data: URL (RFC 2397) in base64."""
    head = _DATA_URL_HEAD.match(url)
    if head is not None:
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(url[head.end() :], validate=True)
    message = "is not a base64 data: URL, such as data:image/png;base64,iVBORw0..."
    raise invalid_request([Problem(param=name, message=message)])


def source_images(upload: Upload, *, takes_mask: bool) -> SourceImages:
    """Returns the image and the mask to start from.

    The image is edited where the mask is transparent, as with OpenAI, or white if it has no
    transparency. Without a mask, the image's own transparency counts, as with older OpenAI models.

    Raises:
        ApiError: There is not exactly one image, or a mask where none is possible.
    """
    if not upload.images:
        raise invalid_request(
            [Problem(param="image", message="is required", code="missing_required_parameter")]
        )
    if len(upload.images) > 1:
        raise invalid_request(
            [Problem(param="image", message=f"models start from 1 image; got {len(upload.images)}")]
        )
    (image,) = upload.images
    if takes_mask:
        mask = _white_where_transparent(image if upload.mask is None else upload.mask)
        return SourceImages(image=image, mask=mask or upload.mask)
    if upload.mask is not None:
        message = "belongs to /v1/images/edits"
        raise invalid_request(
            [Problem(param="mask", message=message, code="unsupported_parameter")]
        )
    return SourceImages(image=image, mask=None)


def _white_where_transparent(data: bytes) -> bytes | None:
    """Returns a mask as the server takes it: a PNG that is white where ``data`` is transparent.

    OpenAI edits where alpha is 0. None where nothing is transparent, and for files that are not
    images: the server reports those better.
    """
    with warnings.catch_warnings():
        # Pillow warns of large images and broken metadata.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
                if image.width * image.height > _MAX_PIXELS or not image.has_transparency_data:
                    return None
                alpha = image.convert("RGBA").getchannel("A")
                with contextlib.suppress(Exception):  # Border: Pillow's parser of hostile tags
                    # Only this one of the image's tags, since others may be malformed.
                    tag, tags = ExifTags.Base.Orientation, Image.Exif()
                    tags[tag] = image.getexif().get(tag, 1)
                    alpha.info["exif"] = tags.tobytes()
                    ImageOps.exif_transpose(alpha, in_place=True)
        except Exception:  # Border: Pillow's parsers of hostile bytes
            return None
    mask = alpha.point([255] + [0] * 255)
    if mask.getbbox() is None:
        return None
    out = io.BytesIO()
    mask.save(out, "PNG", compress_level=1)
    return out.getvalue()
