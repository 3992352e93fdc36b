"""What commands say of a run: its description, and lines for the terminal."""

from __future__ import annotations

import dataclasses
from typing import Any

from full_models.commands.drawing import Drawn
from full_models.generation.fingerprint import fingerprint
from full_models.models.dit.network import DiT


def describe(config: Any) -> dict[str, Any]:
    """Everything that the images depend on, files by their content."""
    fields = dataclasses.asdict(config)
    fields.pop("out")
    fields.pop("processes", None)
    for name in ("batch_size", "mesh"):  # nothing but last bits depends on them
        fields["draw"].pop(name)
    fields["model"] = config.model.describe()
    fields["vae"] = None
    if config.vae is not None:
        fields["vae"] = {"name": config.vae.name, "sha256": fingerprint(config.vae)}
    return {"command": type(config).__name__.lower(), **fields}


def speed_line(drawn: Drawn) -> str:
    """How fast a rule was, in words."""
    return (
        f"{len(drawn.samples)} images in {drawn.seconds:.1f} s with compilation, "
        f"{drawn.images_per_second:.3g} images/s without, "
        f"{drawn.passes_per_image:.1f} passes each"
    )


def model_line(network: DiT) -> str:
    """The network in words."""
    c = network.config
    family = "SiT" if c.process == "flow" else "DiT"
    return (
        f"{family}: {c.depth} blocks of width {c.width}, samples {c.input_size} x "
        f"{c.input_size} x {c.in_channels}, {c.compute_dtype}"
    )
