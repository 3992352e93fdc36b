"""DiT and SiT: class-conditional diffusion transformers."""

from flax import nnx

from full_models.models.dit.config import NAMES, DiTConfig
from full_models.models.dit.network import DiT
from full_models.models.dit.pipeline import DiTPipeline
from full_models.models.dit.weights import LAYOUTS, PLACEMENT
from full_models.models.family import Family

# The fields that a name stands for; resolution and classes are those of the file.
_NAMED = ("depth", "width", "num_heads", "patch_size", "process", "prediction")

FAMILY = Family(
    name="DiT",
    config=DiTConfig,
    build=lambda config: DiT(config, rngs=nnx.Rngs(0)),
    layouts=LAYOUTS,
    published={
        name: {field: getattr(DiTConfig.named(name), field) for field in _NAMED}
        for name in NAMES
    },
    pipeline=DiTPipeline,
    execution=("compute_dtype", "remat"),
    placement=PLACEMENT,
)
