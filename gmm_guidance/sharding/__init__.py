"""Many devices: one mesh, placement by the paths of parameters, batches."""

from gmm_guidance.sharding.batches import (
    batch_parts,
    local_part,
    run_divided,
    shard_batch,
)
from gmm_guidance.sharding.mesh import (
    AXES,
    BATCH_AXES,
    MeshConfig,
    batch_sharding,
    num_batch_parts,
)
from gmm_guidance.sharding.placement import PathRules, place, placements, put, replicate

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MeshConfig",
    "PathRules",
    "batch_parts",
    "batch_sharding",
    "local_part",
    "num_batch_parts",
    "place",
    "placements",
    "put",
    "replicate",
    "run_divided",
    "shard_batch",
]
