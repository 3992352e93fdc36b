"""Wan 2.1: text-to-video diffusion transformers."""

from flax import nnx

from full_models.models.family import Family
from full_models.models.wan.config import NAMES, WanConfig
from full_models.models.wan.network import Wan
from full_models.models.wan.pipeline import WanPipeline
from full_models.models.wan.weights import (
    EXECUTION,
    LAYOUTS,
    PLACEMENT,
    published,
    refuse_two_networks,
)

FAMILY = Family(
    name="Wan",
    config=WanConfig,
    build=lambda config: Wan(config, rngs=nnx.Rngs(0)),
    layouts=LAYOUTS,
    published={name: published(WanConfig.named(name)) for name in NAMES},
    pipeline=WanPipeline,
    execution=EXECUTION,
    placement=PLACEMENT,
    refuse=refuse_two_networks,
)
