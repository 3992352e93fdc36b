"""Write the golden outputs of diffusers' SD3 and Flux; needs the oracle extra.

Weights and inputs are drawn by ``torch_joint`` from fixed seeds; only outputs are kept.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from oracles import torch_joint  # noqa: E402

NAMES = ("SD3.5-medium", "dev")
SKIPPED = ((), (1,), (2,))


def main():
    """Outputs of full passes and of passes without a block."""
    values = {}
    for name in NAMES:
        model = torch_joint.make(name)
        given = torch_joint.inputs(torch_joint.CONFIGS[name])
        guidance = torch_joint.GUIDANCE if name == "dev" else None
        text = given["context"][:2], given["pooled"][:2]
        for skip in SKIPPED:
            values[f"{name} {skip}"] = torch_joint.velocity(
                model, given["x"], torch_joint.TIMES, *text, guidance, skip
            )
    np.savez_compressed(HERE / "joint.npz", allow_pickle=False, **values)


if __name__ == "__main__":
    main()
