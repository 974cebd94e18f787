"""The parser of the command line: every command with its flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from latentwire._channel import DEFAULT_SERVER
from latentwire._requests import IMAGE_FORMATS, PREVIEW_METHODS

_EPILOG: Final = """\
environment:
  LATENTWIRE_SERVER    address of the server, if --server is not given
  LATENTWIRE_API_KEY   your API key, if the server requires one

exit status:
  0  success
  1  the server failed
  2  the command line or the request is wrong
  3  the server is unreachable or not ready, or the model is unavailable
  4  the queue is full, or the time-out passed
  5  the safety filter withheld every image
  130  Ctrl-C; the generation was cancelled on the server
"""


def build_parser(*, version: str) -> argparse.ArgumentParser:
    """Returns the parser. It stores the chosen command in ``command``."""
    parser = argparse.ArgumentParser(
        prog="latentwire",
        description="Image generation with every denoising step on the wire.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentwire {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_resources(commands)
    _add_inspect(commands)
    _add_serve(commands)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse's own annotation for it


def _add_command(
    commands: _Commands[argparse.ArgumentParser], name: str, *, summary: str, calls_server: bool
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if calls_server:
        parser.add_argument(
            "--server",
            metavar="ADDRESS",
            help=f"host:port, or https://host:port for TLS (default: {DEFAULT_SERVER})",
        )
    return parser


def _add_generate(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(commands, "generate", summary="generate images", calls_server=True)
    parser.add_argument("prompt", nargs="?", help="what the image shows")
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="repeat the request stored in this image file"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="image file, or '-' for standard output; several images get -0, -1, ... before the "
        "suffix (default: image-SEED.png)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line per event")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--preview", action="store_true", help="show the image forming in the terminal"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="time limit in seconds (default: none)"
    )
    _add_image_options(parser)
    _add_source_options(parser)
    _add_delivery_options(parser)


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the image", "Defaults are the model's.")
    group.add_argument("-m", "--model", help="model id, alias or name")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what the image does not show")
    group.add_argument("-W", "--width", type=int, help="in pixels")
    group.add_argument("-H", "--height", type=int, help="in pixels")
    group.add_argument("-n", "--num-images", type=int, metavar="N", help="how many (default: 1)")
    group.add_argument("-s", "--seed", type=int, help="seed of the first image (default: random)")
    group.add_argument(
        "--num-inference-steps", "--steps", type=int, metavar="N", help="denoising steps"
    )
    group.add_argument(
        "--guidance-scale", type=float, metavar="X", help="1 or less switches guidance off"
    )
    group.add_argument("--scheduler", metavar="ID", help="sampler, such as dpmpp-2m")
    group.add_argument(
        "--lora",
        dest="loras",
        action="append",
        type=lora,
        metavar="ID[:SCALE]",
        help="LoRA to apply, scale 1 if not given; may be repeated",
    )
    group.add_argument(
        "--sigmas", help="noise levels: default, karras, exponential or beta; needs --scheduler"
    )
    group.add_argument(
        "--clip-skip", type=int, metavar="N", help="last layers of the text encoder to skip"
    )
    group.add_argument(
        "--high-noise-frac",
        type=float,
        metavar="N",
        help="where the model's refiner takes over: above 0, up to 1 (never)",
    )
    group.add_argument(
        "--high-resolution-fix",
        action=argparse.BooleanOptionalAction,
        help="whether an image larger than the model's native size gets a second pass",
    )


def lora(text: str) -> tuple[str, float]:
    """Parses ``ID`` or ``ID:SCALE``."""
    id_, colon, scale = text.partition(":")
    if not id_:
        msg = f"{text!r} has no LoRA id"
        raise argparse.ArgumentTypeError(msg)
    try:
        return id_, float(scale) if colon else 1.0
    except ValueError:
        msg = f"{scale!r} is not a scale"
        raise argparse.ArgumentTypeError(msg) from None


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the source")
    group.add_argument("--image", type=Path, metavar="FILE", help="image file to start from")
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="same size as --image; its white area is regenerated",
    )
    group.add_argument(
        "--mask-inverted",
        action="store_true",
        default=None,
        help="regenerate the black area of --mask instead",
    )
    group.add_argument(
        "--strength", type=float, metavar="X", help="how much --image changes: above 0, up to 1"
    )


def _add_delivery_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("delivery")
    group.add_argument(
        "--format",
        dest="image_format",
        choices=sorted(IMAGE_FORMATS),
        help="default: by the suffix of --output, else png",
    )
    group.add_argument(
        "--quality", type=int, metavar="1-100", help="of jpeg and webp (default: 90)"
    )
    group.add_argument(
        "--metadata-omitted",
        action="store_true",
        default=None,
        help="do not store the request in the image file",
    )
    group.add_argument(
        "--max-data-bytes", type=int, metavar="N", help="most image bytes per message"
    )
    group.add_argument("--progress-interval-steps", type=int, metavar="N", help="default: 1")
    group.add_argument("--preview-interval-steps", type=int, metavar="N", help="default: none")
    group.add_argument("--preview-method", choices=sorted(PREVIEW_METHODS), help="default: linear")
    group.add_argument("--preview-max-side", type=int, metavar="N", help="in pixels")
    group.add_argument("--priority", type=int, help="-100 to 100; higher is served first")
    group.add_argument("--user", help="name of the end user, for your own accounting")
    group.add_argument(
        "--label", action="append", metavar="KEY=VALUE", help="free label; may be repeated"
    )
    group.add_argument(
        "--request-id",
        metavar="UUID",
        help="make the request idempotent: a repeated request is generated once",
    )
    group.add_argument(
        "--validate-only",
        action="store_true",
        default=None,
        help="check the request without generating",
    )


def _add_resources(commands: _Commands[argparse.ArgumentParser]) -> None:
    models = _add_command(
        commands, "models", summary="list, show, load or unload models", calls_server=True
    )
    models.add_argument(
        "words",
        nargs="*",
        metavar="NAME",
        help="model id, alias or name to show; with 'load' or 'unload' before it, load or unload "
        "that model (may need an admin key)",
    )
    info = _add_command(
        commands, "info", summary="show the server's version, device and load", calls_server=True
    )
    listing = _add_command(
        commands, "list", summary="list your queued and running generations", calls_server=True
    )
    cancel = _add_command(commands, "cancel", summary="cancel a generation", calls_server=True)
    cancel.add_argument("name", help="generations/ID, or the ID alone")
    for parser in (models, info, listing, cancel):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _add_inspect(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "inspect",
        summary="show the request stored in an image file",
        calls_server=False,
    )
    parser.add_argument("file", type=Path, help="PNG, JPEG or WebP file")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument(
        "--as-grpcurl", action="store_true", help="print a grpcurl command that repeats the request"
    )


def _add_serve(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "serve",
        summary="run the gRPC service and the REST bridge together",
        calls_server=False,
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of the gRPC service (default: 50051)")
    parser.add_argument("--bridge-port", type=int, help="port of the REST bridge (default: 9225)")
    parser.add_argument("--model", help="hub id, folder or checkpoint (default: embedded)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="settings file for both (default: latentwire.toml, if present)",
    )
    parser.add_argument(
        "server_flags",
        nargs="*",
        metavar="-- FLAG",
        help="further flags of latentwire-server, after '--'",
    )
