"""SD3 and SD3.5: text-to-image transformers of two streams."""

from flax import nnx

from full_models.models.family import Family
from full_models.models.sd3.config import NAMES, SD3Config
from full_models.models.sd3.network import SD3
from full_models.models.sd3.pipeline import SD3Pipeline
from full_models.models.sd3.weights import EXECUTION, LAYOUTS, PLACEMENT

_NAMED = ("depth", "width", "num_heads", "qk_norm", "num_dual", "table_size", "turbo")

FAMILY = Family(
    name="SD3",
    config=SD3Config,
    build=lambda config: SD3(config, rngs=nnx.Rngs(0)),
    layouts=LAYOUTS,
    published={
        name: {field: getattr(SD3Config.named(name), field) for field in _NAMED}
        for name in NAMES
    },
    pipeline=SD3Pipeline,
    execution=EXECUTION,
    placement=PLACEMENT,
)
