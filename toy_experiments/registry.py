"""All experiments by name, in the order in which ``run all`` runs them."""

from toy_experiments import (
    distributions,
    naive_vs_single,
    score_fields,
    subtract_form,
    trajectories,
)
from toy_experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        distributions,
        trajectories,
        naive_vs_single,
        score_fields,
        subtract_form,
    )
}
