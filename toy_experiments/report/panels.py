"""The interactive panels: Bokeh's controls and axes, and the arrays they draw from.

Bokeh writes everything into the page, its JavaScript included. What is shown at the
positions of the controls is computed by the reader's browser, in ``panels.js``.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    HoverTool,
    Range1d,
    Row,
)
from bokeh.models.widgets import Select, Slider
from bokeh.plotting import figure as Figure
from bokeh.resources import Resources

from toy_experiments.common.paper import NETWORK_TITLES, NETWORKS, REGIMES
from toy_experiments.common.records import Metrics
from toy_experiments.common.store import Arrays
from toy_experiments.common.style import COLORS, TRUTH
from toy_experiments.explorer import PARTS, density_bins, start_level

# Curves by name: title, color, width. CFG is wider, so that it shows beneath S².
_CURVES = {
    "truth": ("truth", TRUTH, 5.0),
    "unguided": ("no guidance", COLORS["unguided"], 1.2),
    "cfg": ("CFG", COLORS["cfg"], 3.6),
    "s2": ("S²", COLORS["s2"], 1.8),
}


def panels(metrics: Metrics, data: Arrays) -> tuple[str, str]:
    """The three panels: their HTML, and the scripts that fill it."""
    document = Document()
    html = (
        "<p>D = D<sub>u</sub> + λ (D<sub>c</sub> − D<sub>u</sub>) + "
        "ω (D<sub>c</sub> − D<sub>weak</sub>), with D<sub>weak</sub> the exact mean "
        "over all masks. λ = 1 and ω = 0 is no guidance, ω = 0 is CFG. With the exact "
        "denoiser D<sub>weak</sub> = D<sub>c</sub>, and ω changes nothing. Trained "
        f"networks: the first of {metrics['seeds']} training seeds.</p>"
    )
    for add in (_add_score, _add_density, _add_field):
        html += add(document, metrics, data)
    roots = {root.id: root.name for root in document.roots}
    item = {"docid": "panels", "roots": roots, "root_ids": list(roots)}
    models = serialize_json(document.to_json(deferred=False))
    embed = f'Bokeh.embed.embed_items({{"panels": {models}}}, [{json.dumps(item)}]);'
    # Bokeh numbers models from the start of the process; the page from its own.
    ids: dict[str, str] = {}
    embed = re.sub(r'"p\d+"', lambda m: ids.setdefault(m[0], f'"p{len(ids)}"'), embed)
    library = Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).js_raw
    own = files("toy_experiments.report").joinpath("panels.js").read_text("utf-8")
    quiet = 'Bokeh.set_log_level("warn");'
    scripts = [*library[:-1], quiet, own, embed.replace("</", "<\\/")]
    return html, "\n".join(f"<script>{script}</script>" for script in scripts)


def _add_score(document: Document, metrics: Metrics, data: Arrays) -> str:
    x = data["line/points"][:, 0]
    source = ColumnDataSource(
        {"x": x, **{k: 0 * x for k in _CURVES}}, name="score-curves"
    )
    figure = _axes("x", "σ × score", (x[0], x[-1]), (-1, 1), height=320)
    for name in _CURVES:
        figure.line("x", name, source=source, **_style(name))
    _add_legend(figure, _CURVES)
    return _add_panel(
        document,
        "score",
        "Guided score on a line",
        f"Modes at ±4, standard deviation {metrics['config']['std']:g}; the label is "
        "the upper mode. The score is multiplied by the noise level σ, which makes it "
        "of order one at every level. Exact at every position of the sliders: the "
        "guided prediction is affine in both scales.",
        {"level": _level(data, "line"), **_scales(metrics, (0, 8), (0, 1))},
        {"figure": figure, "source": source, "data": _parts(metrics, data, "line")},
    )


def _add_density(document: Document, metrics: Metrics, data: Arrays) -> str:
    scales, omegas = data["outputs/scales"].tolist(), data["outputs/omegas"].tolist()
    bins = density_bins(data)
    x = (bins[1:] + bins[:-1]) / 2
    names = ("truth", "cfg", "s2")
    source = ColumnDataSource(
        {"x": x, **{k: 0 * x for k in names}}, name="density-curves"
    )
    figure = _axes("x", "density", (bins[0], bins[-1]), (0, 1), height=320)
    figure.varea_step(
        "x", y1=0, y2="truth", source=source, step_mode="center", fill_color=TRUTH,
        fill_alpha=0.5, legend_label="truth",
    )  # fmt: skip
    for name in names[1:]:
        figure.step("x", name, source=source, mode="center", **_style(name))
    _add_legend(figure, names)
    scales_text, omegas_text = (
        ", ".join(f"{v:g}" for v in values) for values in (scales, omegas)
    )
    arrays = {
        "bins": bins,
        "truth": data["outputs/truth"].tolist(),
        "scales": scales,
        "omegas": omegas,
        "outputs": {row: list(map(list, data[f"outputs/{row}"])) for row in NETWORKS},
    }
    return _add_panel(
        document,
        "density",
        "Output of the sampler on a line",
        "Density of what the deterministic sampler makes of its noise, with the S² "
        f"term in steps 10 to 90 %. Computed at CFG scales {scales_text} and ω "
        f"{omegas_text}; between them quantiles are interpolated.",
        _scales(metrics, (scales[0], scales[-1]), (omegas[0], omegas[-1])),
        {"figure": figure, "source": source, "data": arrays},
    )


def _add_field(document: Document, metrics: Metrics, data: Arrays) -> str:
    points = data["plane/points"]
    ends = (points.min(), points.max())
    figure = _axes("x₁", "x₂", ends, ends, aspect_ratio=1.0, max_width=560)
    x, y = data["plane/mode"].tolist()
    sources = {"circles": ColumnDataSource({"x": [x] * 3, "y": [y] * 3, "r": [0] * 3})}
    figure.circle(
        "x", "y", "r", source=sources["circles"], fill_color=None, line_color="#5a5a5a"
    )
    for name, width in (("truth", 2.5), ("s2", 1.2)):
        sources[name] = ColumnDataSource({"xs": [], "ys": []}, name=f"field-{name}")
        style = {**_style(name), "line_width": width}
        figure.multi_line("xs", "ys", source=sources[name], **style)
    _add_legend(figure)
    options: list[Any] = [
        ("score", "guided score"),
        ("departure", "departure from the truth"),
    ]
    return _add_panel(
        document,
        "field",
        "Guided score in the plane",
        f"Modes at (±4, ±4), standard deviation {metrics['config']['std']:g}; the "
        "label is the upper right corner. Arrows are σ times the score, their length "
        "drawn by the square root; circles are p(x | label) at 1, 2 and 3 standard "
        "deviations of the noised class. The departure is the guided field minus the "
        "truth's.",
        {
            "show": Select(title="arrows", value="score", options=options),
            "level": _level(data, "plane"),
            **_scales(metrics, (0, 8), (0, 1)),
        },
        {"sources": sources, "data": _parts(metrics, data, "plane")},
        figure,
    )


def _add_panel(
    document: Document,
    name: str,
    title: str,
    caption: str,
    controls: dict[str, Any],
    drawn: dict[str, Any],
    figure: Any = None,
) -> str:
    """Add a panel to the document; returns the HTML that it is drawn into."""
    # At first a trained network: on the exact denoiser CFG and S² coincide.
    networks: list[Any] = [(row, NETWORK_TITLES[row]) for row in (*REGIMES, "exact")]
    row = Select(title="denoiser", value=REGIMES[0], options=networks)
    controls = {"row": row, **controls}
    models = {**controls, **drawn}
    update = CustomJS(args=models, code=f"draw.{name}({{{', '.join(models)}}})")
    document.js_on_event("document_ready", update)
    for key, control in controls.items():
        control.name = f"{name}-{key}"
        control.update(min_width=180, sizing_mode="stretch_width")
        control.js_on_change("value", update)
    wrapped = Row(*controls.values())
    wrapped.name = f"{name}-controls"
    wrapped.update(sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})
    document.add_root(wrapped)
    figure = figure or drawn["figure"]
    figure.name = f"{name}-plot"
    document.add_root(figure)
    return f"""
