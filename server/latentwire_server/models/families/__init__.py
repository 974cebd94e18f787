"""The families that are served. A new one is a file in this folder and an entry here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latentwire_server.models.families import stable_diffusion, stable_diffusion_xl

if TYPE_CHECKING:
    from latentwire_server.models.architectures.family import Family

FAMILIES: Final[tuple[Family, ...]] = (stable_diffusion.FAMILY, stable_diffusion_xl.FAMILY)
