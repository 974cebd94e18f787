"""``latentwire generate``: generates images, reports every step, cancels on Ctrl-C."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Final, cast

from latentwire._cli.exit_status import ExitCode, UsageError
from latentwire._cli.inspect import load_description, request_in
from latentwire._cli.output import output_from
from latentwire._cli.reporting import JsonReporter, PlainReporter, Reporter
from latentwire._events import Accepted, Image
from latentwire._requests import GenerateOptions
from latentwire.errors import LatentwireError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from latentwire._cli.output import Output
    from latentwire._client import Client, GenerationStream
    from latentwire.v1 import image_generation_pb2 as pb

# A preview on a terminal has about 80x60 half blocks.
_TERMINAL_PREVIEW_SIDE: Final = 256
_CANCEL_TIMEOUT_S: Final = 5.0
_FILES_OF_SOURCE: Final = {"image_to_image": ("image",), "inpainting": ("image", "mask")}
"""The flags with the files of each kind of source."""
_ARTICLES: Final = {"image": "an", "mask": "a"}


def run(arguments: argparse.Namespace, client: Client) -> ExitCode:
    """Generates the images that the command line asks for."""
    prompt = _prompt(arguments)
    output = output_from(
        arguments.output, image_format=arguments.image_format, num_images=arguments.num_images
    )
    options = _options(arguments, output)
    reporter = _reporter(arguments, output)
    try:
        events = client.stream(prompt, timeout_s=arguments.timeout, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    with reporter, events:
        return _follow(events, client=client, reporter=reporter, output=output)


def _follow(
    events: GenerationStream, *, client: Client, reporter: Reporter, output: Output
) -> ExitCode:
    generation = ""
    num_images = 1
    num_saved = num_withheld = 0
    try:
        for event in events:
            generation = event.generation
            if isinstance(event, Accepted):
                num_images = len(event.seeds)
            if isinstance(event, Image) and not event.is_filtered:
                reporter.saved(event, path=output.write(event, num_images=num_images))
                num_saved += 1
            else:
                num_withheld += isinstance(event, Image)
                reporter.show(event)
    except KeyboardInterrupt:
        events.close()
        reporter.interrupted(generation, is_confirmed=_is_cancelled(client, generation))
        return ExitCode.INTERRUPTED
    except LatentwireError as error:
        reporter.failed(error)
        raise
    except OSError as error:
        msg = f"{error.filename or 'output'}: {error.strerror}"
        raise UsageError(msg) from None
    return ExitCode.WITHHELD if num_withheld and not num_saved else ExitCode.OK


def _is_cancelled(client: Client, generation: str) -> bool:
    """Cancels the generation with a call of its own, and returns whether the server confirmed it.

    Closing the stream cancels too, but this process may exit before that is sent.
    """
    if not generation:
        return False
    try:
        client.cancel(generation, timeout_s=_CANCEL_TIMEOUT_S)
    except LatentwireError:
        return False
    return True


def _prompt(arguments: argparse.Namespace) -> str | pb.GenerateImageRequest:
    if arguments.like is not None:
        request = request_in(load_description(arguments.like), path=arguments.like)
        if arguments.prompt is not None:
            request.prompt = arguments.prompt
        request.ClearField("output")
        _check_source(request, arguments)
        return request
    if arguments.prompt is None:
        msg = "generate needs a prompt, or --like FILE"
        raise UsageError(msg)
    prompt: str = arguments.prompt
    return prompt


def _check_source(request: pb.GenerateImageRequest, arguments: argparse.Namespace) -> None:
    """Refuses a request whose source files are missing: an image stores only their digests."""
    needed = _FILES_OF_SOURCE.get(request.WhichOneof("source") or "", ())
    missing = [name for name in needed if getattr(arguments, name) is None]
    if missing:
        flags = " and ".join(f"--{name} FILE" for name in missing)
        what = " and ".join(f"{_ARTICLES[name]} {name}" for name in needed)
        msg = f"{arguments.like}: generated from {what}, which it does not contain; add {flags}"
        raise UsageError(msg)


def _options(arguments: argparse.Namespace, output: Output) -> GenerateOptions:
    """Returns the options: flags with the name of one as they are, the others converted."""
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in GenerateOptions.__annotations__
    }
    options = cast("GenerateOptions", given)
    options |= {
        "scheduler": _scheduler(arguments),
        "image": _file(arguments.image),
        "mask": _file(arguments.mask),
        "image_format": output.image_format,
        "labels": _labels(arguments.label),
    }
    if arguments.preview and not arguments.quiet:
        options["preview_interval_steps"] = arguments.preview_interval_steps or 1
        options["preview_max_side"] = arguments.preview_max_side or _TERMINAL_PREVIEW_SIDE
    return options


def _file(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise UsageError(msg) from None


def _scheduler(arguments: argparse.Namespace) -> str | tuple[str, str] | None:
    if arguments.sigmas is None:
        scheduler: str | None = arguments.scheduler
        return scheduler
    if arguments.scheduler is None:
        msg = "--sigmas needs --scheduler"
        raise UsageError(msg)
    return (arguments.scheduler, arguments.sigmas)


def _labels(items: list[str] | None) -> dict[str, str] | None:
    if items is None:
        return None
    labels = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            msg = f"--label {item}: needed: KEY=VALUE"
            raise UsageError(msg)
        labels[key] = value
    return labels


def _reporter(arguments: argparse.Namespace, output: Output) -> Reporter:
    if arguments.json:
        if output.to_stdout:
            msg = "--json and -o - cannot both use standard output"
            raise UsageError(msg)
        return JsonReporter(sys.stdout)
    if arguments.preview and importlib.util.find_spec("PIL") is None:
        msg = "--preview needs Pillow: pip install pillow"
        raise UsageError(msg)
    if arguments.quiet:
        return Reporter()
    if sys.stderr.isatty():
        # Importing rich takes 0.1 s, which scripts that log to a file are spared.
        from latentwire._cli.live import LiveReporter  # noqa: PLC0415

        return LiveReporter(shows_images=arguments.preview)
    return PlainReporter(sys.stderr)
