"""All families of models: adding one adds its folder and a line here."""

from __future__ import annotations

from full_models.models import dit, wan
from full_models.models.family import Family

FAMILIES: tuple[Family, ...] = (dit.FAMILY, wan.FAMILY)
