"""All experiments by name, in the order in which ``run all`` runs them."""

from toy_experiments import (
    autoguidance_toy,
    calibration,
    cfg_zero_toy,
    distributions,
    error_budget,
    explorer,
    guidance_windows,
    mask_variance,
    naive_vs_single,
    phase_diagram,
    power_distribution,
    repair,
    score_fields,
    subtract_form,
    trajectories,
)
from toy_experiments.common.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        distributions,
        trajectories,
        naive_vs_single,
        score_fields,
        subtract_form,
        phase_diagram,
        error_budget,
        calibration,
        mask_variance,
        guidance_windows,
        repair,
        power_distribution,
        autoguidance_toy,
        cfg_zero_toy,
        explorer,
    )
}
