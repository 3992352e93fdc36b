"""One configuration, of what is asked for and of what the weights say."""

from __future__ import annotations

import dataclasses
from typing import Any

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.infer import names_like, published_like
from full_models.weights.find import Found
from gmm_guidance._runtime.tensor_files import differences

# How a network is run, which no file of weights decides.
_EXECUTION = ("compute_dtype", "remat")
_SHAPE = tuple(
    field.name
    for field in dataclasses.fields(DiTConfig)
    if field.name not in _EXECUTION
)
# What a model's name stands for; resolution and classes are those of the file.
_NAMED = ("depth", "width", "num_heads", "patch_size", "process")


def settle(found: Found, config: DiTConfig | str | None) -> DiTConfig:
    """The configuration that both allow.

    Args:
        found: the weights.
        config: what the caller says of them; ``None`` for nothing.

    Raises:
        ValueError: naming the fields in which they differ, or that neither determines.
        TypeError: if the configuration is none.
    """
    wanted, execution = _asked_for(config)
    fields = {n: v for n, v in found.fields.items() if n in _SHAPE}
    execution = {n: v for n, v in found.fields.items() if n in _EXECUTION} | execution
    _check_agreement(found, config, wanted, fields)
    fields = found.otherwise | fields | wanted
    if "num_heads" not in fields and (like := published_like(fields)):
        fields["num_heads"] = like[0].num_heads
    missing = [name for name in _SHAPE if name not in fields]
    if missing == ["process"]:
        names = " or ".join(repr(name) for name in names_like(fields))
        raise ValueError(
            f"{found.origin} does not say whether it is of a DiT (process 'ddpm') or a "
            f"SiT ('flow'); pass {names or 'its DiTConfig'}."
        )
    if missing:
        said = ", ".join(f"{n} = {fields[n]}" for n in _SHAPE if n in fields)
        beside = ", or put its config.json beside it" if found.otherwise else ""
        raise ValueError(
            f"{found.origin} does not say the {', '.join(missing)} of its model; pass "
            f"its DiTConfig{beside} (known: {said or 'nothing'})."
        )
    return DiTConfig(**fields, **execution)


def _asked_for(
    config: DiTConfig | str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields that the caller fixes: of the shape, and of how it is run."""
    if config is None:
        return {}, {}
    if isinstance(config, str):
        named = DiTConfig.named(config)
        return {name: getattr(named, name) for name in _NAMED}, {}
    if not isinstance(config, DiTConfig):
        raise TypeError(
            f"config must be a DiTConfig, a model's name or None, got "
            f"{type(config).__name__}."
        )
    fields = dataclasses.asdict(config)
    return {n: fields[n] for n in _SHAPE}, {n: fields[n] for n in _EXECUTION}


def _check_agreement(
    found: Found,
    config: DiTConfig | str | None,
    wanted: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    both = wanted.keys() & fields.keys()
    if "mlp_ratio" in both and "width" in both:
        # Ratios that round to the same width are the same.
        widths = [int(f["width"] * f["mlp_ratio"]) for f in (wanted, fields)]
        both -= {"mlp_ratio"} if widths[0] == widths[1] else set()
    different = differences({n: wanted[n] for n in both}, {n: fields[n] for n in both})
    if different:
        asked = repr(config) if isinstance(config, str) else "the configuration given"
        raise ValueError(
            f"{found.origin} is not of {asked}: {'; '.join(different)}. Pass the model "
            f"that it is of, or another file."
        )
