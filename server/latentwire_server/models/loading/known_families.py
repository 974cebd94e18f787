"""The families that are served. A new one is a file in ``models/families`` and an entry here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latentwire_server.models.families import stable_diffusion, stable_diffusion_xl

if TYPE_CHECKING:
    from latentwire_server.models.architectures.family import Family

FAMILIES: Final[tuple[Family, ...]] = (stable_diffusion.FAMILY, stable_diffusion_xl.FAMILY)


def family_of(pipeline: object) -> Family | None:
    """Returns the family whose folders name this pipeline class."""
    return next((family for family in FAMILIES if pipeline in family.pipelines), None)
