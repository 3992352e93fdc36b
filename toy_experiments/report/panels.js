"use strict";
// What the panels show at the positions of their controls. Each function of `draw` gets
// the Bokeh models of a panel by name, and as `data` the arrays that it draws from.

const largest = (arrays) => Math.max(...arrays.map((a) => Math.max(...a)), 0.01);
const say = (panel, text) => {
  document.getElementById(`${panel}-reading`).textContent = text.replace(/-(?=\d)/g, "−");
};

// The next round number: axes keep still while a slider moves a little.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((n) => n * power >= value * 0.999999);
}

// Sigma times the guided score, (D - x) / sigma, at one noise level.
function guidedField({ parts, points, sigmas }, row, level, scale, omega) {
  const [uncond, cond, weak] = parts[row][level];
  return Array.from(points, (x, i) => {
    const guidance = scale * (cond[i] - uncond[i]) + omega * (cond[i] - weak[i]);
    return (uncond[i] + guidance - x) / sigmas[level];
  });
}

// Root mean square of a difference of fields over the noised class, on the grid.
function departure({ weights }, level, field, truth) {
  const square = field.reduce((sum, v, i) => sum + weights[level][i] * (v - truth[i]) ** 2, 0);
  return Math.sqrt(square).toFixed(3);
}

// Arrows at points, the longest `reach` long. The length is by the square root, so that
// the direction stays readable where a field is weak.
function arrows(points, field, longest, reach, every) {
  const size = Math.round(Math.sqrt(points.length / 2));
  const [xs, ys] = [[], []];
  for (let p = 0; p < size; p += every)
    for (let q = 0; q < size; q += every) {
      const i = 2 * (p * size + q);
      const length = Math.hypot(field[i], field[i + 1]);
      const drawn = reach * Math.sqrt(length / longest);
      const [u, v] = [field[i], field[i + 1]].map((w) => (w / (length || 1)) * drawn);
      const [x, y] = [points[i], points[i + 1]];
      const [a, b] = [0.7, 0.18]; // the barbs' ends, along the arrow and across
      xs.push([x, x + u, x + a * u - b * v, x + u, x + a * u + b * v]);
      ys.push([y, y + v, y + a * v + b * u, y + v, y + a * v - b * u]);
    }
  return { xs, ys };
}

const draw = {
  score({ row, level, scale, omega, axes, source, data }) {
    const at = (r, s, w) => guidedField(data, r, level.value, s, w);
    const curves = {
      truth: at("exact", 1, 0),
      unguided: at(row.value, 1, 0),
      cfg: at(row.value, scale.value, 0),
      s2: at(row.value, scale.value, omega.value),
    };
    source.data = { x: data.points, ...curves };
    const all = Object.values(curves);
    axes.y_range.end = roundUp(largest(all));
    axes.y_range.start = -roundUp(largest(all.map((f) => f.map((v) => -v))));
    const gap = (name) => departure(data, level.value, curves[name], curves.truth);
    say("score", "Root mean square departure from the truth over the noised class, " +
      `within the axis: no guidance ${gap("unguided")}, CFG ${gap("cfg")}, S² ${gap("s2")}.`);
  },

  density({ row, scale, omega, axes, source, data }) {
    const outputs = data.outputs[row.value][scale.value];
    const [[cfg, cfgReading], [s2, s2Reading]] = [outputs[0], outputs[omega.value]];
    source.data = { x: source.data.x, truth: data.truth, cfg, s2 };
    axes.y_range.end = roundUp(1.02 * largest([data.truth, cfg, s2]));
    say("density", `CFG: ${cfgReading}. S²: ${s2Reading}.`);
  },

  field({ row, show, level, scale, omega, sources, data }) {
    const { points, spreads } = data;
    const at = (r, s, w) => guidedField(data, r, level.value, s, w);
    const truth = at("exact", 1, 0);
    const cfg = at(row.value, scale.value, 0);
    const s2 = at(row.value, scale.value, omega.value);
    const isDeparture = show.value === "departure";
    const drawn = isDeparture ? s2.map((v, i) => v - truth[i]) : s2;
    const lengths = (f) => f.map((v, i) => (i % 2 ? Math.hypot(f[i - 1], v) : 0));
    const longest = roundUp(largest((isDeparture ? [drawn] : [truth, drawn]).map(lengths)));
    const every = window.innerWidth < 600 ? 2 : 1; // all would touch on a phone
    const reach = 0.95 * every * (points[2] - points[0]);
    const none = { xs: [], ys: [] };
    sources.truth.data = isDeparture ? none : arrows(points, truth, longest, reach, every);
    sources.s2.data = arrows(points, drawn, longest, reach, every);
    const r = [1, 2, 3].map((k) => k * spreads[level.value]);
    sources.circles.data = { ...sources.circles.data, r };
    const gap = (f) => departure(data, level.value, f, truth);
    say("field", `An arrow as long as the arrows are apart: ${longest.toPrecision(2)}. ` +
      "Root mean square departure from the truth over the noised class, within the axes: " +
      `CFG ${gap(cfg)}, S² ${gap(s2)}.`);
  },
};
