"""The value of a rule, read off a sampling run."""

import jax

from gmm_guidance import CustomSchedule, guided_sample


def guided_value(rule, stack, start, *, seed=0, **options):
    """The guided denoiser's value under label 1, as the only step of a run returns it.

    The starting samples are also the noisy samples of that value. Options replace those
    of a run of one Euler step at sigma 0.5.
    """
    options = {"schedule": CustomSchedule((0.5,)), "solver": "euler", **options}
    return guided_sample(
        jax.random.key(seed),
        stack,
        1,
        num_samples=len(start),
        guidance=rule,
        initial=start,
        **options,
    )
