"""Rules for the adapters of a request. Pure; any thread."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation, out_of_range, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import RequestDraft


MAX_LORAS: Final = 8


MAX_LORA_SCALE: Final = 10.0


def _lora_violations(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    if len(draft.loras) > MAX_LORAS:
        yield Violation(
            field="loras",
            reason="TOO_MANY",
            description=f"{len(draft.loras)} adapters; allowed: {MAX_LORAS}",
        )
    sizes = {lora.id: lora.num_bytes for lora in info.loras}
    ids = [lora.id for lora in draft.loras]
    for index, lora in enumerate(draft.loras[:MAX_LORAS]):
        place = f"loras[{index}]"
        if lora.id not in sizes:
            yield _unknown_lora(f"{place}.id", lora.id, info)
        elif lora.id in ids[:index]:
            yield Violation(
                field=f"{place}.id",
                reason="DUPLICATE",
                description=f"adapter {quoted(lora.id)} is there twice; give it once, with the sum"
                " of the scales",
            )
        yield from _scale(f"{place}.scale", lora.scale)
    num_bytes = sum(sizes.get(id_, 0) for id_ in dict.fromkeys(ids))
    if num_bytes > info.limits.max_lora_bytes:
        yield Violation(
            field="loras",
            reason="TOO_LARGE",
            description=f"the adapters take {num_bytes} bytes together;"
            f" allowed: {info.limits.max_lora_bytes}",
        )


def _unknown_lora(field: str, id_: str, info: ModelInfo) -> Violation:
    if id_ in info.unfit_loras:
        description = f"adapter {quoted(id_)} does not fit the model: {info.unfit_loras[id_]}"
        return Violation(field=field, reason="LORA_DOES_NOT_FIT", description=description)
    known = ", ".join(lora.id for lora in info.loras) or "none"
    return Violation(
        field=field,
        reason="UNKNOWN_LORA",
        description=f"the model has no adapter {quoted(id_)}; it has: {known}",
    )


def _scale(field: str, scale: float | None) -> Iterator[Violation]:
    allowed = f"{-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
    if scale is None:
        return
    if not math.isfinite(scale):
        yield Violation(
            field=field, reason="NOT_FINITE", description=f"{field} is {scale}; allowed: {allowed}"
        )
    elif abs(scale) > MAX_LORA_SCALE:
        yield out_of_range(field, scale, allowed)
