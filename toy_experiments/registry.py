"""All experiments by name and by group, in the order in which ``run all`` runs them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from toy_experiments import (
    attention_toy,
    autoguidance_toy,
    calibration,
    cfg_zero_toy,
    digits,
    distributions,
    effect_law,
    error_budget,
    explorer,
    guidance_windows,
    mask_variance,
    moving_digits,
    naive_vs_single,
    phase_diagram,
    power_distribution,
    repair,
    score_fields,
    subtract_form,
    trajectories,
    weak_pass_cost,
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
        effect_law,
        error_budget,
        calibration,
        mask_variance,
        guidance_windows,
        weak_pass_cost,
        explorer,
        repair,
        power_distribution,
        attention_toy,
        autoguidance_toy,
        cfg_zero_toy,
        digits,
        moving_digits,
    )
}
#: What each group is about.
GROUPS: dict[str, str] = {
    "paper": "the toy figures of the S²-Guidance paper, with numbers",
    "analysis": "where and why guidance helps or harms",
    "related": "toys and statements of related work",
    "images": "networks trained on small real images",
}


def find_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments of names, groups and ``all``, each once, in the given order.

    Raises:
        ValueError: for an unknown name, or none.
    """
    if not names:
        raise ValueError("name experiments, groups, or 'all'.")
    found: dict[str, Experiment] = {}
    for name in names:
        if name in EXPERIMENTS:
            found[name] = EXPERIMENTS[name]
        elif name == "all" or name in GROUPS:
            members = EXPERIMENTS.values()
            found |= {e.name: e for e in members if name in ("all", e.group)}
        else:
            known = [*EXPERIMENTS, *GROUPS, "all"]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"unknown experiment or group {name!r}.{hint} Known: "
                f"{', '.join(known)}."
            )
    return list(found.values())
