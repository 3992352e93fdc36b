"""The interactive panels: their controls as HTML, their numbers as JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
from html import escape
from typing import Any

import numpy as np

from toy_experiments.common.paper import NETWORK_TITLES, NETWORKS
from toy_experiments.common.records import Metrics
from toy_experiments.common.store import Arrays
from toy_experiments.explorer import PARTS, density_bins, start_level


@dataclasses.dataclass(frozen=True)
class _Slider:
    """A range input; ``levels`` makes it choose among values instead of a number."""

    name: str
    title: str
    low: float
    high: float
    step: float
    start: float
    levels: list[float] | None = None

    def html(self, panel: str) -> str:
        key = f"{panel}-{self.name}"
        value = self.start if self.levels is None else self.levels[int(self.start)]
        return (
            f'<div class="control"><label for="{key}">{escape(self.title)}</label>'
            f'<input type="range" id="{key}" data-control="{self.name}" '
            f'min="{self.low:g}" max="{self.high:g}" step="{self.step:g}" '
            f'value="{self.start:g}">'
            f'<output id="{key}-value" for="{key}">{value:.3g}</output></div>'
        )


def panel_data(record: Metrics, data: Arrays) -> str:
    """Everything that the script draws, as JSON that is safe inside a page."""
    fields = {
        name: {
            "points": _encode(data[f"{name}/points"]),
            "sigmas": _rounded(data[f"{name}/sigmas"]),
            "parts": {
                row: {part: _encode(data[f"{name}/{row}/{part}"]) for part in PARTS}
                for row in NETWORKS
            },
        }
        for name in ("line", "plane")
    }
    outputs = {
        "scales": _rounded(data["outputs/scales"]),
        "omegas": _rounded(data["outputs/omegas"]),
        "bins": _encode(density_bins(data)),
        "truth": _encode(data["outputs/truth"]),
        "rows": {row: _encode(data[f"outputs/{row}"]) for row in NETWORKS},
    }
    everything = {
        "std": record["config"]["std"],
        "modes": {
            "1": _rounded(data["line/mode"]),
            "2": _rounded(data["plane/mode"]),
        },
        "titles": {row: NETWORK_TITLES[row] for row in NETWORKS},
        **fields,
        "outputs": outputs,
    }
    text = json.dumps(everything, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c")  # no "</script>" inside


def _encode(values: np.ndarray) -> str:
    """Little-endian float32, in base64."""
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def _rounded(values: np.ndarray) -> list[float]:
    """As short decimals that are the same float32 numbers."""
    return [float(str(v)) for v in np.asarray(values, np.float32)]


def panels_html(record: Metrics, data: Arrays) -> str:
    """The three panels, drawn into by the script."""
    seeds = record["seeds"]
    grid = ", ".join(f"{v:g}" for v in data["outputs/scales"])
    omegas = ", ".join(f"{v:g}" for v in data["outputs/omegas"])
    std = record["config"]["std"]
    score = _panel(
        "score",
        "Guided score on a line",
        f"Modes at ±4, standard deviation {std:g}; the label is the upper mode. The "
        "score is multiplied by the noise level σ, which makes it of order one at "
        "every level. Exact at every position of the sliders: the guided prediction "
        "is affine in both scales.",
        [_levels(data, "line"), *_scales(record, 0.0, 8.0)],
        ["truth", "unguided", "cfg", "s2"],
    )
    lowest, highest = (float(data["outputs/scales"][i]) for i in (0, -1))
    density = _panel(
        "density",
        "Output of the sampler on a line",
        "Density of what the deterministic sampler makes of its noise, with the S² "
        f"term in steps 10 to 90 %. Computed at CFG scales {grid} and ω {omegas}; "
        "between them quantiles are interpolated.",
        [*_scales(record, lowest, highest, data["outputs/omegas"])],
        ["truth", "cfg", "s2"],
    )
    field = _panel(
        "field",
        "Guided score in the plane",
        f"Modes at (±4, ±4), standard deviation {std:g}; the label is the upper right "
        "corner. Arrows are σ times the score, their length drawn by the square root; "
        "circles are p(x | label) at 1, 2 and 3 standard deviations of the noised "
        "class. The departure is the guided field minus the truth's.",
        [_levels(data, "plane"), *_scales(record, 0.0, 8.0)],
        ["truth", "s2"],
        _select(
            "field",
            "show",
            "arrows",
            {"score": "guided score", "departure": "departure"},
        ),
    )
    about = (
        f"<p>D = D<sub>u</sub> + λ (D<sub>c</sub> − D<sub>u</sub>) + "
        f"ω (D<sub>c</sub> − D<sub>weak</sub>), with D<sub>weak</sub> the exact mean "
        f"over all masks. λ = 1 and ω = 0 is no guidance, ω = 0 is CFG. With the exact "
        f"denoiser D<sub>weak</sub> = D<sub>c</sub>, and ω changes nothing. Trained "
        f"networks: the first of {seeds} training seeds.</p>"
    )
    return about + score + density + field


def _levels(data: Arrays, name: str) -> _Slider:
    sigmas = _rounded(data[f"{name}/sigmas"])
    start = start_level(data, name)
    return _Slider("level", "noise level σ", 0, len(sigmas) - 1, 1, start, sigmas)


def _scales(
    record: Metrics, low: float, high: float, omegas: Any = (0.0, 1.0)
) -> tuple[_Slider, _Slider]:
    guidance = record["config"]["guidance"]
    scale = min(max(guidance["cfg_scale"], low), high)
    omega = min(max(guidance["s2_scale"], float(omegas[0])), float(omegas[-1]))
    return (
        _Slider("scale", "CFG scale λ", low, high, 0.1, scale),
        _Slider(
            "omega", "S² scale ω", float(omegas[0]), float(omegas[-1]), 0.01, omega
        ),
    )


def _select(panel: str, name: str, title: str, options: dict[str, str]) -> str:
    key = f"{panel}-{name}"
    choices = "".join(
        f'<option value="{value}">{escape(text)}</option>'
        for value, text in options.items()
    )
    return (
        f'<div class="control"><label for="{key}">{escape(title)}</label>'
        f'<select id="{key}" data-control="{name}">{choices}</select></div>'
    )


_LEGEND = {
    "truth": "truth p(x | label)",
    "unguided": "no guidance (λ = 1, ω = 0)",
    "cfg": "CFG (ω = 0)",
    "s2": "S²",
}


def _panel(
    name: str,
    title: str,
    caption: str,
    sliders: list[_Slider],
    legend: list[str],
    more: str = "",
) -> str:
    rows = _select(name, "row", "denoiser", {r: NETWORK_TITLES[r] for r in NETWORKS})
    controls = rows + more + "".join(s.html(name) for s in sliders)
    keys = "".join(f'<li class="key {k}">{_LEGEND[k]}</li>' for k in legend)
    return f"""
<section class="panel" id="panel-{name}" aria-labelledby="panel-{name}-title">
<h3 id="panel-{name}-title">{title}</h3>
<div class="controls">{controls}</div>
<ul class="legend">{keys}</ul>
<div class="plot"></div>
<p class="reading" aria-live="polite"></p>
<p class="caption">{caption}</p>
</section>
"""
