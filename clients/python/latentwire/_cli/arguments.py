"""The command line as data: every command with its flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from latentwire._channel import DEFAULT_SERVER
from latentwire._requests import IMAGE_FORMATS, PREVIEW_METHODS

_EPILOG: Final = """\
environment:
  LATENTWIRE_SERVER    address of the server, when --server is not given
  LATENTWIRE_API_KEY   the caller's key, when the server asks for one

exit status:
  0  done
  1  the server failed
  2  the command line or the request is wrong
  3  the server cannot be reached or is not ready, or the model cannot be used
  4  the queue is full, or the time-out passed
  5  every image was withheld by the safety filter
  130  Ctrl-C; the generation was cancelled on the server
"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the epilog's lines."""


def build_parser(*, version: str) -> argparse.ArgumentParser:
    """Returns the parser; the chosen command is in ``command``."""
    parser = argparse.ArgumentParser(
        prog="latentwire",
        description="Image generation with every denoising step on the wire.",
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
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
        formatter_class=_HelpFormatter,
    )
    if calls_server:
        parser.add_argument(
            "--server",
            metavar="ADDRESS",
            help=f"host:port, or https://host:port for TLS (default: {DEFAULT_SERVER})",
        )
    return parser


def _add_generate(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(commands, "generate", summary="draw images", calls_server=True)
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument(
        "--like", type=Path, metavar="FILE", help="draw what this image file's own request says"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="image file; '-' is standard output; several images get -0, -1, ... before the "
        "suffix (default: image-SEED.png)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per event")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument(
        "--preview", action="store_true", help="show the picture forming in the terminal"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="most seconds to wait (default: no limit)"
    )
    _add_drawing_options(parser)
    _add_source_options(parser)
    _add_delivery_options(parser)


def _add_drawing_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is drawn", "Defaults are the model's.")
    group.add_argument("-m", "--model", help="model id, alias or name")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what not to show")
    group.add_argument("-W", "--width", type=int, help="pixels")
    group.add_argument("-H", "--height", type=int, help="pixels")
    group.add_argument("-n", "--num-images", type=int, metavar="N", help="default: 1")
    group.add_argument("-s", "--seed", type=int, help="of the first image (default: random)")
    group.add_argument(
        "--num-inference-steps", "--steps", type=int, metavar="N", help="denoising steps"
    )
    group.add_argument("--guidance-scale", type=float, metavar="X", help="1 or less: off")
    group.add_argument("--scheduler", metavar="ID", help="sampler, such as dpmpp-2m")
    group.add_argument(
        "--lora",
        dest="loras",
        action="append",
        type=lora,
        metavar="ID[:SCALE]",
        help="adapter to draw with, scale 1 unless given; may be given several times",
    )
    group.add_argument(
        "--sigmas", help="noise levels: default, karras, exponential or beta; needs --scheduler"
    )
    group.add_argument("--clip-skip", type=int, metavar="N", help="text encoder layers to skip")
    group.add_argument(
        "--high-noise-frac",
        type=float,
        metavar="N",
        help="where the model's refiner takes over, above 0 to 1 (never)",
    )
    group.add_argument(
        "--high-resolution-fix",
        action=argparse.BooleanOptionalAction,
        help="whether a second pass draws over a picture that is larger than the model's own",
    )


def lora(text: str) -> tuple[str, float]:
    """Returns an adapter's id and scale from ``ID`` or ``ID:SCALE``."""
    id_, colon, scale = text.partition(":")
    if not id_:
        msg = f"{text!r} names no adapter"
        raise argparse.ArgumentTypeError(msg)
    try:
        return id_, float(scale) if colon else 1.0
    except ValueError:
        msg = f"{scale!r} is no scale"
        raise argparse.ArgumentTypeError(msg) from None


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it starts from")
    group.add_argument("--image", type=Path, metavar="FILE", help="PNG, JPEG or WebP to start from")
    group.add_argument(
        "--mask", type=Path, metavar="FILE", help="as large as --image; white is redrawn"
    )
    group.add_argument("--mask-inverted", action="store_true", help="black is redrawn instead")
    group.add_argument(
        "--strength", type=float, metavar="X", help="how much is redrawn, above 0 to 1"
    )


def _add_delivery_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is delivered")
    group.add_argument(
        "--format",
        dest="image_format",
        choices=sorted(IMAGE_FORMATS),
        help="default: by the output's suffix, else png",
    )
    group.add_argument("--quality", type=int, metavar="1-100", help="of jpeg and webp")
    group.add_argument(
        "--metadata-omitted", action="store_true", help="leave the request out of the file"
    )
    group.add_argument("--max-data-bytes", type=int, metavar="N", help="image bytes per message")
    group.add_argument("--progress-interval-steps", type=int, metavar="N")
    group.add_argument("--preview-interval-steps", type=int, metavar="N")
    group.add_argument("--preview-method", choices=sorted(PREVIEW_METHODS))
    group.add_argument("--preview-max-side", type=int, metavar="N", help="pixels")
    group.add_argument("--priority", type=int, help="-100 to 100; higher is served first")
    group.add_argument("--user", help="for your own accounting")
    group.add_argument("--label", action="append", metavar="KEY=VALUE", help="may be repeated")
    group.add_argument(
        "--request-id", metavar="UUID", help="a request that is sent again under it is drawn once"
    )
    group.add_argument("--validate-only", action="store_true", help="check it, draw nothing")


def _add_resources(commands: _Commands[argparse.ArgumentParser]) -> None:
    models = _add_command(
        commands, "models", summary="list, show, load or unload models", calls_server=True
    )
    models.add_argument(
        "words",
        nargs="*",
        metavar="NAME",
        help="model id, alias or name; after 'load' or 'unload', which may need an admin key, that"
        " is done to it",
    )
    info = _add_command(commands, "info", summary="show the server", calls_server=True)
    listing = _add_command(
        commands, "list", summary="list your queued and running generations", calls_server=True
    )
    cancel = _add_command(commands, "cancel", summary="cancel a generation", calls_server=True)
    cancel.add_argument("name", help="generations/ID, or the ID alone")
    for parser in (models, info, listing, cancel):
        parser.add_argument("--json", action="store_true", help="JSON for machines")


def _add_inspect(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "inspect",
        summary="show the request that drew an image file",
        calls_server=False,
    )
    parser.add_argument("file", type=Path, help="PNG, JPEG or WebP")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="JSON for machines")
    how.add_argument(
        "--as-grpcurl", action="store_true", help="the grpcurl command that draws it again"
    )


def _add_serve(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "serve",
        summary="run the gRPC service and the REST bridge together",
        calls_server=False,
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="of the gRPC service (default: 50051)")
    parser.add_argument("--bridge-port", type=int, help="of the REST bridge (default: 9225)")
    parser.add_argument("--model", help="hub id, folder or checkpoint (default: embedded)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="settings of both (default: latentwire.toml, where there is one)",
    )
    parser.add_argument(
        "server_flags",
        nargs="*",
        metavar="-- FLAG",
        help="further flags of latentwire-server, after '--'",
    )