<section class="panel" aria-labelledby="{name}-title">
<h3 id="{name}-title">{title}</h3>
<div id="{name}-controls"></div>
<div id="{name}-plot" role="img" aria-label="{title}"></div>
<p id="{name}-reading" aria-live="polite"></p>
<p class="caption">{caption}</p>
</section>
"""


def _axes(x: str, y: str, x_range: Any, y_range: Any, **size: Any) -> Any:
    """Empty axes as wide as the page."""
    figure = Figure(
        x_axis_label=x,
        y_axis_label=y,
        x_range=Range1d(start=float(x_range[0]), end=float(x_range[1])),
        y_range=Range1d(start=float(y_range[0]), end=float(y_range[1])),
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        **size,
    )
    figure.axis.axis_label_text_font_style = "normal"
    figure.axis.minor_tick_line_color = None
    return figure


def _style(name: str) -> dict[str, Any]:
    title, color, width = _CURVES[name]
    return {"legend_label": title, "line_color": color, "line_width": width}


def _add_legend(figure: Any, hover: Any = ()) -> None:
    """The legend above the axes, and the values under the pointer."""
    (legend,) = figure.legend
    legend.update(orientation="horizontal", border_line_color=None, padding=0, margin=8)
    figure.add_layout(legend, "above")
    if hover:
        tips = [("x", "@x{0.00}"), *((_CURVES[k][0], f"@{k}{{0.000}}") for k in hover)]
        last = figure.renderers[-1:]
        figure.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=last))


def _level(data: Arrays, name: str) -> Slider:
    sigmas = data[f"{name}/sigmas"].tolist()
    text = CustomJSTickFormatter(
        args={"sigmas": sigmas},
        code="return String(Number(sigmas[Math.round(tick)].toPrecision(2)))",
    )
    slider = Slider(title="noise level σ", start=0, end=len(sigmas) - 1, step=1)
    slider.update(value=start_level(data, name), format=text)
    return slider


def _scales(metrics: Metrics, scales: Any, omegas: Any) -> dict[str, Slider]:
    guidance = metrics["config"]["guidance"]
    sliders = {}
    for key, title, (low, high), step, start in (
        ("scale", "CFG scale λ", scales, 0.1, guidance["cfg_scale"]),
        ("omega", "S² scale ω", omegas, 0.01, guidance["s2_scale"]),
    ):
        sliders[key] = Slider(title=title, start=low, end=high, step=step)
        sliders[key].value = min(max(start, low), high)
    return sliders


def _parts(metrics: Metrics, data: Arrays, name: str) -> dict[str, Any]:
    """The fields of ``line`` or ``plane``, with the class that they are compared on."""
    sigmas = data[f"{name}/sigmas"].tolist()
    parts = {
        row: [
            [data[f"{name}/{row}/{part}"][level].reshape(-1) for part in PARTS]
            for level in range(len(sigmas))
        ]
        for row in NETWORKS
    }
    return {
        "points": data[f"{name}/points"].reshape(-1),
        "sigmas": sigmas,
        "mode": data[f"{name}/mode"].tolist(),
        "std": metrics["config"]["std"],
        "parts": parts,
    }
