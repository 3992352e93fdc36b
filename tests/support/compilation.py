"""How the tests compile: quickly, except where the bits of compiled code matter."""

from __future__ import annotations

import importlib.metadata
import os

# XLA ends the process at a flag that it does not know: only for versions tested.
_KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
# Options of ``jax.jit`` for programs compiled as users compile them.
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **({"xla_cpu_use_fusion_emitters": True} if _KNOWN else {}),
}


def compile_quickly() -> None:
    """For this process and its children; call it before JAX is imported."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if _KNOWN:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
