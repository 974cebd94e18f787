"""Rules for the LoRAs of a request. Pure; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation, quoted
from latentwire_server.requests.decimal_rules import scale_violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latentwire_server.models.info import LoraChoice, ModelInfo

MAX_LORAS: Final = 8
MAX_LORA_SCALE: Final = 10.0


def lora_violations(loras: Sequence[LoraChoice], info: ModelInfo) -> Iterator[Violation]:
    """Yields what is wrong with the LoRAs that a request names."""
    if len(loras) > MAX_LORAS:
        yield Violation(
            field="loras",
            reason="TOO_MANY",
            description=f"{len(loras)} LoRAs; allowed: {MAX_LORAS}",
        )
    sizes = {lora.id: lora.num_bytes for lora in info.loras}
    ids = [lora.id for lora in loras]
    for index, lora in enumerate(loras[:MAX_LORAS]):
        place = f"loras[{index}]"
        if lora.id not in sizes:
            yield _unknown_lora(f"{place}.id", lora.id, info)
        elif lora.id in ids[:index]:
            yield Violation(
                field=f"{place}.id",
                reason="DUPLICATE",
                description=f"LoRA {quoted(lora.id)} is listed twice; list it once, with the sum of"
                " the scales",
            )
        yield from scale_violations(
            f"{place}.scale", lora.scale, low=-MAX_LORA_SCALE, high=MAX_LORA_SCALE
        )
    num_bytes = sum(sizes.get(id_, 0) for id_ in dict.fromkeys(ids))
    if num_bytes > info.limits.max_lora_bytes:
        yield Violation(
            field="loras",
            reason="TOO_LARGE",
            description=f"the LoRAs take {num_bytes} bytes together;"
            f" allowed: {info.limits.max_lora_bytes}",
        )


def _unknown_lora(field: str, id_: str, info: ModelInfo) -> Violation:
    if id_ in info.unfit_loras:
        description = f"LoRA {quoted(id_)} does not fit the model: {info.unfit_loras[id_]}"
        return Violation(field=field, reason="LORA_DOES_NOT_FIT", description=description)
    known = ", ".join(lora.id for lora in info.loras) or "none"
    return Violation(
        field=field,
        reason="UNKNOWN_LORA",
        description=f"the model has no LoRA {quoted(id_)}; it has: {known}",
    )
