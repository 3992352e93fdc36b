"""A small results folder for the tests of the report, made as users make theirs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gmm_guidance as gg
from toy_experiments import cli
from toy_experiments.common import paper

TINY = ["--seeds", "2", "--num-steps", "3", "--num-samples", "64"]
TINY += ["--networks.width", "8", "--networks.num-blocks", "3"]
TINY += ["--networks.batch-size", "32", "--networks.under-steps", "4"]
TINY += ["--networks.under-weak-steps", "2", "--networks.well-steps", "12"]
TINY += ["--networks.well-weak-steps", "6"]
TINY += ["--line-points", "21", "--line-levels", "4", "--plane-points", "9"]
TINY += ["--plane-levels", "3", "--num-quantiles", "40"]
TINY += ["--scales", "1", "2", "4", "--omegas", "0", "0.5", "1"]


def run_explorer(out: Path, *, train: bool) -> None:
    """Run the explorer; without training the networks are random."""
    with pytest.MonkeyPatch.context() as patch:
        if not train:
            patch.setattr(paper, "trained", untrained)
        assert main("run", "explorer", "--out", str(out), *TINY) == 0


def main(*arguments: str) -> int:
    """The command line; the exit status."""
    try:
        return cli.main(list(arguments))
    except SystemExit as end:  # the parsers' own way to end on bad options
        return int(end.code or 0)


def untrained(store, mixture, config, num_seeds) -> gg.TrainingRun:
    """What ``networks.trained`` returns, with random weights: saves compilation."""
    shape = config.network(mixture)
    abstract = nnx.eval_shape(
        lambda: gg.BlockMLP(shape, rngs=nnx.Rngs(jax.random.key(0))).as_stack()
    )
    random = np.random.default_rng(mixture.dim)

    def weights(leaf):
        values = 0.4 * random.standard_normal((num_seeds, *leaf.shape))
        return jnp.asarray(values, jnp.float32)

    count = len(config.snapshots)
    made = tuple(jax.tree.map(weights, abstract) for _ in range(count))
    return gg.TrainingRun(made, config, num_seeds, (jnp.zeros(num_seeds),) * count)


def explorer_data(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "explorer" / "data.npz") as file:
        return dict(file)
