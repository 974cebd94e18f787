"""``latentwire models``, ``info``, ``list`` and ``cancel``: the server's resources."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from latentwire._cli.exit_status import ExitCode, UsageError
from latentwire._cli.formatting import columns, fields, json_line, one_line, value_record

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from latentwire._client import Client
    from latentwire._resources import Generation, Model, ServerInfo


def run(arguments: argparse.Namespace, client: Client) -> ExitCode:
    """Calls the server and prints its response."""
    values: Sequence[Model | Generation | ServerInfo]
    match arguments.command:
        case "models":
            values, text = _models(client, arguments.words)
        case "info":
            info = client.server_info()
            values, text = [info], _server_page(info)
        case "list":
            values = generations = client.generations()
            text = _generation_list(generations)
        case _:
            generation = client.cancel(arguments.name)
            values, text = [generation], f"{generation.name} is {generation.state}\n"
    if arguments.json:
        text = "".join(json_line(value_record(value)) for value in values)
    sys.stdout.write(text)
    return ExitCode.OK


def _models(client: Client, words: Sequence[str]) -> tuple[Sequence[Model], str]:
    match words:
        case []:
            models = client.models()
            return models, _model_list(models)
        case ["load", name]:
            model = client.load_model(name, on_progress=_report_loading)
            return [model], f"{model.name} is {model.state}\n"
        case ["unload", name]:
            model = client.unload_model(name)
            return [model], f"{model.name} is {model.state}\n"
        case [name]:
            model = client.model(name)
            return [model], _model_page(model)
        case _:
            msg = f"models {' '.join(words)}: needed: models [NAME], or load NAME, or unload NAME"
            raise UsageError(msg)


def _report_loading(loaded_bytes: int, total_bytes: int) -> None:
    if total_bytes and sys.stderr.isatty():
        sys.stderr.write(f"loaded {loaded_bytes >> 20} of {total_bytes >> 20} MiB\n")


def _model_list(models: Sequence[Model]) -> str:
    rows = [("ID", "STATE", "FAMILY", "SIZE", "ALIASES")]
    rows += [
        (
            model.name.removeprefix("models/") + (" *" if model.is_default else ""),
            model.state,
            model.family or "-",
            f"{model.defaults.width}x{model.defaults.height}" if _is_known(model) else "-",
            ", ".join(model.aliases),
        )
        for model in models
    ]
    return columns(rows)


def _model_page(model: Model) -> str:
    pairs: list[tuple[str, object]] = [
        ("name", model.name),
        ("display name", one_line(model.display_name)),
        ("aliases", ", ".join(model.aliases) or "-"),
        ("default", "yes" if model.is_default else "no"),
        ("state", model.state),
    ]
    if model.failure_message:
        pairs.append(("reason", one_line(model.failure_message)))
    if not _is_known(model):
        return fields(pairs)
    schedulers = [("SCHEDULER", "SIGMAS", "EVALUATIONS PER STEP")]
    schedulers += [
        (scheduler.id, ", ".join(scheduler.sigmas), str(scheduler.evaluations_per_step))
        for scheduler in model.schedulers
    ]
    return f"{fields([*pairs, *_abilities(model)])}\n{columns(schedulers)}"


def _is_known(model: Model) -> bool:
    """Whether the server knows the model's abilities; it may not before the model is loaded."""
    return bool(model.schedulers)


def _abilities(model: Model) -> Sequence[tuple[str, object]]:
    limits, defaults = model.limits, model.defaults
    return [
        ("family", model.family),
        ("revision", model.revision),
        ("capabilities", ", ".join(("text-to-image", *model.capabilities))),
        ("loras", ", ".join(model.loras) or "-"),
        ("memory", f"{model.memory_bytes >> 20} MiB" if model.memory_bytes else "-"),
        ("size", f"{defaults.width}x{defaults.height}"),
        ("steps", defaults.num_inference_steps),
        ("guidance scale", f"{defaults.guidance_scale:g}"),
        ("scheduler", " ".join(defaults.scheduler).rstrip()),
        ("refiner takes over", _share(defaults.high_noise_frac)),
        ("high-resolution fix", _share(defaults.high_resolution_fix)),
        ("sides", f"{limits.min_side} to {limits.max_side}, by {limits.side_multiple}"),
        ("most pixels", limits.max_pixels),
        ("most steps", limits.max_inference_steps),
        ("most images", limits.max_images),
        ("longest prompt", f"{limits.max_prompt_bytes} bytes"),
        ("most guidance", f"{limits.max_guidance_scale:g}"),
        ("most clip skip", limits.max_clip_skip),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _server_page(info: ServerInfo) -> str:
    rows_per_call = info.denoiser_row_count / max(1, info.denoiser_call_count)
    pairs: list[tuple[str, object]] = [
        ("version", info.version),
        ("device", f"{info.device} {info.dtype}"),
        ("batching", f"{info.batching}, up to {info.max_rows} rows per call"),
        ("denoiser", " ".join((info.denoiser_backend, *info.compiled_shapes))),
        ("denoiser calls", f"{info.denoiser_call_count}, {rows_per_call:.1f} rows each"),
        ("running", info.running_count),
        ("queued", f"{info.queued_count} of {info.max_queued}"),
        ("draining", "yes" if info.draining else "no"),
        ("largest request", f"{info.max_request_bytes} bytes"),
        ("started", info.start_time.isoformat(sep=" ", timespec="seconds")),
    ]
    return fields([*pairs, *sorted(info.library_versions.items())])


def _generation_list(generations: Sequence[Generation]) -> str:
    rows = [("NAME", "STATE", "MODEL", "STEP", "AHEAD", "CREATED", "LABELS")]
    rows += [
        (
            generation.name,
            generation.state,
            generation.model.removeprefix("models/"),
            f"{generation.step}/{generation.step_count}",
            str(generation.ahead_count),
            generation.create_time.isoformat(sep=" ", timespec="seconds"),
            json.dumps(dict(generation.labels)) if generation.labels else "",
        )
        for generation in generations
    ]
    return columns(rows)
