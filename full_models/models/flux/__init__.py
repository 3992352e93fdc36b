"""Flux.1: text-to-image transformers of double and single streams."""

from flax import nnx

from full_models.models.family import Family
from full_models.models.flux.config import NAMES, FluxConfig
from full_models.models.flux.network import Flux
from full_models.models.flux.pipeline import FluxPipeline
from full_models.models.flux.weights import EXECUTION, LAYOUTS, PLACEMENT

_NAMED = ("num_double", "num_single", "width", "num_heads", "variant")

FAMILY = Family(
    name="Flux",
    config=FluxConfig,
    build=lambda config: Flux(config, rngs=nnx.Rngs(0)),
    layouts=LAYOUTS,
    published={
        name: {field: getattr(FluxConfig.named(name), field) for field in _NAMED}
        for name in NAMES
    },
    pipeline=FluxPipeline,
    execution=EXECUTION,
    placement=PLACEMENT,
)
