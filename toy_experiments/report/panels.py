"""The interactive panels: Bokeh's controls and axes, and the arrays they draw from.

Bokeh writes everything into the page, its JavaScript included. What is shown at the
positions of the controls is put together by the reader's browser, in ``panels.js``.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import numpy as np
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
from bokeh.plotting import figure
from bokeh.resources import Resources

from toy_experiments.common.paper import NETWORK_TITLES, NETWORKS, REGIMES
from toy_experiments.common.records import Metrics
from toy_experiments.common.store import Arrays
from toy_experiments.common.style import COLORS, TRUTH
from toy_experiments.explorer import (
    binned_density,
    density_bins,
    start_level,
    start_scales,
)

# Curves by name: title, color, width. CFG is wider, so that it shows beneath S².
_CURVES = {
    "truth": ("truth", TRUTH, 5.0),
    "unguided": ("no guidance", COLORS["unguided"], 1.2),
    "cfg": ("CFG", COLORS["cfg"], 3.6),
    "s2": ("S²", COLORS["s2"], 1.8),
}


def panel_scripts(metrics: Metrics, data: Arrays) -> list[str]:
    """The scripts that draw the three panels into the elements of the page."""
    document = Document()
    for add in (_add_score, _add_density, _add_field):
        add(document, metrics, data)
    roots = {root.id: root.name for root in document.roots}
    item = {"docid": "panels", "roots": roots, "root_ids": list(roots)}
    # No "<" may end the script: texts of results are among the models.
    models = serialize_json(document.to_json(deferred=False)).replace("<", "\\u003c")
    embed = f'Bokeh.embed.embed_items({{"panels": {models}}}, [{json.dumps(item)}]);'
    # Bokeh numbers models from the start of the process; the page from its own.
    ids: dict[str, str] = {}
    embed = re.sub(r'"p\d+"', lambda m: ids.setdefault(m[0], f'"p{len(ids)}"'), embed)
    *library, _ = Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).js_raw
    own = files("toy_experiments.report").joinpath("panels.js").read_text("utf-8")
    quiet = 'Bokeh.set_log_level("warn");'
    return [*library, quiet, own, embed]


def _add_score(document: Document, metrics: Metrics, data: Arrays) -> None:
    x = data["line/points"][:, 0]
    source = _curves("score", x, _CURVES)
    axes = _axes("x", "σ × score", x, (-1, 1), height=320)
    for name in _CURVES:
        axes.line("x", name, source=source, **_style(name))
    _add_legend(axes, _CURVES)
    controls = {"level": _levels(data, "line"), **_scales(metrics)}
    drawn = {"axes": axes, "source": source, "data": _parts(metrics, data, "line")}
    _add(document, "score", axes, controls, drawn)


def _add_density(document: Document, metrics: Metrics, data: Arrays) -> None:
    bins = density_bins(data)
    names = ("truth", "cfg", "s2")
    source = _curves("density", (bins[1:] + bins[:-1]) / 2, names)
    axes = _axes("x", "density", bins, (0, 1), height=320)
    axes.varea_step(
        "x", y1=0, y2="truth", source=source, step_mode="center", fill_color=TRUTH,
        fill_alpha=0.5, legend_label="truth",
    )  # fmt: skip
    for name in names[1:]:
        axes.step("x", name, source=source, mode="center", **_style(name))
    _add_legend(axes, names)
    i, j = start_scales(metrics, data)
    controls = {
        "scale": _stepped("CFG scale λ", data["outputs/scales"], i),
        "omega": _stepped("S² scale ω", data["outputs/omegas"], j),
    }
    # By denoiser, scale and omega: the density, and what is said of it.
    truth = data["outputs/truth"].astype(np.float64)
    outputs = {
        row: [
            [(binned_density(q, bins), _reading(q, truth, bins)) for q in quantiles]
            for quantiles in data[f"outputs/{row}"].astype(np.float64)
        ]
        for row in NETWORKS
    }
    arrays = {"truth": binned_density(truth, bins), "outputs": outputs}
    drawn = {"axes": axes, "source": source, "data": arrays}
    _add(document, "density", axes, controls, drawn)


def _reading(quantiles: np.ndarray, truth: np.ndarray, bins: np.ndarray) -> str:
    w2 = np.sqrt(np.mean((quantiles - truth) ** 2))
    outside = 100 * np.mean((quantiles < bins[0]) | (quantiles > bins[-1]))
    return (
        f"mean {quantiles.mean():.2f}, standard deviation {quantiles.std():.2f}, W2 to "
        f"the truth {w2:.3f}" + (f", {outside:.1f} % off the axis" if outside else "")
    )


def _add_field(document: Document, metrics: Metrics, data: Arrays) -> None:
    points = data["plane/points"]
    # With the margins a square between the axes, at every width.
    margins = {"min_border_left": 58, "min_border_right": 28}
    size = {"aspect_ratio": 1.0, "max_width": 560}
    axes = _axes("x₁", "x₂", points[:, 0], points[[0, -1], 1], **size, **margins)
    x, y = data["plane/mode"].tolist()
    sources = {"circles": ColumnDataSource({"x": [x] * 3, "y": [y] * 3, "r": [0] * 3})}
    circles = {"fill_color": None, "line_color": "#5a5a5a"}
    axes.circle("x", "y", "r", source=sources["circles"], **circles)
    for name, width in (("truth", 2.5), ("s2", 1.2)):
        empty: dict[str, Any] = {"xs": [], "ys": []}
        sources[name] = ColumnDataSource(empty, name=f"field-{name}")
        style = {**_style(name), "line_width": width}
        axes.multi_line("xs", "ys", source=sources[name], **style)
    _add_legend(axes)
    arrows: list[Any] = [("score", "guided score"), ("departure", "departure")]
    controls = {
        "show": Select(title="arrows", value="score", options=arrows),
        "level": _levels(data, "plane"),
        **_scales(metrics),
    }
    drawn = {"sources": sources, "data": _parts(metrics, data, "plane")}
    _add(document, "field", axes, controls, drawn)


def _add(document: Document, panel: str, axes: Any, controls: Any, drawn: Any) -> None:
    """Add the controls and the axes of a panel, and what draws it at every change."""
    # At first a trained network: on the exact denoiser CFG and S² coincide.
    rows: list[Any] = [(row, NETWORK_TITLES[row]) for row in (*REGIMES, "exact")]
    row = Select(title="denoiser", value=REGIMES[0], options=rows)
    controls = {"row": row, **controls}
    models = {**controls, **drawn}
    update = CustomJS(args=models, code=f"draw.{panel}({{{', '.join(models)}}})")
    document.js_on_event("document_ready", update)
    for name, control in controls.items():
        control.update(
            name=f"{panel}-{name}", min_width=180, sizing_mode="stretch_width"
        )
        control.js_on_change("value", update)
    wrapped = Row(*controls.values())
    wrapped.update(
        name=f"{panel}-controls",
        sizing_mode="stretch_width",
        styles={"flex-wrap": "wrap"},
    )
    axes.name = f"{panel}-plot"
    document.add_root(wrapped)
    document.add_root(axes)


def _axes(x: str, y: str, x_range: Any, y_range: Any, **size: Any) -> Any:
    """Empty axes as wide as the page."""
    ends = [Range1d(start=float(r[0]), end=float(r[-1])) for r in (x_range, y_range)]
    axes = figure(
        x_axis_label=x, y_axis_label=y, x_range=ends[0], y_range=ends[1],
        sizing_mode="stretch_width", tools="", toolbar_location=None, **size,
    )  # fmt: skip
    axes.axis.axis_label_text_font_style = "normal"
    axes.axis.minor_tick_line_color = None
    return axes


def _curves(panel: str, x: np.ndarray, names: Any) -> ColumnDataSource:
    columns = {"x": x, **{name: np.zeros_like(x) for name in names}}
    return ColumnDataSource(columns, name=f"{panel}-curves")


def _style(name: str) -> dict[str, Any]:
    title, color, width = _CURVES[name]
    return {"legend_label": title, "line_color": color, "line_width": width}


def _add_legend(axes: Any, hover: Any = ()) -> None:
    """The legend above the axes, and the values under the pointer."""
    (legend,) = axes.legend
    legend.update(
        orientation="horizontal", border_line_color=None, background_fill_alpha=0,
        padding=0, margin=8, spacing=10,
    )  # fmt: skip
    axes.add_layout(legend, "above")
    if hover:
        tips = [("x", "@x{0.00}"), *((_CURVES[k][0], f"@{k}{{0.000}}") for k in hover)]
        last = axes.renderers[-1:]
        axes.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=last))


def _stepped(title: str, values: np.ndarray, start: int) -> Slider:
    """A slider over the positions of given values, which shows the values."""
    texts = [f"{v:.2g}" for v in values]
    code = "return texts[Math.round(tick)]"
    slider = Slider(title=title, start=0, end=len(texts) - 1, step=1, value=start)
    slider.format = CustomJSTickFormatter(args={"texts": texts}, code=code)
    return slider


def _levels(data: Arrays, name: str) -> Slider:
    start = start_level(data, name)
    return _stepped("noise level σ", data[f"{name}/sigmas"], start)


def _scales(metrics: Metrics) -> dict[str, Slider]:
    guidance = metrics["config"]["guidance"]
    scale = min(max(guidance["cfg_scale"], 0.0), 8.0)
    omega = min(max(guidance["s2_scale"], 0.0), 1.0)
    return {
        "scale": Slider(title="CFG scale λ", start=0, end=8, step=0.1, value=scale),
        "omega": Slider(title="S² scale ω", start=0, end=1, step=0.01, value=omega),
    }


def _parts(metrics: Metrics, data: Arrays, name: str) -> dict[str, Any]:
    """The fields of ``line`` or ``plane``, with the noised class at each level."""
    points, sigmas = data[f"{name}/points"], data[f"{name}/sigmas"]
    spreads = np.hypot(metrics["config"]["std"], sigmas)
    squares = np.sum((points - data[f"{name}/mode"]) ** 2, axis=-1)
    weights = np.exp(-0.5 * squares / spreads[:, None] ** 2)
    weights /= weights.sum(axis=-1, keepdims=True)
    return {
        "points": points.reshape(-1),
        "sigmas": sigmas.tolist(),
        "spreads": spreads.tolist(),
        "weights": list(np.repeat(weights, points.shape[-1], axis=-1)),
        # By denoiser and level: D_u, D_c and D_weak.
        "parts": {
            row: [
                [part.reshape(-1) for part in parts]
                for parts in data[f"{name}/{row}"].swapaxes(0, 1)
            ]
            for row in NETWORKS
        },
    }
