"""All families of models: adding one adds its folder and a line here."""

from __future__ import annotations

from full_models.models import dit, flux, sd3, wan
from full_models.models.family import Family

FAMILIES: tuple[Family, ...] = (dit.FAMILY, flux.FAMILY, sd3.FAMILY, wan.FAMILY)
